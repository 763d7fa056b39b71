"""What grows and must cost nothing: the debt, the configs, those that match, the history, the daemons, a held snapshot.

`python -m benchmarks.growth [part] [sizes …]`, a part being `pending`, `configs`, `matching`, `history`, `daemons` or
`snapshot`, and its sizes as many as wanted: `pending 1000 10000000`, `history 0 100000000`, `snapshot 200000`. Without
a part: all of them. Each size has a database of its own on one PostgreSQL. They take turns, because the machine's
speed drifts; what counts is the ratio to the first, the smallest.
"""

import itertools
import statistics
import sys
import time
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta

import psycopg

from benchmarks import debt, stage
from benchmarks.ground import WORKED_OFF, Ground, grounds, time_runs, time_statements

INDEBTED = 100
"""Configs that owe, in each size that has as many."""
SAMPLES = 200
DAYS = 20
"""Days that the history fills, and today."""
FLOW_BATCH = 2_000

# A table that is filled before it gets its indexes, and attached whole, is made in a fraction of the time.
_EVENTS = """
insert into {table} (id, created_at, type, resource, resource_id, location_id, data)
select
    (
        lpad(to_hex(i >> 12), 12, '0') || '8' || lpad(to_hex(i & 4095), 3, '0')
        || '-8' || substr(md5(i::text), 2, 3) || '-' || substr(md5(i::text), 5, 12)
    )::uuid,
    '{begin}'::timestamptz + (i - {first}) * {step} * interval '1 s', 'UPDATE', 'contact', i::text,
    'location-' || i % {configs}, '{{"id":"x","last_name":"Jones","first_name":"Zoë"}}'
from generate_series({first}::bigint, {last}::bigint) i
"""
_TRIES = """
insert into {table} (event_id, config_id, number, at, event_created_at, duration_ms, outcome, status, error, answer)
select e.id, c.id, 1, e.created_at + interval '20 ms', e.created_at, 12, 'delivered', 200, null, 'ok'
from {events} as e join outbox.postback_configs as c on c.location_id = e.location_id
"""


def pending(*sizes: int, deliveries: int = 20_000, rounds: int = 3, samples: int = SAMPLES) -> None:
    """Measure with so much owed. A run of a small one begins with twice what it delivers."""
    sizes = sizes or (1_000, 100_000, 1_000_000)
    built = {}
    with grounds() as made, stage.receiver() as receiver:
        compared = []
        for size in sizes:
            ground = made.add(f"{size:,}")
            debt.add_configs(ground.conn, receiver.url, INDEBTED)
            begun = time.monotonic()
            debt.owe(ground.conn, size, configs=INDEBTED)
            built[f"{size:,}: built, rows/s"] = round(size / (time.monotonic() - begun))
            compared.append(ground)
        figures = time_statements(compared, samples)
        for ground, size in zip(compared, sizes, strict=True):
            _owe_more(ground, max(0, 2 * deliveries - size))
        figures |= time_runs(compared, receiver, refill=_owe_more, deliveries=deliveries, rounds=rounds)
    stage.record(
        "growth_pending", figures,
        {"pending": sizes, "configs": INDEBTED, "least pending of a run": 2 * deliveries,
         "deliveries of a run": deliveries, "rounds": rounds, "samples": samples} | built,
    )  # fmt: skip


def _owe_more(ground: Ground, count: int) -> None:
    debt.owe(ground.conn, count, configs=ground.locations)


