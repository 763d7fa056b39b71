"""How many SQL statements a delivery costs, on a real run: many share one, whatever the machine."""

import psycopg

from tests.daemons import add_config, add_contacts, attach_contacts, owed, until_empty
from tests.receiver import Receiver

DELIVERIES = 3_000
AT_MOST = 0.2
"""Statements per delivery. Measured: 0.05; a machine that is busy with other things gathers less for each."""

# Each of the daemon's statements is a transaction. What a session counted is certain to be in when it has ended.
_COUNT = "select pg_stat_get_db_xact_commit(oid) from pg_database where datname = current_database()"


def counted(conn: psycopg.Connection) -> int:
    conn.execute("select pg_stat_clear_snapshot()")
    row = conn.execute(_COUNT).fetchone()
    assert row is not None
    return int(row[0])


async def test_many_deliveries_share_a_statement(conn: psycopg.Connection, db: str) -> None:
    """Routing, claiming and settling together take a statement for five deliveries at the most."""
    attach_contacts(conn)
    with Receiver() as receiver:
        for number in range(10):
            add_config(conn, receiver.url_for(f"/{number}"))
        add_contacts(conn, 1, DELIVERIES // 10)
        before = counted(conn)
        await until_empty(db)
        assert owed(conn) == []
        assert len(receiver.requests) == DELIVERIES
        assert counted(conn) - before <= AT_MOST * DELIVERIES
