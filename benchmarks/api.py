"""How much slower deliveries go while one process answers 1,000 reads of configs a second.

`python -m benchmarks.api [deliveries] [rounds] [reads a second]`. A daemon works off a backlog without reads, with an
`outbox serve` beside it that answers them, and with both in one process (`outbox run --serve`). The three take turns,
because the machine's speed drifts. What counts is the ratio of each to the run without reads of its round.
"""

import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import psycopg

from benchmarks import stage
from outbox.cli.options import run_async
from outbox.postgres import users

IN_FLIGHT = 100
MODES = ("serve beside run", "run --serve")


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
    beside: dict[str, list[float]] = {each: [] for each in MODES}
    answered: dict[str, list[float]] = {each: [] for each in MODES}
    late: dict[str, list[float]] = {each: [] for each in MODES}
    good = asked = 0.0
    with stage.database() as dsn, stage.receiver() as receiver, psycopg.connect(dsn, autocommit=True) as conn:
        stage.add_config(conn, receiver.url)
        row = conn.execute("select id from outbox.postback_configs").fetchone()
        path = f"/v2/postbackconfigs/{row[0] if row else None}"
        user = run_async(_new_user(dsn))
        for turn in range(rounds):
            for mode in (None, *MODES) if turn % 2 else (*reversed(MODES), None):
                port = stage.free_port()
                stage.add_contacts(conn, deliveries)
                conn.execute("vacuum analyze")
                before = receiver.ask("count")
                receiver.ask("span")
                with _server(dsn, port, mode or MODES[0]):
                    stage.wait_for(port)
                    reader = ReaderProcess(port, path, user, rate if mode else 0)
                    _wait_for(receiver, before + deliveries // 10)
                    receiver.ask("span")
                    reader.tell()
                    began = time.monotonic()
                    _wait_for(receiver, before + deliveries * 9 // 10)
                    count, seconds = receiver.ask("span")
                    answers, ok, _, p99 = reader.tell()
                    spent = time.monotonic() - began
                    if mode is None:
                        alone.append(count / seconds)
                    else:
                        beside[mode].append(count / seconds)
                        answered[mode].append(answers / spent)
                        late[mode].append(p99)
                        good, asked = good + ok, asked + answers
                    while conn.execute("select exists (select from outbox.deliveries)").fetchone() == (True,):
                        time.sleep(0.1)
                    reader.close()
    figures: dict[str, Any] = {"deliveries/s without reads (median)": statistics.median(alone)}
    for mode in MODES:
        ratios = [with_reads / without for with_reads, without in zip(beside[mode], alone, strict=True)]
        figures |= {
            f"{mode}: deliveries/s with reads (median)": statistics.median(beside[mode]),
            f"{mode}: ratio (median of pairs)": statistics.median(ratios),
            f"{mode}: ratio (least)": min(ratios),
            f"{mode}: reads/s answered (median)": statistics.median(answered[mode]),
            f"{mode}: a read, p99 ms": statistics.median(late[mode]),
        }
    figures["share of the answers that were 200"] = good / asked if asked else 0.0
    stage.record(
        "api",
        figures,
        {"deliveries": deliveries, "rounds": rounds, "reads asked for, 1/s": rate, "in flight": IN_FLIGHT},
    )


@contextlib.contextmanager
def _server(dsn: str, port: int, mode: str) -> Iterator[None]:
    """Run a daemon, and the API in a process of its own or in the daemon's."""
    listen = ["--listen", f"127.0.0.1:{port}"]
    settings = {
        "OUTBOX_CONCURRENCY": str(4 * IN_FLIGHT), "OUTBOX_MAX_IN_FLIGHT_PER_CONFIG": str(IN_FLIGHT),
    }  # fmt: skip
    if mode == "run --serve":
        with stage.daemon(dsn, "--serve", *listen, **settings):
            yield
        return
    with subprocess.Popen(  # noqa: S603 - ourselves
        [sys.executable, "-m", "outbox", "serve", *listen],
        env=os.environ | {"OUTBOX_DSN": dsn},
        stderr=subprocess.DEVNULL,
    ) as serving:
        try:
            with stage.daemon(dsn, **settings):
                yield
        finally:
            serving.terminate()


def _wait_for(receiver: stage.ReceiverProcess, count: int) -> None:
    while receiver.ask("count") < count:
        time.sleep(0.02)


async def _new_user(dsn: str) -> tuple[str, str]:
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        user, key = await users.add(conn, "benchmark", [stage.LOCATION])
    return str(user.id), key


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
