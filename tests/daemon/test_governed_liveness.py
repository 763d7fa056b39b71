"""A record that is blocked costs its config's other records nothing."""

import psycopg

from outbox.postgres.governed import LOOKED_AT
from tests.daemons import add_config, attach_contacts, make_due, until_empty
from tests.receiver import Receiver, Status


async def test_a_long_line_behind_a_dead_change_holds_no_other_record(conn: psycopg.Connection, db: str) -> None:
    """One claim looks at so many; what is due behind them is looked at by the next, before the daemon rests or ends."""
    attach_contacts(conn)
    with Receiver(default=Status(204)) as receiver:
        receiver.answer("/in", Status(422), Status(204))
        config = add_config(conn, receiver.url_for("/in"), strict_order="hold")
        conn.execute("insert into contacts (id, name) values (1, 'a')")
        assert await until_empty(db) == 1
        conn.execute(
            "insert into outbox.outbox (type, resource, resource_id, location_id, data) "
            """select 'UPDATE', 'contact', '1', 'L', '{"id":1}' from generate_series(1, %s)""",
            [5 * LOOKED_AT],
        )
        await until_empty(db)
        make_due(conn)
        conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [config])
        conn.execute("insert into contacts (id, name) values (2, 'b')")
        await until_empty(db)
        conn.execute("update outbox.postback_configs set paused_at = null where id = %s", [config])
        await until_empty(db)
        assert [each.data["id"] for each in receiver.requests] == [1, 2]
