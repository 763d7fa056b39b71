"""Two locations try every route against each other's ids: nothing is seen, nothing is touched.

Which routes there are, with which parameters and fields, is read from the API's own description: a new one is tried
without a word here.
"""

import asyncio
import itertools
from collections.abc import Iterator
from typing import Any
from uuid import UUID

import psycopg
import pytest

from outbox.core.model import Dead
from outbox.settings import Settings
from tests.apis import Client, new_user, resolved, serving
from tests.tried import add_config, attach_contacts, try_all

CONFIGS, LOGS = "/v2/postbackconfigs", "/v2/postbacklogs"
STATE = (
    "select * from outbox.deliveries order by 1, 2",
    "select * from outbox.postback_configs order by id",
    "select * from outbox.attempts order by at, 1",
)


class Owned:
    """What one location has: a config with a dead log, and a deleted config with its log's id."""

    def __init__(self, location: str, record: int, config: UUID, deleted: UUID, event: UUID) -> None:
        self.location = location
        self.ids = {CONFIGS: [str(config), str(deleted)], LOGS: [f"{event}.{config}", f"{event}.{deleted}"]}
        self.values = {
            "id": str(config), "location_id": location, "url": f"https://{location}.example/hook",
            "resource": "contact", "postback_config_id": str(config), "changelog_id": str(event),
            "model_id": str(record),
        }  # fmt: skip
        """A value of each parameter or field that can name something of it."""

    @property
    def marks(self) -> list[str]:
        """Texts that nobody else may read."""
        return [*self.ids[CONFIGS], *self.ids[LOGS], self.values["url"], self.values["changelog_id"]]


@pytest.fixture
async def owned(db: str, conn: psycopg.Connection) -> tuple[Owned, Owned]:
    attach_contacts(conn)
    first, second = "place-one", "place-two"
    kept = {location: add_config(conn, location) for location in (first, second)}
    deleted = {location: add_config(conn, location) for location in (first, second)}
    conn.execute("insert into contacts values (71, %s, 'x'), (72, %s, 'x')", [first, second])
    conn.execute("update outbox.postback_configs set url = 'https://' || location_id || '.example/hook'")
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as daemon:
        tried = await try_all(daemon, Dead("no luck"))
    conn.execute("update outbox.postback_configs set deleted_at = now() where id = any(%s)", [list(deleted.values())])
    events = {UUID(each.config_id): each.event_id for each in tried}
    one, two = (
        Owned(location, record, kept[location], deleted[location], events[kept[location]])
        for location, record in ((first, 71), (second, 72))
    )
    return one, two


def state(conn: psycopg.Connection) -> list[list[tuple[Any, ...]]]:
    return [conn.execute(each.encode()).fetchall() for each in STATE]


async def operations(api: Client) -> list[tuple[str, str, dict[str, Any], dict[str, Any]]]:
    """Return method, path, operation and the schema of its body's one member, under the member's name."""
    described = await (await api.get("/openapi.json")).json()
    found = []
    for path, methods in described["paths"].items():
        for method, operation in methods.items() if path.startswith("/v2/") else ():
            body: dict[str, Any] = {}
            if "requestBody" in operation:
                envelope = operation["requestBody"]["content"]["application/json"]["schema"]
                body = {key: resolved(described, part) for key, part in envelope["properties"].items()}
            found.append((method.upper(), path, operation, body))
    return found


def chosen(names: set[str], theirs: Owned) -> Iterator[dict[str, str]]:
    """Yield each value of the other that one of these names can bear, then all of them together."""
    fitting = {name: value for name, value in theirs.values.items() if name in names}
    yield from ({name: value} for name, value in fitting.items())
    yield fitting


def tells_nothing(document: dict[str, Any], theirs: Owned) -> None:
    """Assert that nothing of the other's stands in an answer, apart from `meta`, which repeats the question."""
    told = str({key: value for key, value in document.items() if key != "meta"})
    assert not [mark for mark in theirs.marks if mark in told], told


async def test_no_route_shows_or_touches_anothers(
    db: str, conn: psycopg.Connection, owned: tuple[Owned, Owned]
) -> None:
    """Another's id answers as one that never was, a deleted one's too; lists leave it out; nothing changes."""
    before = state(conn)
    async with serving(Settings(dsn=db)) as api:
        routes = await operations(api)
        assert {path for _, path, _, _ in routes} >= {CONFIGS, CONFIGS + "/{id}", LOGS, LOGS + "/{id}/replay"}
        for mine, theirs in itertools.permutations(owned):
            user = await new_user(db, mine.location)
            for method, path, operation, body in routes:
                bodies: list[dict[str, Any] | None] = [
                    {key: fields} for key, part in body.items() for fields in chosen(set(part["properties"]), theirs)
                ] or [None]
                if "{id}" in path:
                    collection = path.partition("/{id}")[0]
                    # Another's ids, and of a log's also the one of their event with a config of mine.
                    half_mine = [f"{theirs.values['changelog_id']}.{mine.ids[CONFIGS][0]}"]
                    ids = theirs.ids[collection] + (half_mine if collection == LOGS else [])
                    for each, sent in itertools.product(ids, bodies):
                        answer = await api.request(method, path.replace("{id}", each), json=sent, headers=user)
                        assert answer.status == 404, (method, path, each, sent, await answer.text())
                elif method == "GET":
                    names = {each["name"] for each in operation["parameters"]}
                    for query in ({}, *chosen(names, theirs)):
                        answer = await api.get(path, params=query, headers=user)
                        assert answer.status == 200, (path, query, await answer.text())
                        tells_nothing(await answer.json(), theirs)
                else:
                    for sent in bodies:
                        answer = await api.request(method, path, json=sent, headers=user)
                        assert answer.status < 500
                        tells_nothing(await answer.json() if answer.status < 300 else {}, theirs)
    assert state(conn) == before


