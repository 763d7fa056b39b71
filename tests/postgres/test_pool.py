"""A link keeps its session, or leaves nothing in one that is lent by transaction."""

import psycopg
import pytest

from outbox.postgres.pool import Link, application_name
from outbox.settings import Pooling

_SETTINGS = "select current_setting('plan_cache_mode'), current_setting('enable_seqscan'), %s::int"
_PREPARED = "select count(*) from pg_prepared_statements where statement like '%plan_cache_mode%'"


@pytest.mark.parametrize("pooling", [Pooling.AUTO, Pooling.SESSION])
async def test_a_direct_connection_prepares_and_keeps_its_settings(db: str, pooling: Pooling) -> None:
    """It is no pooler's: statements are prepared, and the settings are made once."""
    link = Link(db, "test", pooling=pooling)
    try:
        conn = await link.connection()
        assert not link.is_pooled
        for _ in range(10):
            row = await (await conn.execute(_SETTINGS.encode(), [1])).fetchone()
            assert row == ("force_generic_plan", "off", 1)
        assert await (await conn.execute(_PREPARED.encode())).fetchone() == (1,)
        assert conn.cursor_factory is psycopg.AsyncCursor
    finally:
        await link.drop()


async def test_nothing_is_left_in_a_session_that_is_lent(db: str) -> None:
    """Each statement has its settings, in and outside of a transaction; a raw look at the session finds none."""
    link = Link(db, "test", pooling=Pooling.TRANSACTION)
    try:
        conn = await link.connection()
        assert link.is_pooled
        for _ in range(10):
            row = await (await conn.execute(_SETTINGS.encode(), [1])).fetchone()
            assert row == ("force_generic_plan", "off", 1)
        async with conn.transaction():
            row = await (await conn.execute(_SETTINGS.encode(), [2])).fetchone()
            assert row == ("force_generic_plan", "off", 2)
        with pytest.raises(psycopg.errors.DivisionByZero):
            await conn.execute("select 1 / %s", [0])
        assert conn.info.transaction_status == psycopg.pq.TransactionStatus.IDLE
        cursor = psycopg.AsyncCursor(conn)
        await cursor.execute("select current_setting('plan_cache_mode'), (select count(*) from pg_prepared_statements)")
        assert await cursor.fetchone() == ("auto", 0)
    finally:
        await link.drop()


def test_the_name_of_the_daemons_connections_is_the_dsns_if_it_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment may say it too, as it may to libpq."""
    monkeypatch.delenv("PGAPPNAME", raising=False)
    assert application_name("postgresql://a/b") is None
    assert application_name("postgresql://a/b?application_name=shop") == "shop"
    monkeypatch.setenv("PGAPPNAME", "other")
    assert application_name("postgresql://a/b") == "other"
