"""How fast a backlog of one config's contacts is delivered, against a bare aiohttp loop that POSTs the same bodies.

`python -m benchmarks.throughput [deliveries] [rounds]`. The two take turns, because the machine's speed drifts; what
counts is the ratio of each pair. Statements are counted by PostgreSQL itself.
"""

import asyncio
import statistics
import sys
import time
import uuid

import aiohttp
import psycopg

from benchmarks import stage
from outbox.cli.options import run_async
from outbox.core import postback

IN_FLIGHT = 100


async def bare_loop(url: str, bodies: list[bytes]) -> None:
    """POST the bodies with aiohttp as fast as it goes, with the same headers, and nothing else."""
    left = iter(bodies)
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=IN_FLIGHT), cookie_jar=aiohttp.DummyCookieJar(), auto_decompress=False
    )

    async def send() -> None:
        for body in left:
            headers = postback.headers(
                str(uuid.uuid4()), timestamp=int(time.time()), user_agent="bare", authorization=None, signature=None
            )
            async with session.post(url, data=body, headers=headers, allow_redirects=False) as answer:
                await answer.read()

    async with session:
        await asyncio.gather(*(send() for _ in range(IN_FLIGHT)))


def measure(deliveries: int = 20_000, rounds: int = 3) -> None:
    """Measure and record."""
    pairs = []
    daemon_cpu = statements = peak = 0.0
    with stage.database() as dsn, stage.receiver() as receiver, psycopg.connect(dsn, autocommit=True) as conn:
        stage.add_config(conn, receiver.url)
        for _ in range(rounds):
            stage.add_contacts(conn, deliveries)
            records = conn.execute("select data::text from outbox.outbox").fetchall()
            bodies = [postback.form_body("CREATE", "contact", 1, data) for (data,) in records]
            run_async(bare_loop(receiver.url, bodies))
            count, seconds = receiver.ask("span")
            bare = count / seconds
            before = receiver.ask("count")
            statements_before = stage.statements(conn)
            with stage.daemon(
                dsn, OUTBOX_CONCURRENCY=str(4 * IN_FLIGHT), OUTBOX_MAX_IN_FLIGHT_PER_CONFIG=str(IN_FLIGHT)
            ) as daemon:
                while receiver.ask("count") < before + deliveries:
                    time.sleep(0.05)
                count, seconds = receiver.ask("span")
                while conn.execute("select exists (select from outbox.deliveries)").fetchone() == (True,):
                    time.sleep(0.2)
                daemon_cpu = daemon.cpu_seconds()
                peak = max(peak, daemon.memory())
            # Its connections are closed, so that their last numbers are in.
            statements = stage.statements(conn) - statements_before
            pairs.append((count / seconds, bare))
            conn.execute("truncate outbox.outbox")
    stage.record(
        "throughput",
        {
            "daemon, deliveries/s (median)": statistics.median(ours for ours, _ in pairs),
            "bare aiohttp loop, POSTs/s (median)": statistics.median(bare for _, bare in pairs),
            "ratio (median of pairs)": statistics.median(ours / bare for ours, bare in pairs),
            "ratio (least)": min(ours / bare for ours, bare in pairs),
            "statements per delivery": statements / deliveries,
            "daemon's processor time per delivery, µs": daemon_cpu / deliveries * 1e6,
            "daemon's resident memory, peak MB": peak,
        },
        {"deliveries": deliveries, "rounds": rounds, "in flight": IN_FLIGHT},
    )


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
