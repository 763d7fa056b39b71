"""Hundreds of endpoints hang at once: those that are known to answer get what they are owed all the same."""

import psycopg
import pytest

from outbox.core import buffer as buffer_module
from tests.daemons import add_config, attach_contacts, eventually, owed, running
from tests.receiver import Hang, Receiver

CONCURRENCY = 8
HANGING = 300
EACH = 30
"""All together more than may be in hand."""


@pytest.mark.parametrize("claimed", [True, False], ids=["claimed", "routed"])
async def test_however_many_hang_who_answers_is_delivered_to(
    conn: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, *, claimed: bool
) -> None:
    """None of the POSTs that hang ends here. Also what they are owed does not fill what may be in hand."""
    monkeypatch.setattr(buffer_module, "KNOWN_SECONDS", 3600.0)
    # However long this takes: once those that hang are known to be slow, who is unknown may start one in any case.
    monkeypatch.setattr(buffer_module, "QUICK_SECONDS", 3600.0)
    attach_contacts(conn)
    with Receiver() as receiver, Receiver(default=Hang()) as hanging:
        add_config(conn, receiver.url)
        for number in range(HANGING):
            add_config(conn, hanging.url, location_id=f"M{number}", paused_at="now" if claimed else None)
        async with running(db, concurrency=CONCURRENCY, request_timeout=600.0, drain_timeout=0.1):
            conn.execute("insert into contacts values (1, 'L')")
            await receiver.wait_for_async(1)
            conn.execute(
                "insert into contacts select 1000 + n, 'M' || n %% %s from generate_series(1, %s) n",
                [HANGING, HANGING * EACH],
            )
            if claimed:
                await eventually(lambda: len(owed(conn)) == HANGING * EACH)
                conn.execute("update outbox.postback_configs set paused_at = null, revision = revision + 1")
            await hanging.wait_for_async(CONCURRENCY * 3 // 4)
            for number in range(2, 12):
                conn.execute("insert into contacts values (%s, 'L')", [number])
                await receiver.wait_for_async(number)
            assert len(hanging.requests) == CONCURRENCY * 3 // 4


async def test_after_a_restart_too_who_answers_finds_slots(conn: psycopg.Connection, db: str) -> None:
    """Nothing is known of anybody then, but who failed last is in the database."""
    attach_contacts(conn)
    with Receiver() as receiver, Receiver(default=Hang()) as hanging:
        add_config(conn, receiver.url)
        for number in range(HANGING):
            config = add_config(conn, hanging.url, location_id=f"M{number}")
            conn.execute(
                "insert into outbox.config_state (config_id, failures, troubles, failing_since) "
                "values (%s, 1, 1, now())",
                [config],
            )
        conn.execute(
            "insert into contacts select 1000 + n, 'M' || n %% %s from generate_series(1, %s) n",
            [HANGING, HANGING * EACH],
        )
        async with running(db, concurrency=CONCURRENCY, request_timeout=600.0, drain_timeout=0.1):
            await hanging.wait_for_async(CONCURRENCY // 2)
            for number in range(1, 11):
                conn.execute("insert into contacts values (%s, 'L')", [number])
                await receiver.wait_for_async(number)
