"""What one statement that changes very much costs the others: from their commits to the first byte.

`python -m benchmarks.batch [rows] [seconds] [events a second] [strict]`. CONFIGS configs get equal traffic; BEFORE
seconds after the beginning so many rows for one more, whose receiver answers in 50 ms, are captured by one statement;
each STRAY-th of them is for one of the others. The figures: before, while the statement runs, in the second after its
commit, and in the `seconds` after that; and when the last of the stray ones came. The first `strict` of the others are
in strict order, and wait for their turn behind the batch: these are counted until its commit only.
"""

import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack

import psycopg

from benchmarks import debt, stage
from benchmarks.neighbours import INSERT, arrivals, at_share, evenly

CONFIGS = 100
BATCHED = CONFIGS
"""The number of the config that the batch is for."""
BEFORE = 5.0
SOON = 1.0
STRAY = 2000
SETTLING = 2.0
"""Seconds at the beginning that are not counted."""

_BATCH = """
insert into public.contacts (location_id, last_name, first_name, email, address, city)
select 'location-' || case when i %% %(stray)s = 0 then i / %(stray)s %% %(batched)s else %(batched)s end,
    case when i %% %(stray)s = 0 then 'stray' else 'Jones' end, 'Zoë', 'zoe@example.com', '1 Main St & Co', 'Örebro'
from generate_series(1, %(rows)s) i
"""


def _capture(dsn: str, rows: int) -> tuple[float, float]:
    """Have the batch captured BEFORE seconds from now; return when that began and ended."""
    time.sleep(BEFORE)
    with psycopg.connect(dsn, autocommit=True) as conn:
        begun = time.monotonic()
        conn.execute(_BATCH, {"stray": STRAY, "batched": BATCHED, "rows": rows})
        return begun, time.monotonic()


def _write(
    conn: psycopg.Connection, batch: Future[tuple[float, float]], *, seconds: float, rate: float
) -> dict[str, float]:
    """Insert at an even pace until the batch was committed, and so many seconds more; return when each was."""
    committed = {}
    ends = float("inf")
    for number in evenly(86_400, rate):
        row = conn.execute(INSERT, [f"location-{number % CONFIGS}"]).fetchone()
        if row:
            committed[row[0]] = time.monotonic()
        if batch.done():
            ends = min(ends, time.monotonic() + SOON + seconds)
        if time.monotonic() > ends:
            break
    return committed


def measure(rows: int = 1_000_000, seconds: int = 15, rate: int = 200, strict: int = 0) -> None:
    """Measure and record."""
    with ExitStack() as ends:
        dsn = ends.enter_context(stage.database(max_wal_size="8GB"))
        receiver = ends.enter_context(stage.receiver(keep_times=True))
        distant = ends.enter_context(stage.receiver(delay=0.05))
        conn = ends.enter_context(psycopg.connect(dsn, autocommit=True))
        debt.add_configs(conn, receiver.url, CONFIGS)
        in_order = [f"location-{number}" for number in range(strict)]
        conn.execute("update outbox.postback_configs set strict_order = 'hold' where location_id = any(%s)", [in_order])
        debt.add_configs(conn, distant.url, 1, first=BATCHED)
        receiver.ask("times")
        beside = ends.enter_context(ThreadPoolExecutor(1))
        daemon = ends.enter_context(stage.daemon(dsn, OUTBOX_DRAIN_TIMEOUT="1"))
        daemon.wait_until_started()
        batch = beside.submit(_capture, dsn, rows)
        committed = _write(conn, batch, seconds=seconds, rate=rate)
        begun, ended = batch.result()
        stray = [row[0] for row in conn.execute("select id from public.contacts where last_name = 'stray'")]
        arrived = arrivals(conn, receiver, committed | dict.fromkeys(stray, ended))
        peak = daemon.memory()
        wait = {
            row[0] for row in conn.execute("select id from public.contacts where location_id = any(%s)", [in_order])
        }
    parts: dict[str, list[float]] = {"before": [], "while it runs": [], "in the second after": [], "later": []}
    counted_from = min(committed.values()) + SETTLING
    for contact, at in committed.items():
        part = "before" if at < begun else "while it runs" if at < ended else "in the second after"
        if at >= counted_from and (at < ended or contact not in wait):
            # What arrived before the answer to the commit was back took no time.
            parts["later" if at > ended + SOON else part].append(max(0.0, arrived[contact] - at) * 1000)
    figures: dict[str, float] = {"the statement, s": ended - begun}
    for name, took in parts.items():
        took.sort()
        for share, word in ((0.5, "p50"), (0.99, "p99")):
            figures[f"{name}: {word} ms"] = at_share(took, share)
        figures[f"{name}: greatest ms"] = took[-1]
    stray_free = [each for each in stray if each not in wait]
    figures["the last stray one, s after the commit"] = max(arrived[each] for each in stray_free) - ended
    if wait:
        figures["the last one in strict order, s after the commit"] = max(arrived[each] for each in wait) - ended
    figures["daemon's memory, peak MB"] = peak
    stage.record(
        "batch_strict" if strict else "batch",
        figures,
        {"rows": rows, "of which stray": len(stray), "configs": CONFIGS, "events/s": rate, "s": seconds}
        | ({"configs in strict order": strict} if strict else {}),
    )


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
