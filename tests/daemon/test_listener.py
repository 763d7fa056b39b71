"""The link on which the doorbell is heard: a hint, but one that is missed for long is told of."""

import asyncio

import psycopg
import pytest
from psycopg.conninfo import make_conninfo
from structlog.testing import capture_logs

from outbox.daemon import listener
from outbox.postgres.pool import Link
from tests.daemons import eventually


async def test_a_link_that_can_not_be_had_for_long_is_told_of_once(
    conn: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is lost but the hint: each change would wait for a poll, and nobody know why."""
    monkeypatch.setattr(listener, "TOLD_AFTER_SECONDS", 0.2)
    heard = asyncio.Event()
    allow = f'alter database "{conn.info.dbname}" allow_connections '
    elsewhere = psycopg.connect(make_conninfo(db, dbname="postgres"), autocommit=True)
    with elsewhere, capture_logs() as logs:
        elsewhere.execute((allow + "false").encode())
        listening = asyncio.create_task(listener.listen(Link(db, "listen"), heard.set))
        try:
            await eventually(lambda: [each["event"] for each in logs] == ["listen.lost"])
            assert conn.info.dbname in logs[0]["error"]
            assert not heard.is_set()
        finally:
            elsewhere.execute((allow + "true").encode())
        await heard.wait()
        assert [each["event"] for each in logs] == ["listen.lost", "listen.returned"]
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
