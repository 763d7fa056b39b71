"""A writer that commits single inserts of contacts at a pace: `python -m benchmarks.paced DSN COUNT RATE FILE`.

RATE: commits per second, 0 for as many as go. The moments of a schedule are fixed before it begins, so that a commit
that was late makes no other late. FILE receives JSON: for each contact its id, when its insert was due, when it was
sent and when the answer of the commit was back, on the monotonic clock, which processes of one machine share.
"""

import asyncio
import json
import secrets
import sys
import time
from pathlib import Path

import psycopg

from benchmarks.stage import LOCATION
from outbox.cli.options import run_async

CONNECTIONS = 16

_INSERT = (
    "insert into public.contacts (id, location_id, last_name, first_name, email, address, city) "
    "values (%s, %s, 'Jones', 'Zoë', 'zoe@example.com', '1 Main St & Co', 'Örebro')"
)


async def write(dsn: str, count: int, rate: float) -> list[tuple[str, float, float, float]]:
    """Commit the contacts; return what FILE receives."""
    written: list[tuple[str, float, float, float]] = []
    conns = [
        await psycopg.AsyncConnection.connect(dsn, autocommit=True, prepare_threshold=0) for _ in range(CONNECTIONS)
    ]
    for conn in conns:
        # The first of a connection is slower: it is planned, and fills the caches.
        await conn.execute("set outbox.suppress = 'on'")
        await conn.execute(_INSERT, [_id(), LOCATION])
        await conn.execute("set outbox.suppress = 'off'")
    begin = time.monotonic() + 0.05
    left = iter(range(count))

    async def commit(conn: psycopg.AsyncConnection) -> None:
        for number in left:
            due = begin + number / rate if rate else time.monotonic()
            # Not below a millisecond: no timer of the loop is as fine.
            if (early := due - time.monotonic()) > 0:
                await asyncio.sleep(early)
            identity, sent = _id(), time.monotonic()
            await conn.execute(_INSERT, [identity, LOCATION])
            written.append((identity, due, sent, time.monotonic()))

    await asyncio.gather(*map(commit, conns))
    for conn in conns:
        await conn.close()
    return written


def _id() -> str:
    """Return an id as the table's default makes them: microseconds, then dice."""
    return f"{time.time_ns() // 1000:014x}{secrets.token_hex(5)}"


def main(dsn: str, count: int, rate: float, file: str) -> None:
    """Write, and tell what was written."""
    Path(file).write_text(json.dumps(run_async(write(dsn, count, rate))))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), float(sys.argv[3]), sys.argv[4])
