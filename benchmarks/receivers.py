"""Receivers that are far away, want large records, or speak TLS.

`python -m benchmarks.receivers [deliveries] [rounds] [large records]`. Those that answer in 50 and 500 ms get as many
POSTs at a time as the settings allow, 2,000 and 500; no faster than that divided by their latency can they be served.
TLS takes turns with plain HTTP, because the machine's speed drifts. Its handshakes are the connections that were made.
"""

import resource
import statistics
import sys
import tempfile
import time
from pathlib import Path

import psycopg

from benchmarks import debt, stage
from tests.certificates import Authority

CONFIGS = 100
LATENCIES = (0.05, 0.5)
IN_FLIGHT = (2_000, 500)
LARGE = 1_000_000
"""Bytes of a large record, about."""
DESCRIPTORS = 8_000

# What no compression of the database makes small.
_LARGE_CONTACTS = """
insert into public.contacts (location_id, last_name, address)
select 'location-' || i %% %(configs)s, 'Jones ' || i, large.text
from generate_series(1, %(count)s) i,
    (select string_agg(md5(random()::text), '') as text from generate_series(1, %(bytes)s / 32)) as large
"""


def _deliver(dsn: str, receiver: stage.ReceiverProcess, count: int, **settings: str) -> tuple[float, float]:
    """Let a daemon deliver what is owed; return deliveries/s and its peak of memory in MB."""
    receiver.ask("span")  # begins anew
    before = receiver.ask("count")
    with stage.daemon(dsn, OUTBOX_DRAIN_TIMEOUT="5", **settings) as daemon, psycopg.connect(dsn) as conn:
        conn.autocommit = True
        while receiver.ask("count") < before + count:
            time.sleep(0.05)
        while conn.execute("select exists (select from outbox.deliveries)").fetchone() == (True,):
            time.sleep(0.1)
        came, seconds = receiver.ask("span")
        return came / seconds, daemon.memory()


def distant(deliveries: int, rounds: int) -> dict[str, float]:
    """Measure the rate against what so many in flight can get from so far."""
    figures = {}
    for latency in LATENCIES:
        with (
            stage.database() as dsn,
            stage.receiver(delay=latency) as receiver,
            psycopg.connect(dsn, autocommit=True) as conn,
        ):
            debt.add_configs(conn, receiver.url, CONFIGS)
            for in_flight in IN_FLIGHT:
                rates = []
                peak = 0.0
                for _ in range(rounds):
                    debt.owe(conn, deliveries, configs=CONFIGS)
                    settings = {"OUTBOX_CONCURRENCY": str(in_flight)}
                    settings["OUTBOX_MAX_IN_FLIGHT_PER_CONFIG"] = str(in_flight // CONFIGS * 2)
                    rate, used = _deliver(dsn, receiver, deliveries, **settings)
                    rates.append(rate)
                    peak = max(peak, used)
                name = f"{latency * 1000:.0f} ms, {in_flight:,} in flight"
                figures[f"{name}: deliveries/s (median)"] = statistics.median(rates)
                figures[f"{name}: of what they allow"] = statistics.median(rates) / (in_flight / latency)
                figures[f"{name}: daemon's memory, peak MB"] = peak
    return figures


def large(records: int, rounds: int) -> dict[str, float]:
    """Measure records of 1 MB, from the capture on."""
    rates = []
    peak = 0.0
    with stage.database() as dsn, stage.receiver() as receiver, psycopg.connect(dsn, autocommit=True) as conn:
        debt.add_configs(conn, receiver.url, CONFIGS)
        for _ in range(rounds):
            conn.execute(_LARGE_CONTACTS.encode(), {"configs": CONFIGS, "count": records, "bytes": LARGE})
            rate, used = _deliver(dsn, receiver, records)
            rates.append(rate * LARGE / 1e6)
            peak = max(peak, used)
    return {"1 MB records: MB/s (median)": statistics.median(rates), "1 MB records: daemon's memory, peak MB": peak}


def encrypted(deliveries: int, rounds: int) -> dict[str, float]:
    """Measure TLS against plain HTTP."""
    rates: dict[str, list[float]] = {"plain": [], "TLS": []}
    peak = 0.0
    with tempfile.TemporaryDirectory() as folder, stage.database() as dsn:
        authority = Authority(Path(folder))
        with (
            stage.receiver() as plain,
            stage.receiver(tls=authority.issue()) as tls,
            psycopg.connect(dsn, autocommit=True) as conn,
        ):
            debt.add_configs(conn, plain.url, CONFIGS)
            for _ in range(rounds):
                for name, receiver in (("plain", plain), ("TLS", tls)):
                    conn.execute("update outbox.postback_configs set url = %s", [receiver.url])
                    debt.owe(conn, deliveries, configs=CONFIGS)
                    rate, used = _deliver(dsn, receiver, deliveries, OUTBOX_CA_FILE=str(authority.ca_file))
                    rates[name].append(rate)
                    peak = max(peak, used)
            handshakes = tls.ask("connections") / tls.ask("count")
    return {
        "plain HTTP: deliveries/s (median)": statistics.median(rates["plain"]),
        "TLS: deliveries/s (median)": statistics.median(rates["TLS"]),
        "TLS: ratio to plain (median)": statistics.median(
            ours / other for ours, other in zip(rates["TLS"], rates["plain"], strict=True)
        ),
        "TLS: handshakes per delivery": handshakes,
        "TLS: share of kept-alive connections": 1 - handshakes,
        "TLS: daemon's memory, peak MB": peak,
    }


def measure(deliveries: int = 20_000, rounds: int = 3, records: int = 300) -> None:
    """Measure and record."""
    # For each POST in flight a socket of the daemon's and one of the receiver's, which inherit this limit.
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, DESCRIPTORS)), hard))
    # Each run of a daemon shakes hands once for each POST in flight: so many deliveries that they are few among them.
    figures = distant(deliveries, rounds) | large(records, rounds) | encrypted(2 * deliveries, rounds)
    settings = {
        "deliveries of a run": deliveries,
        "rounds": rounds,
        "configs": CONFIGS,
        "large records of a run": records,
    }
    stage.record("receivers", figures, settings)


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
