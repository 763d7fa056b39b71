"""What the application's writer pays: without capture, with it, with a daemon at work, and with a NOTIFY per commit.

`python -m benchmarks.writer [seconds] [rounds] [rows]`. pgbench inserts one contact per transaction with 1, 8 and 32
clients, `seconds` for each; then `rows` come in one statement. All take turns, because the machine's speed drifts;
what counts is the ratio within a round. The daemon delivers to a receiver that answers at once, on the same cores.
"""

import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import psycopg

from benchmarks import stage
from outbox.demo.embedded import embedded_binaries

CLIENTS = (1, 8, 32)
WAL_EVENTS = 20_000

_INSERT = """
insert into public.{table} (location_id, last_name, first_name, email, address, city)
values ('{location}', 'Jones', 'Zoë', 'zoe@example.com', '1 Main St & Co', 'Örebro');
"""
_BULK = """
insert into public.{table} (location_id, last_name, first_name, email, address, city)
select '{location}', 'Jones ' || i, 'Zoë', 'zoe' || i || '@example.com', '1 Main St & Co', 'Örebro'
from generate_series(1, {rows}) i
"""
# The outbox of many an application that has none: the id goes with the notification, and nothing is kept.
_OTHERS = """
create table public.bare (like public.contacts including all);
create table public.notifying (like public.contacts including all);
create function public.notify_of_row() returns trigger language plpgsql as $$
begin
    perform pg_notify('rows', new.id);
    return null;
end
$$;
create trigger notify_of_row after insert on public.notifying for each row execute function public.notify_of_row();
"""

_OWED = "select exists (select from outbox.outbox) or exists (select from outbox.deliveries)"


@contextmanager
def _listener(dsn: str) -> Iterator[None]:
    """Listen to the notifications, and do nothing else."""
    stop = threading.Event()

    def listen() -> None:
        with psycopg.connect(dsn, autocommit=True) as conn:
            conn.execute("listen rows")
            while not stop.is_set():
                for _ in conn.notifies(timeout=0.1):
                    pass

    thread = threading.Thread(target=listen)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def _nobody(_dsn: str) -> Iterator[None]:
    yield


@contextmanager
def _daemon(dsn: str) -> Iterator[None]:
    with stage.daemon(dsn, OUTBOX_DRAIN_TIMEOUT="5", OUTBOX_MAX_IN_FLIGHT_PER_CONFIG="100") as daemon:
        daemon.wait_until_started()
        yield


VARIANTS = {
    "no capture": ("bare", _nobody),
    "capture": ("contacts", _nobody),
    "capture, daemon at work": ("contacts", _daemon),
    "NOTIFY per commit": ("notifying", _listener),
}
"""Its table, and who is at work meanwhile."""
BARE, CAPTURED, WORKED_OFF, NOTIFYING = VARIANTS


def _pgbench(dsn: str, table: str, *arguments: str) -> float:
    """Return the transactions per second."""
    with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
        script.write(_INSERT.format(table=table, location=stage.LOCATION))
        script.flush()
        program = embedded_binaries()[0].bin_dir / "pgbench"
        command = [program, "--no-vacuum", "--protocol=prepared", f"--file={script.name}", *arguments, dsn]
        told = subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 - our own words
    found = re.search(r"tps = ([\d.]+)", told)
    assert found, told  # noqa: S101 - for the type checker
    return float(found[1])


def _empty(conn: psycopg.Connection) -> None:
    conn.execute("truncate public.contacts, public.bare, public.notifying, outbox.outbox, outbox.deliveries")
    conn.execute("checkpoint")


def _rate(dsn: str, conn: psycopg.Connection, variant: str, clients: int, seconds: int) -> float:
    """Let so many clients insert for so long; return transactions per second."""
    table, at_work = VARIANTS[variant]
    _empty(conn)
    with at_work(dsn):
        return _pgbench(dsn, table, f"--client={clients}", f"--jobs={min(clients, 2)}", f"--time={seconds}")


