"""The doorbell is a hint, and no ring of it is lost by the daemon itself: what is lost costs a whole poll interval."""

import asyncio
from typing import Any

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from outbox.core import low_water
from outbox.daemon import fetcher as fetcher_module
from outbox.daemon import rest as rest_module
from outbox.daemon import router as router_module
from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.doorbell import LATE_LOOKS
from outbox.daemon.fetcher import Fetcher
from outbox.postgres import configs, routing
from outbox.secrets import SecretBox
from outbox.settings import Pooling
from tests.daemons import (
    add_config,
    add_contacts,
    dispatching,
    doorbell_is_up,
    eventually,
    owed,
    running,
)
from tests.receiver import Receiver, Status

A_LONG_TIME = 3600.0


@pytest.fixture
def routes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each route took so far."""
    rows: list[int] = []
    route = routing.route

    async def counted(*arguments: Any, **named: Any) -> routing.Routed:  # noqa: ANN401 - whatever it takes
        routed = await route(*arguments, **named)
        rows.append(routed.rows)
        return routed

    monkeypatch.setattr(routing, "route", counted)
    return rows


async def knowing_all(dispatcher: Dispatcher, contacts: psycopg.Connection) -> tuple[Fetcher, psycopg.AsyncConnection]:
    """Let the dispatcher know all numbers so far, and the bell be down; return its fetcher, with the connection."""
    fetcher = dispatcher._fetcher  # noqa: SLF001 - no other way into the middle of a look
    conn = await fetcher._link.connection()  # noqa: SLF001
    await fetcher._turn(conn)  # noqa: SLF001
    await fetcher._router.raise_doorbell(conn)  # noqa: SLF001
    fetcher._doorbell._late_looks.clear()  # noqa: SLF001
    contacts.execute("select setval('outbox.doorbell', 1)")
    dispatcher.ring()
    return fetcher, conn


async def test_a_ring_that_comes_before_the_answer_to_the_raising_is_not_forgotten(
    conn: psycopg.Connection, db: str
) -> None:
    """The listening connection may be heard first. The bell is down then, and the next look raises it again."""
    async with dispatching(db) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001 - no other way into the middle of a look
        link = await fetcher._link.connection()  # noqa: SLF001
        raising = asyncio.create_task(fetcher._look_once_more(link))  # noqa: SLF001
        await asyncio.sleep(0)  # it waits for the answer now
        dispatcher.ring()
        await raising
        conn.execute("select setval('outbox.doorbell', 1)")  # as the one did who rang
        await fetcher._look_once_more(link)  # noqa: SLF001
        assert doorbell_is_up(conn)


async def test_the_raising_is_not_waited_for_but_what_comes_after_it_is(conn: psycopg.Connection, db: str) -> None:
    """The doorbell may be lost in a crash of the database. A route that is lost would be sent again, as another one."""
    async with dispatching(make_conninfo(db, options="-c synchronous_commit=on")) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001
        link = await fetcher._link.connection()  # noqa: SLF001
        assert await routing.raise_doorbell(link) is not None
        assert doorbell_is_up(conn)
        assert await (await link.execute("show synchronous_commit")).fetchone() == ("on",)


async def test_nothing_is_looked_for_after_the_raising_where_no_number_is_missing(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, routes: list[int]
) -> None:
    """A capture takes its number before it looks at the doorbell: who comes after the last one rings."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", A_LONG_TIME)
    monkeypatch.setattr(router_module, "QUIET_SECONDS", A_LONG_TIME)
    async with dispatching(db, poll_interval=A_LONG_TIME) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        add_contacts(contacts, 1, 3)
        await fetcher._turn(conn)  # noqa: SLF001
        await fetcher._look_once_more(conn)  # noqa: SLF001 - raises the bell
        await fetcher._turn(conn)  # noqa: SLF001
        assert routes == [0, 3]
        assert not fetcher._doorbell._late_looks  # noqa: SLF001
        assert fetcher._until_next_look() > max(LATE_LOOKS)  # noqa: SLF001 - below the mark, once
        add_contacts(contacts, 4, 1)
        dispatcher.ring()
        await fetcher._turn(conn)  # noqa: SLF001
        assert routes == [0, 3, 1]


async def test_who_captured_before_the_raising_and_is_routed_after_it_is_looked_for_at_once(
    contacts: psycopg.Connection, db: str, routes: list[int]
) -> None:
    """It rang for nobody."""
    async with dispatching(db) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        add_contacts(contacts, 1, 1)
        await fetcher._look_once_more(conn)  # noqa: SLF001
        assert routes == [0, 1]


