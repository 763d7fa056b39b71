"""A large record is compressed once, by the writer, in the quickest way that the server knows."""

import psycopg
import pytest

from outbox.core.model import Delivered
from tests.tried import add_config, attach_contacts, try_all

QUICKEST = """
select case when 'lz4' = any(enumvals) then 'lz4' else 'pglz' end
from pg_settings where name = 'default_toast_compression'
"""


@pytest.mark.parametrize("days_ago", [0, 365])
async def test_a_large_record_is_compressed_with_lz4_where_there_is_one(every_db: str, days_ago: int) -> None:
    """As it is captured, in its day's partition, and in that of days without one."""
    async with await psycopg.AsyncConnection.connect(every_db, autocommit=True) as aconn:
        with psycopg.connect(every_db, autocommit=True) as conn:
            attach_contacts(conn)
            add_config(conn)
            conn.execute("insert into contacts values (1, 'L', repeat('a longer name, ', 1000))")
            conn.execute("update outbox.outbox set created_at = now() - make_interval(days => %s)", [days_ago])
            quickest = conn.execute(QUICKEST).fetchone()
            assert conn.execute("select pg_column_compression(data) from outbox.outbox").fetchone() == quickest
            [delivery] = await try_all(aconn, Delivered(), b"a longer answer " * 500)
            assert len(delivery.data or "") > 10_000
            assert conn.execute("select pg_column_compression(data) from outbox.events").fetchone() == quickest
            assert conn.execute("select pg_column_compression(answer) from outbox.attempts").fetchone() == quickest