def configs(*sizes: int, deliveries: int = 20_000, rounds: int = 3, samples: int = SAMPLES) -> None:
    """Measure with so many configs, of which 100 owe, or all where there are fewer."""
    sizes = sizes or (1, 100, 10_000, 100_000)
    with grounds() as made, stage.receiver() as receiver:
        compared = []
        for size in sizes:
            ground = made.add(f"{size:,}")
            ground.locations = min(size, INDEBTED)
            ground.room = max(10, 100 // ground.locations)
            debt.add_configs(ground.conn, receiver.url, size)
            _owe_more(ground, 2 * deliveries)
            compared.append(ground)
        figures = time_statements(compared, samples)
        figures |= time_runs(compared, receiver, refill=_owe_more, deliveries=deliveries, rounds=rounds)
    stage.record(
        "growth_configs", figures,
        {"configs": sizes, "configs that owe, at most": INDEBTED, "pending": 2 * deliveries,
         "deliveries of a run": deliveries, "rounds": rounds, "samples": samples},
    )  # fmt: skip


def matching(*sizes: int, deliveries: int = 20_000, rounds: int = 3) -> None:
    """Measure with so many configs that match each event: captured events are routed and delivered."""
    sizes = sizes or (1, 10, 100, 1_000)
    with grounds() as made, stage.receiver() as receiver:
        compared = []
        for size in sizes:
            ground = made.add(f"{size:,}")
            for _ in range(size):
                stage.add_config(ground.conn, receiver.url)
            ground.conn.execute("analyze outbox.postback_configs")
            compared.append(ground)

        def refill(ground: Ground, delivered: int) -> None:
            stage.add_contacts(ground.conn, delivered // int(ground.name.replace(",", "")))

        for ground in compared:
            refill(ground, deliveries)
        figures = time_runs(compared, receiver, refill=refill, deliveries=deliveries, rounds=rounds)
    stage.record(
        "growth_matching", figures,
        {"configs that match an event": sizes, "deliveries of a run": deliveries, "rounds": rounds},
    )  # fmt: skip


def history(*sizes: int, deliveries: int = 20_000, rounds: int = 3, samples: int = SAMPLES) -> None:
    """Measure with so many tries in the history, and as many events, over 20 days and today."""
    sizes = sizes or (0, 1_000_000)
    built = {}
    with grounds() as made, stage.receiver() as receiver:
        compared = []
        for size in sizes:
            ground = made.add(f"{size:,}")
            debt.add_configs(ground.conn, receiver.url, INDEBTED)
            begun = time.monotonic()
            remember(ground.conn, size)
            if size:
                built[f"{size:,}: built, tries/s"] = round(size / (time.monotonic() - begun))
            _owe_more(ground, 2 * deliveries)
            compared.append(ground)
        figures = time_statements(compared, samples)
        figures |= time_runs(compared, receiver, refill=_owe_more, deliveries=deliveries, rounds=rounds)
        for ground in compared:
            row = ground.conn.execute("select pg_database_size(current_database())").fetchone()
            figures[f"{ground.name}: the database, MB"] = row[0] / 1e6 if row else 0.0
    stage.record(
        "growth_history", figures,
        {"tries, and events": sizes, "days": DAYS, "pending": 2 * deliveries, "deliveries of a run": deliveries,
         "rounds": rounds, "samples": samples} | built,
    )  # fmt: skip


def remember(conn: psycopg.Connection, tries: int) -> None:
    """Fill the history, each day of it alike. What is captured from now on has higher ids."""
    if not tries:
        return
    of_a_day = -(-tries // (DAYS + 1))
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    conn.execute("set timezone = 'UTC'")
    conn.execute("set synchronous_commit = off")
    for number in range(DAYS + 1):
        day = today - timedelta(days=DAYS - number)
        passed = (datetime.now(UTC) - day).total_seconds() if day == today else 86_400.0
        values = {"begin": f"{day:%Y-%m-%d %H:%M}+00", "configs": INDEBTED, "first": number * of_a_day + 1}
        values |= {"last": (number + 1) * of_a_day, "step": passed * 0.99 / of_a_day}
        with conn.transaction():
            tables = {table: f"outbox.{table}_{day:%Y%m%d}" for table in ("events", "attempts")}
            for table, partition in tables.items():
                if day != today:
                    conn.execute(
                        f"create table {partition} (like outbox.{table} including all excluding indexes)".encode()
                    )
            conn.execute(_EVENTS.format(table=tables["events"], **values).encode())
            conn.execute(_TRIES.format(table=tables["attempts"], events=tables["events"]).encode())
            for table, partition in tables.items():
                if day != today:
                    conn.execute(
                        f"alter table outbox.{table} attach partition {partition} "
                        f"for values from ('{day:%Y-%m-%d}+00') to ('{day + timedelta(days=1):%Y-%m-%d}+00')".encode()
                    )
    conn.execute("select setval(pg_get_serial_sequence('outbox.outbox', 'seq'), %s)", [(DAYS + 2) * of_a_day])
    conn.execute("vacuum (analyze) outbox.events, outbox.attempts")


def daemons(*counts: int, deliveries: int = 40_000, rounds: int = 3) -> None:
    """Measure with so many daemons on one backlog, which is there for all of them at the same moment."""
    counts = counts or (1, 2, 4, 8)
    figures: dict[str, float] = {}
    rates: dict[int, list[float]] = {count: [] for count in counts}
    used: dict[int, float] = {}
    with (
        stage.database(max_connections="200") as dsn,
        stage.receiver() as receiver,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        debt.add_configs(conn, receiver.url, INDEBTED)
        for _ in range(rounds):
            for count in counts:
                rate, used[count] = _together(dsn, conn, receiver, count, deliveries)
                rates[count].append(rate)
        row = conn.execute("select count(*), count(distinct (event_id, config_id)) from outbox.attempts").fetchone()
        sent = receiver.ask("count")
        assert row == (sent, sent), (row, sent)  # noqa: S101 - nothing is sent twice
    for count in counts:
        ratios = [each / first for each, first in zip(rates[count], rates[counts[0]], strict=True)]
        figures[f"{count}: deliveries/s, all together (median)"] = statistics.median(rates[count])
        figures[f"{count}: rate, ratio to the first (median)"] = statistics.median(ratios)
        figures[f"{count}: statements per delivery"] = used[count] / deliveries
    figures["sent twice"] = 0
    stage.record(
        "growth_daemons", figures,
        {"daemons": counts, "deliveries of a run": deliveries, "configs": INDEBTED, "rounds": rounds},
    )  # fmt: skip


def _together(
    dsn: str, conn: psycopg.Connection, receiver: stage.ReceiverProcess, count: int, deliveries: int
) -> tuple[float, float]:
    """Return deliveries/s of so many daemons, and how many statements they used."""
    with ExitStack() as ends:
        started = [ends.enter_context(stage.daemon(dsn, **WORKED_OFF)) for _ in range(count)]
        for daemon in started:
            daemon.wait_until_started()
        receiver.ask("span")  # begins anew
        before = receiver.ask("count")
        statements = stage.statements(conn)
        debt.owe(conn, deliveries, configs=INDEBTED)
        conn.execute("select pg_notify('outbox', '')")  # all of them are awake at once
        while conn.execute("select exists (select from outbox.deliveries)").fetchone() == (True,):
            time.sleep(0.05)
        sent, seconds = receiver.ask("span")
        assert receiver.ask("count") == before + deliveries  # noqa: S101 - none is lost and none sent twice
    return sent / seconds, stage.statements(conn) - statements


def snapshot(deliveries: int = 200_000) -> None:
    """Measure the rate of each tenth of so many deliveries, with a snapshot held open and without.

    Once as a debt of 100 configs and of one, which is claimed; once as a flow, captured and routed meanwhile.
    """
    figures: dict[str, float] = {}
    for kind, owing in (("debt of 100", 100), ("debt of 1", 1), ("flow to 100", 0)):
        for held in (False, True):
            with stage.database(max_wal_size="16GB") as dsn, stage.receiver() as receiver:
                tenths = _tenths(dsn, receiver, deliveries, owing=owing, held=held)
            name = f"{kind}, {'snapshot held' if held else 'no snapshot'}"
            figures[f"{name}: deliveries/s, first tenth"] = tenths[0]
            figures[f"{name}: deliveries/s, last tenth"] = tenths[-1]
            figures[f"{name}: last tenth to first"] = tenths[-1] / tenths[0]
    stage.record("growth_snapshot", figures, {"deliveries": deliveries})


def _tenths(dsn: str, receiver: stage.ReceiverProcess, deliveries: int, *, owing: int, held: bool) -> list[float]:
    """Return the deliveries/s of each tenth: of what `owing` configs owe, or else of a flow."""
    with psycopg.connect(dsn, autocommit=True) as conn, psycopg.connect(dsn, autocommit=True) as holder:
        debt.add_configs(conn, receiver.url, owing or INDEBTED)
        captured = deliveries if owing else 0
        if owing:
            debt.owe(conn, deliveries, configs=owing)
        if held:
            holder.execute("begin isolation level repeatable read")
            holder.execute("select count(*) from outbox.postback_configs")
        passed: list[float] = []
        with stage.daemon(dsn, **WORKED_OFF):
            while len(passed) < 11:  # the first delivery, and the end of each tenth
                count = receiver.ask("count")
                now = time.monotonic()
                passed += [now] * ((count * 10 // deliveries + 1 if count else 0) - len(passed))
                if captured < deliveries and captured - count < 2 * FLOW_BATCH:
                    debt.capture(conn, FLOW_BATCH, configs=INDEBTED)
                    captured += FLOW_BATCH
                else:
                    time.sleep(0.01)
        return [deliveries / 10 / (end - start) for start, end in itertools.pairwise(passed)]


PARTS = {each.__name__: each for each in (pending, configs, matching, history, daemons, snapshot)}


def measure() -> None:
    """Measure and record each part in its short form."""
    pending(1_000, 100_000, deliveries=10_000, rounds=1, samples=50)
    configs(100, 10_000, deliveries=10_000, rounds=1, samples=50)
    matching(1, 1_000, deliveries=10_000, rounds=1)
    history(0, 200_000, deliveries=10_000, rounds=1, samples=50)
    daemons(1, 4, deliveries=20_000, rounds=1)
    snapshot(20_000)


if __name__ == "__main__":
    for name in sys.argv[1:2] or PARTS:
        PARTS[name](*(int(argument) for argument in sys.argv[2:]))