@pytest.mark.parametrize("has_a_later_one", [False, True])
@pytest.mark.parametrize("commits", [True, False])
async def test_who_captured_before_the_raising_and_commits_after_the_look_is_found_soon(
    contacts: psycopg.Connection,
    db: str,
    monkeypatch: pytest.MonkeyPatch,
    routes: list[int],
    *,
    has_a_later_one: bool,
    commits: bool,
) -> None:
    """It rings for nobody, and shows only as a number that is missing. One that was rolled back is forgotten."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", A_LONG_TIME)
    monkeypatch.setattr(router_module, "QUIET_SECONDS", A_LONG_TIME)
    async with dispatching(db, poll_interval=A_LONG_TIME) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        with psycopg.connect(db) as late:
            add_contacts(late, 1, 1)
            add_contacts(contacts, 2, int(has_a_later_one))
            await fetcher._turn(conn)  # noqa: SLF001
            await fetcher._look_once_more(conn)  # noqa: SLF001 - raises the bell
            assert sum(routes) == has_a_later_one
            if not commits:
                late.rollback()
        assert fetcher._until_next_look() <= LATE_LOOKS[0]  # noqa: SLF001
        while (seconds := fetcher._until_next_look()) <= max(LATE_LOOKS):  # noqa: SLF001
            await asyncio.sleep(seconds)
            await fetcher._turn(conn)  # noqa: SLF001
            await fetcher._look_once_more(conn)  # noqa: SLF001
        assert sum(routes) == has_a_later_one + commits


async def test_a_late_one_does_not_hide_that_another_is_missing(
    contacts: psycopg.Connection, db: str, routes: list[int]
) -> None:
    """Two were routed, and the number rose by two; but one of them is an old number."""
    async with dispatching(db) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        with psycopg.connect(db) as old, psycopg.connect(db) as new:
            add_contacts(old, 1, 1)
            await fetcher._look_once_more(conn)  # noqa: SLF001 - it is missing, and looked for
            fetcher._doorbell._late_looks.clear()  # noqa: SLF001 - in vain
            dispatcher.ring()
            contacts.execute("select setval('outbox.doorbell', 1)")
            add_contacts(new, 2, 1)
            add_contacts(contacts, 3, 1)
            old.commit()
            await fetcher._turn(conn)  # noqa: SLF001
            assert sum(routes) == 2
            new.commit()
        await fetcher._look_once_more(conn)  # noqa: SLF001
    assert sum(routes) == 3


async def test_numbers_that_begin_anew_are_missing(contacts: psycopg.Connection, db: str, routes: list[int]) -> None:
    """As after a restore under a daemon that lives on: the last one is lower than what it has seen."""
    async with dispatching(db) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        fetcher._doorbell._seen += 1000  # noqa: SLF001
        add_contacts(contacts, 1, 1)
        await fetcher._look_once_more(conn)  # noqa: SLF001
    assert sum(routes) == 1


async def test_who_does_not_know_who_raised_the_doorbell_looks(
    contacts: psycopg.Connection, db: str, routes: list[int]
) -> None:
    """The connection was lost before the answer: it was up already then, by the daemon's own doing."""
    async with dispatching(db) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        add_contacts(contacts, 1, 1)
        contacts.execute("select setval('outbox.doorbell', 2)")
        fetcher._doorbell.forget()  # noqa: SLF001
        await fetcher._look_once_more(conn)  # noqa: SLF001
    assert sum(routes) == 1


async def test_who_commits_after_a_long_time_is_not_hidden_by_a_mark(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, routes: list[int]
) -> None:
    """Where who was passed by is not under way any more, one looks there, too."""
    monkeypatch.setattr(low_water, "TRAIL_SECONDS", 0.0)
    monkeypatch.setattr(low_water, "MISSING_SECONDS", 0.0)
    monkeypatch.setattr(low_water, "LOOK_BELOW_SECONDS", A_LONG_TIME)
    async with dispatching(db, poll_interval=A_LONG_TIME) as dispatcher:
        fetcher, conn = await knowing_all(dispatcher, contacts)
        with psycopg.connect(db) as late:
            add_contacts(late, 1, 1)
            add_contacts(contacts, 2, 1)
            await fetcher._turn(conn)  # noqa: SLF001
            await fetcher._look_once_more(conn)  # noqa: SLF001
            assert sum(routes) == 1
        dispatcher.ring()
        assert await fetcher._turn(conn)  # noqa: SLF001 - who was under way is not any more
        assert sum(routes) == 1
        await fetcher._turn(conn)  # noqa: SLF001
        assert sum(routes) == 2