def _bulk(conn: psycopg.Connection, variant: str, rows: int) -> float:
    """Insert so many rows in one statement; return seconds."""
    _empty(conn)
    begun = time.perf_counter()
    conn.execute(_BULK.format(table=VARIANTS[variant][0], location=stage.LOCATION, rows=rows).encode())
    return time.perf_counter() - begun


def _wal(dsn: str, conn: psycopg.Connection, variant: str) -> float:
    """Return the bytes of the log that an insert costs; where a daemon is at work, until its event is delivered."""
    table, at_work = VARIANTS[variant]
    _empty(conn)
    with at_work(dsn):
        begun = _position(conn)
        _pgbench(dsn, table, "--client=8", "--jobs=2", f"--transactions={WAL_EVENTS // 8}")
        if at_work is _daemon:
            while conn.execute(_OWED).fetchone() == (True,):
                time.sleep(0.1)
        return (_position(conn) - begun) / WAL_EVENTS


def _position(conn: psycopg.Connection) -> int:
    row = conn.execute("select (pg_current_wal_insert_lsn() - '0/0'::pg_lsn)::bigint").fetchone()
    return int(row[0]) if row else 0


def measure(seconds: int = 5, rounds: int = 5, rows: int = 100_000) -> None:
    """Measure and record."""
    rates: dict[tuple[str, int], list[float]] = {(variant, n): [] for n in CLIENTS for variant in VARIANTS}
    bulk: dict[str, list[float]] = {BARE: [], CAPTURED: []}
    with (
        stage.database(max_wal_size="4GB") as dsn,
        stage.receiver() as receiver,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        conn.execute(_OTHERS)
        stage.add_config(conn, receiver.url)
        # That of the daemon comes last: the vacuum after it writes too.
        wal = {variant: _wal(dsn, conn, variant) for variant in (BARE, NOTIFYING, CAPTURED, WORKED_OFF)}
        for number in range(rounds):
            # Neither is always the first.
            order = list(VARIANTS)[number % 4 :] + list(VARIANTS)[: number % 4]
            for clients in CLIENTS:
                for variant in order:
                    rates[variant, clients].append(_rate(dsn, conn, variant, clients, seconds))
            for variant in sorted(bulk, reverse=bool(number % 2)):
                bulk[variant].append(_bulk(conn, variant, rows))
        assert receiver.ask("count")  # noqa: S101 - or no daemon was at work
    figures: dict[str, float] = {}
    for clients in CLIENTS:
        of = {variant: rates[variant, clients] for variant in VARIANTS}
        for variant in VARIANTS:
            figures[f"{clients} clients: {variant}, commits/s (median)"] = statistics.median(of[variant])
        for variant, other in ((CAPTURED, BARE), (WORKED_OFF, BARE), (CAPTURED, NOTIFYING), (WORKED_OFF, NOTIFYING)):
            figures[f"{clients} clients: {variant} / {other} (median)"] = _ratio(of[variant], of[other])
    figures["bulk: no capture, s (median)"] = statistics.median(bulk[BARE])
    figures["bulk: capture, s (median)"] = statistics.median(bulk[CAPTURED])
    figures["bulk: capture / no capture (median)"] = _ratio(bulk[CAPTURED], bulk[BARE])
    for variant, size in wal.items():
        figures[f"WAL bytes per insert: {variant}"] = round(size)
    figures["WAL bytes per event, captured and delivered"] = round(wal[WORKED_OFF] - wal[BARE])
    settings = {
        "seconds": seconds,
        "rounds": rounds,
        "clients": CLIENTS,
        "bulk rows": rows,
        "WAL of events": WAL_EVENTS,
    }
    stage.record("writer", figures, settings)


def _ratio(ours: Sequence[float], theirs: Sequence[float]) -> float:
    """Return the median of the rounds' ratios."""
    return statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
