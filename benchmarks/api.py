"""How much slower deliveries go while the same process answers 1,000 reads of configs a second.

`python -m benchmarks.api [deliveries] [rounds] [reads a second]`. `outbox run --serve` works off a backlog with and
without a client in a process of its own; the two take turns, because the machine's speed drifts. What counts is the
ratio of each pair.
"""

import json
import os
import statistics
import subprocess
import sys
import time
from typing import Any

import psycopg

from benchmarks import stage
from outbox.cli.options import run_async
from outbox.postgres import users

IN_FLIGHT = 100


class ReaderProcess:
    """Reads of one config in a process of its own."""

    def __init__(self, port: int, path: str, user: tuple[str, str], rate: int) -> None:
        environment = os.environ | {"READER_ID": user[0], "READER_KEY": user[1]}
        arguments = [sys.executable, "-m", "benchmarks.reader", "127.0.0.1", str(port), path, str(rate)]
        self._process = subprocess.Popen(  # noqa: S603 - ourselves
            arguments, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )

    def tell(self) -> list[float]:
        """Return how many answers came since the last time, how many were 200, their median and p99 in ms."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        self._process.stdin.write("tell\n")
        self._process.stdin.flush()
        told: list[float] = json.loads(self._process.stdout.readline())
        return told

    def close(self) -> None:
        """End it."""
        assert self._process.stdin is not None  # noqa: S101 - for the type checker
        assert self._process.stdout is not None  # noqa: S101 - for the type checker
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait()


def measure(deliveries: int = 40_000, rounds: int = 5, rate: int = 1000) -> None:
    """Measure and record."""
    alone: list[float] = []
    beside: list[float] = []
    answered: list[float] = []
    each: list[float] = []
    reading: list[float] = []
    good = asked = 0.0
    times: list[tuple[float, float]] = []
    with stage.database() as dsn, stage.receiver() as receiver, psycopg.connect(dsn, autocommit=True) as conn:
        stage.add_config(conn, receiver.url)
        row = conn.execute("select id from outbox.postback_configs").fetchone()
        path = f"/v2/postbackconfigs/{row[0] if row else None}"
        user = run_async(_new_user(dsn))
        for turn in range(2 * rounds):
            reads = turn % 2 != (turn // 2) % 2  # without, with, with, without
            port = stage.free_port()
            stage.add_contacts(conn, deliveries)
            conn.execute("vacuum analyze")
            before = receiver.ask("count")
            receiver.ask("span")
            with stage.daemon(
                dsn, "--serve", "--listen", f"127.0.0.1:{port}",
                OUTBOX_CONCURRENCY=str(4 * IN_FLIGHT), OUTBOX_MAX_IN_FLIGHT_PER_CONFIG=str(IN_FLIGHT),
            ) as daemon:  # fmt: skip
                stage.wait_for(port)
                reader = ReaderProcess(port, path, user, rate if reads else 0)
                while receiver.ask("count") < before + deliveries // 10:
                    time.sleep(0.02)
                receiver.ask("span")
                reader.tell()
                began, used = time.monotonic(), daemon.cpu_seconds()
                while receiver.ask("count") < before + deliveries * 9 // 10:
                    time.sleep(0.02)
                count, seconds = receiver.ask("span")
                answers, ok, middle, late = reader.tell()
                spent = time.monotonic() - began
                used = daemon.cpu_seconds() - used
                (beside if reads else alone).append(count / seconds)
                if not reads:
                    each.append(used / count)
                else:
                    reading.append((used - count * statistics.median(each or [0.0])) / answers)
                    answered.append(answers / spent)
                    good, asked = good + ok, asked + answers
                    times.append((middle, late))
                while conn.execute("select exists (select from outbox.deliveries)").fetchone() == (True,):
                    time.sleep(0.1)
                reader.close()
    ratios = [with_reads / without for with_reads, without in zip(beside, alone, strict=True)]
    figures: dict[str, Any] = {
        "deliveries/s without reads (median)": statistics.median(alone),
        "deliveries/s with reads (median)": statistics.median(beside),
        "ratio (median of pairs)": statistics.median(ratios),
        "ratio (least)": min(ratios),
        "reads/s answered (median)": statistics.median(answered),
        "share of them that were 200": good / asked if asked else 0.0,
        "daemon's processor time of a delivery, µs": statistics.median(each) * 1e6,
        "daemon's processor time of a read, µs": statistics.median(reading) * 1e6,
        "a read, median ms": statistics.median(middle for middle, _ in times),
        "a read, p99 ms": statistics.median(late for _, late in times),
    }
    stage.record(
        "api",
        figures,
        {"deliveries": deliveries, "rounds": rounds, "reads asked for, 1/s": rate, "in flight": IN_FLIGHT},
    )


async def _new_user(dsn: str) -> tuple[str, str]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        user, key = await users.add(conn, "benchmark", [stage.LOCATION])
    return str(user.id), key


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