async def test_where_nobody_hears_the_doorbell_one_find_leads_to_the_next_look(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Behind a pooler: who is busy looks often, who has found nothing for long polls."""
    monkeypatch.setattr(rest_module, "NOTHING_DUE_SECONDS", A_LONG_TIME)
    async with dispatching(db, poll_interval=A_LONG_TIME, pooling=Pooling.TRANSACTION) as dispatcher:
        fetcher = dispatcher._fetcher  # noqa: SLF001
        conn = await fetcher._link.connection()  # noqa: SLF001
        add_contacts(contacts, 1, 1)
        await fetcher._turn(conn)  # noqa: SLF001
        await fetcher._look_once_more(conn)  # noqa: SLF001
        assert fetcher._until_next_look() <= LATE_LOOKS[0]  # noqa: SLF001
        while (seconds := fetcher._until_next_look()) <= max(LATE_LOOKS):  # noqa: SLF001
            await asyncio.sleep(seconds)
            await fetcher._turn(conn)  # noqa: SLF001
            await fetcher._look_once_more(conn)  # noqa: SLF001


async def test_who_rang_and_does_not_commit_keeps_nobody_waiting(contacts: psycopg.Connection, db: str) -> None:
    """The doorbell is down then, and nobody was woken."""
    with Receiver() as receiver, psycopg.connect(db) as slow:
        add_config(contacts, receiver.url)
        async with running(db, poll_interval=A_LONG_TIME):
            await eventually(lambda: doorbell_is_up(contacts))
            add_contacts(slow, 1, 1)
            for number in range(2, 12):
                # By its age, as if so much time had passed.
                contacts.execute(
                    "select setval('outbox.doorbell', last_value - 50) from outbox.doorbell where last_value > 2"
                )
                add_contacts(contacts, number, 1)
                await receiver.wait_for_async(number - 1)
            slow.rollback()


async def test_what_a_settle_leaves_due_is_not_left_to_a_poll(contacts: psycopg.Connection, db: str) -> None:
    """That a config is in trouble is captured by the daemon itself, which rings for nobody."""
    with Receiver() as receiver:
        receiver.answer("/broken", Status(500))
        add_config(contacts, receiver.url_for("/broken"), number_of_attempts=1)
        add_config(contacts, receiver.url_for("/watch"), resource="postbackconfig")
        async with running(db, poll_interval=A_LONG_TIME, disable_after=1):
            await eventually(lambda: doorbell_is_up(contacts))
            add_contacts(contacts, 1, 1)
            await receiver.wait_for_async(1, path="/watch")


@pytest.mark.parametrize("held_by", ["a pause", "its circuit"])
async def test_who_lets_a_config_send_wakes_the_daemon(contacts: psycopg.Connection, db: str, held_by: str) -> None:
    """What it is owed falls due by that, and nothing is captured that would ring."""
    field = "paused_at" if held_by == "a pause" else "circuit_opened_at"
    with Receiver() as receiver:
        config = add_config(contacts, receiver.url, **{field: "now"})
        contacts.execute(
            "insert into outbox.config_state (config_id, probe_at) values (%s, now() + interval '4 minutes')", [config]
        )
        async with running(db, poll_interval=A_LONG_TIME), await psycopg.AsyncConnection.connect(db) as conn:
            await eventually(lambda: doorbell_is_up(contacts))
            add_contacts(contacts, 1, 1)
            await eventually(lambda: bool(owed(contacts)) and doorbell_is_up(contacts))
            await asyncio.sleep(2 * max(LATE_LOOKS))  # the daemon has done all that it does unasked
            if held_by == "a pause":
                await configs.resume(conn, config)
            else:
                await configs.edit(conn, config, {"is_active": True}, SecretBox(()))
            await conn.commit()
            await receiver.wait_for_async(1)


async def test_one_change_is_looked_for_once(
    contacts: psycopg.Connection, db: str, monkeypatch: pytest.MonkeyPatch, routes: list[int]
) -> None:
    """Not again when its POST is done, nor before the sleep, nor when what is due is claimed."""
    monkeypatch.setattr(router_module, "QUIET_SECONDS", A_LONG_TIME)
    monkeypatch.setattr(fetcher_module, "LOOK_MEANWHILE_SECONDS", A_LONG_TIME)
    with Receiver() as receiver:
        add_config(contacts, receiver.url)
        async with running(db, poll_interval=A_LONG_TIME):
            for number in range(1, 21):
                await eventually(lambda: doorbell_is_up(contacts))
                add_contacts(contacts, number, 1)
                await receiver.wait_for_async(number)
                await eventually(lambda: not owed(contacts))
    assert sum(routes) == 20
    # It knows of no number at first, and looks for what is missing.
    assert len(routes[routes.index(1) :]) < 20 * 5 / 2
