"""What a prune costs, and what those who write meanwhile wait: a day of 10,000,000 tries goes.

`python -m benchmarks.housekeeping [attempts] [rounds]`. Two writers go on all the while, one statement after another
with a millisecond between: one inserts into the application's table, which is captured, the other settles ten tries.
Their waits are counted while the partition goes and for as long again after it, until the files are gone; then with
nothing going on; then while a reader like a dump keeps the partition from going.

The day's files are put out of the kernel's cache first, as those of a month ago are: to throw pages out of it is most
of what removing a file just written costs.
"""

import asyncio
import os
import statistics
import sys
import time
import uuid
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path

import psycopg

from benchmarks import stage
from outbox.cli.options import run_async
from outbox.core.model import NO_CONFIG, Attempt, Delivered, Delivery
from outbox.postgres import queue, retention
from outbox.postgres.pool import Link
from outbox.postgres.retention import Fate, Report

DAY = 86_400.0
BOUNDS_MS = (1, 2, 5, 10, 20, 50, 100)
_WATCHED = 3.0
"""Seconds."""

# Written as a table of its own and attached whole, which takes a tenth of the time of ten million inserts. A day of
# long ago was vacuumed long ago.
_A_DAY = """
create table outbox.attempts_20010101 (like outbox.attempts including constraints)
    with (autovacuum_enabled = off);
insert into outbox.attempts_20010101
select (lpad(to_hex(i / 4096), 12, '0') || '8' || lpad(to_hex(i % 4096), 3, '0')
    || substr(gen_random_uuid()::text, 20))::uuid, '00000000-0000-4000-8000-000000000001', 1,
    '2001-01-01 00:00+00'::timestamptz + i * interval '1 ms', '2001-01-01 00:00+00', 12,
    case when i % 50 = 0 then 'retry' else 'delivered' end, 200, null, 'thank you'
from generate_series(1, {attempts}) i;
alter table outbox.attempts attach partition outbox.attempts_20010101
    for values from ('2001-01-01 00:00+00') to ('2001-01-02 00:00+00')
"""


class Waits:
    """How long each statement of a writer took."""

    def __init__(self) -> None:
        self.ms: list[float] = []

    async def count(self, stop: asyncio.Event, write: Callable[[], Awaitable[object]]) -> None:
        """Write until told to stop."""
        while not stop.is_set():
            begun = time.perf_counter()
            await write()
            self.ms.append((time.perf_counter() - begun) * 1000)
            await asyncio.sleep(0.001)

    @property
    def histogram(self) -> list[int]:
        """How many took less than each of BOUNDS_MS, and how many longer than all."""
        counts = [0] * (len(BOUNDS_MS) + 1)
        for each in self.ms:
            counts[next((place for place, bound in enumerate(BOUNDS_MS) if each < bound), len(BOUNDS_MS))] += 1
        return counts


class Scene:
    """Two writers and a housekeeper, each with a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self._links = [Link(dsn, "writer"), Link(dsn, "settler"), Link(dsn, "housekeeping", settings=None)]

    async def prune(self) -> Report:
        """Prune as the daemon does."""
        return await retention.prune(await self._links[2].connection(), retention=30 * DAY, retention_dead=90 * DAY)

    async def watch(self, meanwhile: Callable[[], Awaitable[None]]) -> tuple[Waits, Waits]:
        """Count the waits of the application's writer and of the settler."""
        application, settler = await self._links[0].connection(), await self._links[1].connection()

        async def insert() -> None:
            await application.execute(
                "insert into public.contacts (location_id, last_name, first_name) values (%s, 'Jones', 'Zoë')",
                [stage.LOCATION],
            )

        async def settle() -> None:
            await queue.settle(settler, [Attempt(_delivery(), Delivered(), 200, b"ok", 9, now) for _ in range(10)])

        now = datetime.now(UTC)
        waits, stop = (Waits(), Waits()), asyncio.Event()
        writers = [
            asyncio.create_task(counted.count(stop, write))
            for counted, write in zip(waits, (insert, settle), strict=True)
        ]
        await asyncio.sleep(0.5)
        await meanwhile()
        await asyncio.sleep(_WATCHED)
        stop.set()
        await asyncio.gather(*writers)
        return waits

    async def close(self) -> None:
        """Close the connections."""
        for link in self._links:
            await link.drop()


def _delivery() -> Delivery:
    return Delivery(str(uuid.uuid4()), NO_CONFIG, 1, 0, datetime.now(UTC), 1, "CREATE", "contact", "{}")


async def _round(dsn: str, conn: psycopg.Connection) -> tuple[float, int, dict[str, tuple[Waits, Waits]]]:
    scene = Scene(dsn)
    seconds = size = 0.0

    async def nothing() -> None: ...

    async def is_read() -> None:
        with psycopg.connect(dsn) as dump:
            dump.execute("select from outbox.attempts limit 1")
            [left] = (await scene.prune()).partitions
            assert left.fate is Fate.BUSY  # noqa: S101 - or it measured something else

    async def goes() -> None:
        nonlocal seconds, size
        begun = time.perf_counter()
        [gone] = (await scene.prune()).went
        seconds, size = time.perf_counter() - begun, gone.bytes

    found = {"alone": await scene.watch(nothing), "held by a reader": await scene.watch(is_read)}
    found["pruning"] = await scene.watch(goes)
    await scene.close()
    conn.execute("truncate outbox.outbox, public.contacts")
    return seconds, int(size), found


def _forget_files(conn: psycopg.Connection) -> None:
    conn.execute("checkpoint")
    rows = conn.execute(
        "select current_setting('data_directory'), pg_relation_filepath(oid) from pg_class "
        "where relname like 'attempts_20010101%'"
    ).fetchall()
    for folder, name in rows:
        first = Path(folder) / name
        for path in [first, *first.parent.glob(f"{first.name}.*")]:
            with path.open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def measure(attempts: int = 10_000_000, rounds: int = 3) -> None:
    """Measure and record."""
    seconds, sizes = [], []
    waits: dict[str, tuple[Waits, Waits]] = {}
    # A day is loaded in a fraction of the time when it need not be written twice.
    with (
        stage.database(wal_level="minimal", max_wal_senders="0", maintenance_work_mem="256MB") as dsn,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        for _ in range(rounds):
            conn.execute(_A_DAY.format(attempts=attempts).encode())
            _forget_files(conn)
            took, size, found = run_async(_round(dsn, conn))
            seconds.append(took)
            sizes.append(size)
            for name, pair in found.items():
                whole = waits.setdefault(name, (Waits(), Waits()))
                for into, each in zip(whole, pair, strict=True):
                    into.ms += each.ms
    figures: dict[str, object] = {
        "prune, median s": statistics.median(seconds),
        "prune, greatest s": max(seconds),
        "size of the day, MB": round(max(sizes) / 1e6),
    }
    for name, pair in waits.items():
        for writer, each in zip(("capture", "settle"), pair, strict=True):
            figures[f"{writer}, {name}: greatest ms"] = max(each.ms)
            figures[f"{writer}, {name}: histogram"] = each.histogram
    stage.record(
        "housekeeping",
        figures,
        {"attempts": attempts, "rounds": rounds, "histogram, ms below": [*BOUNDS_MS, "more"]},
    )


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
