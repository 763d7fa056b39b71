"""How fast a backlog is delivered through PgBouncer in transaction mode, against a direct connection.

`python -m benchmarks.pooler [deliveries] [rounds]`. The two take turns, because the machine's speed drifts; what
counts is the ratio of each pair. PgBouncer must be installed. `make bench` leaves it out.
"""

import statistics
import sys
import time

import psycopg

from benchmarks import stage
from tests.pgbouncer import pgbouncer

IN_FLIGHT = 100


def measure(deliveries: int = 20_000, rounds: int = 5) -> None:
    """Measure and record."""
    pairs: list[tuple[float, float]] = []
    with (
        stage.database() as dsn,
        pgbouncer(dsn, pool_size=20) as bouncer,
        stage.receiver() as receiver,
        psycopg.connect(dsn, autocommit=True) as conn,
    ):
        stage.add_config(conn, receiver.url)
        for number in range(rounds):
            # Neither is always the first.
            order = (dsn, bouncer.dsn) if number % 2 else (bouncer.dsn, dsn)
            rates = {each: _rate(conn, each, receiver, deliveries) for each in order}
            pairs.append((rates[dsn], rates[bouncer.dsn]))
    stage.record(
        "pooler",
        {
            "direct, deliveries/s (median)": statistics.median(direct for direct, _ in pairs),
            "through PgBouncer, deliveries/s (median)": statistics.median(pooled for _, pooled in pairs),
            "ratio (median of pairs)": statistics.median(pooled / direct for direct, pooled in pairs),
            "ratio (least)": min(pooled / direct for direct, pooled in pairs),
        },
        {"deliveries": deliveries, "rounds": rounds, "in flight": IN_FLIGHT},
    )


def _rate(conn: psycopg.Connection, dsn: str, receiver: stage.ReceiverProcess, deliveries: int) -> float:
    """Deliver a backlog over this DSN; return deliveries per second."""
    stage.add_contacts(conn, deliveries)
    receiver.ask("span")  # begins anew
    before = receiver.ask("count")
    with stage.daemon(dsn, OUTBOX_CONCURRENCY=str(4 * IN_FLIGHT), OUTBOX_MAX_IN_FLIGHT_PER_CONFIG=str(IN_FLIGHT)):
        while receiver.ask("count") < before + deliveries:
            time.sleep(0.05)
        count, seconds = receiver.ask("span")
        while conn.execute("select exists (select from outbox.deliveries)").fetchone() == (True,):
            time.sleep(0.2)
    return float(count / seconds)


if __name__ == "__main__":
    measure(*(int(argument) for argument in sys.argv[1:]))
