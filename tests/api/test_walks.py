"""Walks of 500 pages along links.next while a writer comes, changes and goes at the same time."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import psycopg
import pytest
from yarl import URL

from outbox.core.model import NO_CONFIG, Dead, Delivered, Outcome, Retry
from outbox.postgres import configs, queue
from outbox.postgres.replay import replay
from outbox.postgres.selection import Filter
from outbox.settings import Settings
from tests.apis import Client, new_user, serving
from tests.daemons import eventually
from tests.tried import add_config, attach_contacts, route, settle

CONFIGS, LOGS = "/v2/postbackconfigs", "/v2/postbacklogs"
PAGES, PAGE_SIZE = 500, 2


@pytest.fixture
async def api(db: str) -> AsyncIterator[Client]:
    async with serving(Settings(dsn=db)) as client:
        client.session.headers.update(await new_user(db, "L"))
        yield client


class Writer:
    """Changes the database again and again, beside a walk."""

    def __init__(self, db: str, change: Callable[[psycopg.AsyncConnection], Awaitable[None]]) -> None:
        self._db = db
        self._change = change
        self._done = 0
        self._stop = asyncio.Event()
        self._task = asyncio.create_task(self._go_on())

    async def _go_on(self) -> None:
        async with await psycopg.AsyncConnection.connect(self._db, autocommit=True) as conn:
            while not self._stop.is_set():
                await self._change(conn)
                self._done += 1

    async def wait_for(self, times: int) -> None:
        """Wait until it has made so many changes."""
        await eventually(lambda: self._done >= times or self._task.done())

    async def end(self) -> int:
        """End it, and return how many changes it made; what went wrong in it is raised."""
        self._stop.set()
        await self._task
        return self._done


@asynccontextmanager
async def meanwhile(db: str, change: Callable[[psycopg.AsyncConnection], Awaitable[None]]) -> AsyncIterator[Writer]:
    """Change the database again and again, beside."""
    writer = Writer(db, change)
    try:
        yield writer
    finally:
        await writer.end()


async def walk(api: Client, path: str, key: str, sort: str, writer: Writer) -> Counter[str]:
    """Return how often each id was met. There is a change in nine pages at least, and none after 490: so it ends."""
    met: Counter[str] = Counter()
    url: str | None = str(URL(path).with_query(sort=sort, page_size=PAGE_SIZE))
    pages = 0
    while url:
        answer = await api.get(url)
        assert answer.status == 200, await answer.text()
        body: dict[str, Any] = await answer.json()
        met.update(each["id"] for each in body[key])
        pages += 1
        if pages < PAGES - 10:
            await writer.wait_for(pages // 9)
        elif pages == PAGES - 10:
            assert await writer.end() > PAGES / 10
        links = body["meta"]["pagination"]["links"]
        url = URL(links["next"]["href"]).path_qs if "next" in links else None
    assert pages >= PAGES
    return met


def left_out_or_doubled(met: Counter[str], expected: set[str]) -> dict[str, int]:
    return {each: met[each] for each in expected if met[each] != 1}


@pytest.mark.parametrize("sort", ["created_ts", "-created_ts"])
async def test_each_config_that_stays_is_met_once(api: Client, db: str, conn: psycopg.Connection, sort: str) -> None:
    """While others are made and deleted, before and behind the place of the walk."""
    stay = {str(add_config(conn)) for _ in range(PAGES * PAGE_SIZE)}
    dice = random.Random(1)  # noqa: S311 - spread, not secrecy
    others = [add_config(conn) for _ in range(100)]
    conn.execute("update outbox.postback_configs set created_at = now() - make_interval(secs => 600 * random())")

    async def change(other: psycopg.AsyncConnection) -> None:
        others.append(await asyncio.to_thread(add_config, conn))
        await configs.remove(other, others.pop(dice.randrange(len(others))))

    async with meanwhile(db, change) as writer:
        met = await walk(api, CONFIGS, "postbackconfigs", sort, writer)
    assert left_out_or_doubled(met, stay) == {}


@pytest.mark.parametrize("sort", ["created_ts", "-created_ts", "state_ts", "-state_ts"])
async def test_each_log_that_stays_is_met_once(api: Client, db: str, conn: psycopg.Connection, sort: str) -> None:
    """By created_ts whatever becomes of it meanwhile: it is delivered, dies, is replayed. By state_ts if it rests."""
    attach_contacts(conn)
    busy, resting = add_config(conn), add_config(conn)
    dice = random.Random(1)  # noqa: S311 - spread, not secrecy
    outcomes: tuple[Outcome, ...] = (Delivered(), Dead("no"), Retry(0, "no"))
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as daemon:
        # By state_ts a log leaves its place, so that the walk may be spared it: there the resting ones fill the pages.
        for first in range(0, 500 if "created_ts" in sort else 1000, 50):
            conn.execute(
                "insert into contacts select i, 'L', 'x' from generate_series(%s::int, %s::int) i", [first, first + 49]
            )
            await route(daemon)
            for _ in range(2):
                claimed = await queue.claim(daemon, after=NO_CONFIG, slots=60, room=30, rooms={}, lease=60)
                await settle(daemon, claimed.deliveries, dice.choice(outcomes))
    # It is paused, so that nobody claims what it owes.
    conn.execute("update outbox.postback_configs set paused_at = now() where id = %s", [resting])
    events = [row[0] for row in conn.execute("select id from outbox.events order by id").fetchall()]
    stay = {f"{event}.{resting}" for event in events}
    if "created_ts" in sort:
        stay |= {f"{event}.{busy}" for event in events}
    record = 1000
    passing = add_config(conn)

    async def change(daemon: psycopg.AsyncConnection) -> None:
        nonlocal record, passing
        record += 1
        await daemon.execute("insert into contacts values (%s, 'L', 'x')", [record])
        await route(daemon)
        claimed = await queue.claim(daemon, after=NO_CONFIG, slots=8, room=4, rooms={}, lease=60)
        await settle(daemon, claimed.deliveries, dice.choice(outcomes))
        for event in dice.sample(events, 3):
            await replay(daemon, Filter(event=event, config=busy))
        if record % 10 == 0:
            await configs.remove(daemon, passing)
            passing = await asyncio.to_thread(add_config, conn)

    async with meanwhile(db, change) as writer:
        met = await walk(api, LOGS, "postbacklogs", sort, writer)
    assert left_out_or_doubled(met, stay) == {}
