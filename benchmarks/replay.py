"""How many dead deliveries a second `outbox replay` makes pending: 1,000,000 of four configs.

`python -m benchmarks.replay [deliveries] [rounds]`. The command runs as a process; its start and end are counted too.
No daemon runs meanwhile: what it would send has its own benchmark. Between the rounds all of them die again.
"""

import os
import statistics
import subprocess
import sys
import time

import psycopg

from benchmarks import stage
from outbox.postgres.replay import BATCH

CONFIGS = 4

# Twenty die in the same moment, as in the settles of a busy daemon, each second try of an event later than the first.
_EVENTS = """
insert into outbox.events (id, created_at, type, resource, resource_id, location_id, data)
select (lpad(to_hex(i / 4096), 12, '0') || '8' || lpad(to_hex(i %% 4096), 3, '0')
    || substr(gen_random_uuid()::text, 20))::uuid, now() - interval '1 s', 'CREATE', 'contact', i::text, %(location)s,
    json_build_object('id', i, 'last_name', 'Jones', 'first_name', 'Zoë', 'address', repeat('1 Main St ', 40))
from generate_series(1, %(events)s) i
"""
_DELIVERIES = """
insert into outbox.deliveries (event_id, config_id, event_created_at, state, attempts, died_at, last_error)
select e.id, c.id, e.created_at, 'dead', 1,
    now() - interval '30 min' + (e.resource_id::integer / 20) * interval '10 ms', 'status 500'
from outbox.events as e cross join outbox.postback_configs as c
"""
_DIE = """
update outbox.deliveries as d set state = 'dead', attempts = attempts + 1,
    died_at = now() - interval '30 min' + (e.resource_id::integer / 20) * interval '10 ms'
from outbox.events as e where e.id = d.event_id and d.state = 'pending'
"""


def measure(deliveries: int = 1_000_000, rounds: int = 3) -> None:
    """Measure and record."""
    seconds, peaks = [], []
    with stage.database() as dsn, psycopg.connect(dsn, autocommit=True) as conn:
        for number in range(CONFIGS):
            stage.add_config(conn, f"http://127.0.0.1:9/{number}")
        conn.execute(_EVENTS.encode(), {"location": stage.LOCATION, "events": deliveries // CONFIGS})
        conn.execute(_DELIVERIES.encode())
        for each in range(rounds):
            if each:
                conn.execute(_DIE.encode())
            conn.execute("vacuum (analyze) outbox.deliveries, outbox.events")
            conn.execute("checkpoint")
            took, peak = _replay(dsn)
            seconds.append(took)
            peaks.append(peak)
            row = conn.execute("select count(*) from outbox.deliveries where state = 'pending'").fetchone()
            assert row == (deliveries,), row  # noqa: S101 - or it measured something else
    rates = [deliveries / each for each in seconds]
    figures = {
        "deliveries/s (median)": statistics.median(rates),
        "deliveries/s (least)": min(rates),
        "seconds, all (median)": statistics.median(seconds),
        "the command's resident memory, peak MB": max(peaks),
    }
    stage.record(
        "replay", figures, {"deliveries": deliveries, "configs": CONFIGS, "rounds": rounds, "in a batch": BATCH}
    )


def _replay(dsn: str) -> tuple[float, float]:
    """Return seconds, and MB of resident memory at its peak."""
    command = [sys.executable, "-m", "outbox", "replay", "--state", "dead", "--json"]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env=os.environ | {"OUTBOX_DSN": dsn}, stdout=subprocess.DEVNULL)  # noqa: S603 - ourselves
    peak = 0.0
    # Not the kernel's account of the ended process: it begins with what this one has, which it was forked from.
    while os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
        peak = max(peak, stage.memory(process.pid))
        time.sleep(0.05)
    took = time.perf_counter() - begun
    assert process.wait() == 0, process.returncode  # noqa: S101 - or it measured something else
    return took, peak


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