async def test_a_location_is_not_given_away_nor_taken(
    db: str, conn: psycopg.Connection, owned: tuple[Owned, Owned]
) -> None:
    """Creating for another's location, or moving one's own there, is 403; one for all is the operator's alone."""
    before = state(conn)
    one, two = owned
    everyones = {"location_id": None, "resource": "contact", "url": "https://h/"}
    async with serving(Settings(dsn=db)) as api:
        user, operator = await new_user(db, one.location), await new_user(db)
        sent: dict[str, Any] = {"postbackconfig": everyones | {"location_id": two.location}}
        assert (await api.post(CONFIGS, json=sent, headers=user)).status == 403
        at = f"{CONFIGS}/{one.ids[CONFIGS][0]}"
        for location, status in ((two.location, 403), (None, 403)):
            moved = await api.put(at, json={"postbackconfig": {"location_id": location}}, headers=user)
            assert moved.status == status
        sent = {"postbackconfig": everyones}
        assert (await api.post(CONFIGS, json=sent, headers=user)).status == 403
        assert state(conn) == before
        for path, count in ((CONFIGS, 2), (LOGS, 4)):
            listed = await (await api.get(path, headers=operator)).json()
            assert listed["meta"]["pagination"]["totalCount"] == count
        assert (await api.post(CONFIGS, json=sent, headers=operator)).status == 201


@pytest.mark.parametrize("method", ["PUT", "DELETE"])
async def test_a_config_that_is_given_away_meanwhile_is_not_touched(
    db: str, conn: psycopg.Connection, owned: tuple[Owned, Owned], method: str
) -> None:
    """It moves to another location after it was found and before it is changed: 404, and it stays as it is."""
    one, two = owned
    config = one.ids[CONFIGS][0]
    async with (
        serving(Settings(dsn=db)) as api,
        await psycopg.AsyncConnection.connect(db) as mover,
    ):
        user = await new_user(db, one.location)
        await mover.execute("update outbox.postback_configs set location_id = %s where id = %s", [two.location, config])
        asking = asyncio.create_task(
            api.request(
                method, f"{CONFIGS}/{config}", headers=user,
                json={"postbackconfig": {"url": "https://taken.example/"}} if method == "PUT" else None,
            )
        )  # fmt: skip
        while not conn.execute(
            "select from pg_stat_activity where application_name = 'outbox api' and wait_event_type = 'Lock'"
            " and datname = current_database()"
        ).fetchall():
            assert not asking.done()
            await asyncio.sleep(0.01)
        await mover.commit()
        assert (await asking).status == 404
    row = conn.execute("select location_id, url, deleted_at from outbox.postback_configs where id = %s", [config])
    assert row.fetchone() == (two.location, f"https://{one.location}.example/hook", None)


@pytest.mark.parametrize("before", ["place-one", None])
async def test_a_config_that_was_moved_takes_no_records_along(
    db: str, conn: psycopg.Connection, before: str | None
) -> None:
    """Its log has what it was sent in another location: whoever sees it now learns no record, and replays none."""
    attach_contacts(conn)
    config = add_config(conn, "place-two")
    conn.execute("update outbox.postback_configs set location_id = %s", [before])
    conn.execute("insert into contacts values (71, 'place-one', 'x')")
    conn.execute("update outbox.postback_configs set url = 'https://h/'")
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as daemon:
        [tried] = await try_all(daemon, Dead("no luck"))
    conn.execute("update outbox.postback_configs set location_id = 'place-two'")
    state_before = state(conn)
    async with serving(Settings(dsn=db)) as api:
        user, operator = await new_user(db, "place-two"), await new_user(db)
        one = f"{LOGS}/{tried.event_id}.{config}"
        listed = await (await api.get(LOGS, headers=user)).json()
        shown = await (await api.get(one, headers=user)).json()
        for each in (*listed["postbacklogs"], shown["postbacklog"]):
            assert (each["model"], each["model_id"], each["type"]) == (None, None, None)
            assert "no luck" not in str(each)
        assert [(each["outcome"], each["response"]) for each in shown["postbacklog"]["tries"]] == [("dead", None)]
        whole = (await (await api.get(one, headers=operator)).json())["postbacklog"]
        assert (whole["model_id"], whole["tries"][0]["error"], whole["tries"][0]["response"]) == ("71", "no luck", "ok")
        assert (await api.post(f"{one}/replay", headers=user)).status == 409
        many = {"replay": {"postback_config_id": str(config), "postback_status_id": "3,4"}}
        assert (await (await api.post(f"{LOGS}/replay", json=many, headers=user)).json())["replay"]["count"] == 0
        assert state(conn) == state_before
