"""/v2/postbackconfigs over a real server: the source document's example, edits, lists and what is refused."""

import ipaddress
from collections.abc import AsyncIterator
from typing import Any
from uuid import uuid4

import psycopg
import pytest
from cryptography.fernet import Fernet
from yarl import URL

from outbox.settings import Settings
from tests.apis import Client, new_user, serving

LOCATION = "23948sdnfia1129i9asf92"
LOOPBACK = (ipaddress.ip_network("127.0.0.0/8"),)
PATH = "/v2/postbackconfigs"
REQUEST: dict[str, Any] = {
    "attempt_interval": 300, "basic_auth_username": None, "basic_auth_password": None, "expands": "",
    "format": "api-default", "is_active": "1", "location_id": LOCATION, "number_of_attempts": 1, "on_create": "1",
    "on_delete": "1", "on_update": "1", "resource": "contact", "url": "https://127.0.0.1/receiver",
}  # fmt: skip


@pytest.fixture
async def api(db: str) -> AsyncIterator[Client]:
    key = Fernet.generate_key().decode()
    async with serving(Settings(dsn=db, secret_key=(key,), allow_networks=LOOPBACK)) as client:
        client.session.headers.update(await new_user(db, LOCATION))
        yield client


async def create(api: Client, **fields: object) -> dict[str, Any]:
    answer = await api.post(PATH, json={"postbackconfig": REQUEST | fields})
    assert answer.status == 201, await answer.text()
    made: dict[str, Any] = (await answer.json())["postbackconfig"]
    return made


async def test_the_documents_request_gets_the_documents_answer(api: Client) -> None:
    """Exactly its keys in its order, with an absolute link that leads to the config."""
    made = await create(api)
    assert list(made) == [
        "id", "location_id", "resource", "on_create", "on_update", "on_delete", "url", "is_active", "format",
        "number_of_attempts", "attempt_interval", "expands", "created_ts", "modified_ts", "_links",
    ]  # fmt: skip
    assert {name: made[name] for name in REQUEST if name in made} == {
        name: value for name, value in REQUEST.items() if not name.startswith("basic_auth")
    }
    href = made["_links"]["self"]["href"]
    assert URL(href).is_absolute()
    assert await (await api.get(URL(href).path)).json() == {"postbackconfig": made}


async def test_put_changes_only_what_it_names(api: Client, conn: psycopg.Connection) -> None:
    """A whole GET may be sent back; a read-only field that differs is refused."""
    made = await create(api)
    at = f"{PATH}/{made['id']}"
    changed = await (await api.put(at, json={"postbackconfig": {"is_active": False}})).json()
    assert changed["postbackconfig"] == made | {
        "is_active": "0",
        "modified_ts": changed["postbackconfig"]["modified_ts"],
    }
    again = await api.put(at, json=changed)
    assert again.status == 200
    refused = await api.put(at, json={"postbackconfig": {"id": str(uuid4()), "url": "ftp://x"}})
    assert refused.status == 422
    assert set((await refused.json())["errors"]) == {"id", "url"}
    conn.execute("update outbox.postback_configs set paused_at = now()")
    paused = await (await api.get(at)).json()
    assert paused["postbackconfig"]["paused"] == "1"
    assert (await api.put(at, json=paused)).status == 200
    # Pausing is the operator's.
    refused = await api.put(at, json={"postbackconfig": {"paused": "0"}})
    assert set((await refused.json())["errors"]) == {"paused"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://10.0.0.1/", "url is forbidden: 10.0.0.1 is a private address, and no allowed network has it."),
        (
            "http://169.254.169.254/latest/meta-data",
            "url is forbidden: 169.254.169.254 is a cloud's metadata address, and no allowed network has it.",
        ),
        ("http://h.example:22/", "url is forbidden: port 22 is not allowed, only 80, 443, 1024-65535."),
        ("http://2130706433/", "url must have a valid host: a name, an IPv4 address or an IPv6 address in brackets."),
    ],
)
async def test_a_forbidden_url_is_refused_with_its_reason(api: Client, url: str, message: str) -> None:
    """On create and on edit, 422; an edit that does not change the URL needs no permission for it."""
    answer = await api.post(PATH, json={"postbackconfig": REQUEST | {"url": url}})
    assert (answer.status, await answer.json()) == (422, {"errors": {"url": [message]}})
    at = f"{PATH}/{(await create(api))['id']}"
    answer = await api.put(at, json={"postbackconfig": {"url": url}})
    assert (answer.status, await answer.json()) == (422, {"errors": {"url": [message]}})


async def test_a_deleted_config_answers_409(api: Client) -> None:
    """For each method; an id that never was answers 404, and so does one that is none."""
    made = await create(api)
    at = f"{PATH}/{made['id']}"
    gone = await api.delete(at)
    assert (gone.status, await gone.read()) == (204, b"")
    for path, status in ((at, 409), (f"{PATH}/{uuid4()}", 404), (f"{PATH}/x", 404)):
        assert (await api.get(path)).status == status
        assert (await api.delete(path)).status == status
        assert (await api.put(path, json={"postbackconfig": {"is_active": 0}})).status == status


async def test_the_password_never_comes_out(api: Client) -> None:
    """The user name comes when it is asked for; the logs as well."""
    made = await create(api, basic_auth_username="Ada", basic_auth_password="secret word")
    at = f"{PATH}/{made['id']}"
    plain = await (await api.get(at)).text()
    answer = await api.get(at, params={"expand": "postback_logs,basic_auth_username"})
    shown = (await answer.json())["postbackconfig"]
    assert (shown["basic_auth_username"], shown["postback_logs"]) == ("Ada", [])
    assert "Ada" not in plain
    assert "secret word" not in await answer.text()
    assert (await api.get(at, params={"expand": "basic_auth_password"})).status == 422


@pytest.mark.parametrize("sort", ["created_ts", "-created_ts", "url", "-number_of_attempts", "product_transaction_id"])
async def test_a_walk_along_next_meets_each_once(api: Client, sort: str) -> None:
    """Also while a config that was passed is deleted, which would shift numbered pages."""
    made = [(await create(api, url=f"https://h/{n}", number_of_attempts=1 + n % 3))["id"] for n in range(7)]
    seen: list[str] = []
    url: str | None = str(URL(PATH).with_query(sort=sort, page_size=2))
    while url:
        body = await (await api.get(url)).json()
        page = [each["id"] for each in body["postbackconfigs"]]
        seen += page
        assert len(page) <= 2
        if len(seen) == 2:
            assert body["meta"]["pagination"]["totalCount"] == 7
            assert body["meta"]["pagination"]["pageCount"] == 4
            await api.delete(f"{PATH}/{seen[0]}")
        links = body["meta"]["pagination"]["links"]
        url = URL(links["next"]["href"]).path_qs if "next" in links else None
    assert sorted(seen) == sorted(made)


async def test_filters_take_any_of_several(api: Client) -> None:
    """A comma means any of; all filters together must hold."""
    one, two = await create(api), await create(api, resource="accountvault", is_active=0)
    for query, expected in (
        ({"resource": "contact,accountvault"}, [one, two]), ({"resource": "contact"}, [one]),
        ({"is_active": "false"}, [two]), ({"id": f"{two['id']},{uuid4()}"}, [two]),
        ({"resource": "contact", "is_active": "0"}, []), ({"number_of_attempts": "1"}, [one, two]),
        ({"created_ts": str(one["created_ts"]), "resource": "contact"}, [one]),
    ):  # fmt: skip
        assert (await (await api.get(PATH, params=query)).json())["postbackconfigs"] == expected, query


@pytest.mark.parametrize(
    "query",
    ["colour=red", "page=0", "page=x", "page_size=501", "sort=colour", "is_active=maybe", "after=x", "after=WyJ4Il0",
     "after=WyJ4IiwgIjAwMDAwMDAwLTAwMDAtMDAwMC0wMDAwLTAwMDAwMDAwMDAwMCJd",
     "number_of_attempts=one", "id=x", "expand=x", "page=1&page=2", "url=%00",
     "page_size=51&expand=postback_logs"],
)  # fmt: skip
async def test_a_wrong_query_is_told(api: Client, query: str) -> None:
    """What is unknown or wrong is refused with what is accepted, never ignored."""
    answer = await api.get(f"{PATH}?{query}")
    assert answer.status == 422
    assert (await answer.json())["errors"]


async def test_links_lead_to_where_the_request_came_from(api: Client) -> None:
    """Behind a proxy that ends TLS, which says so, they are https; nothing else that it says is believed."""
    made = await create(api)
    one, many = f"{PATH}/{made['id']}", f"{PATH}?page_size=1"
    await create(api, resource="tag")
    for said, scheme in ((None, "http"), ("https", "https"), ("HTTPS", "https"), ("ftp", "http"), ("x://y", "http")):
        headers = {} if said is None else {"X-Forwarded-Proto": said, "X-Forwarded-Host": "elsewhere.example"}
        shown = (await (await api.get(one, headers=headers)).json())["postbackconfig"]
        links = (await (await api.get(many, headers=headers)).json())["meta"]["pagination"]["links"]
        hrefs = [URL(each["href"]) for each in (shown["_links"]["self"], *links.values())]
        assert [(each.scheme, each.host) for each in hrefs] == [(scheme, "127.0.0.1")] * 4


async def test_is_active_by_itself_closes_a_circuit(api: Client, conn: psycopg.Connection) -> None:
    """In either spelling. As a part of what was read it changes nothing, as all of that."""
    made = await create(api)
    at = f"{PATH}/{made['id']}"
    for spelling in ("1", True):
        conn.execute("update outbox.postback_configs set circuit_opened_at = now()")
        shown = (await (await api.get(at)).json())["postbackconfig"]
        assert shown["circuit_opened_ts"]
        again = await (await api.put(at, json={"postbackconfig": shown})).json()
        assert again["postbackconfig"]["circuit_opened_ts"]
        closed = await (await api.put(at, json={"postbackconfig": {"is_active": spelling}})).json()
        assert "circuit_opened_ts" not in closed["postbackconfig"]


async def test_a_location_has_so_many_configs_at_the_most(
    api: Client, db: str, conn: psycopg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One user's configs are not to be so many that each change of his keeps the others' waiting; an operator may."""
    monkeypatch.setattr("outbox.api.postbackconfigs.MOST_OF_LOCATION", 2)
    made = [await create(api, is_active=each) for each in ("0", "1")]
    over = {"postbackconfig": REQUEST}
    refused = await api.post(PATH, json=over)
    assert (refused.status, list((await refused.json())["errors"])) == (422, ["location_id"])
    assert (await api.post(PATH, json=over, headers=await new_user(db))).status == 201
    conn.execute("update outbox.postback_configs set location_id = 'other' where id = %s", [made[0]["id"]])
    both = await new_user(db, LOCATION, "other")
    moved = await api.put(f"{PATH}/{made[0]['id']}", json={"postbackconfig": {"location_id": LOCATION}}, headers=both)
    assert moved.status == 422
    await api.delete(f"{PATH}/{made[1]['id']}")
    moved = await api.put(f"{PATH}/{made[0]['id']}", json={"postbackconfig": {"location_id": LOCATION}}, headers=both)
    assert moved.status == 200


async def test_what_was_read_is_sent_back_though_the_rules_became_stricter(api: Client, db: str) -> None:
    """Nothing of it is a change; what is changed beside it is judged."""
    made = await create(api, attempt_interval=300)
    async with serving(Settings(dsn=db, allow_networks=LOOPBACK, min_attempt_interval=600)) as stricter:
        stricter.session.headers.update(api.session.headers)
        at = f"{PATH}/{made['id']}"
        read = (await (await stricter.get(at)).json())["postbackconfig"]
        sent = await stricter.put(at, json={"postbackconfig": read | {"number_of_attempts": 3}})
        assert (sent.status, (await sent.json())["postbackconfig"]["number_of_attempts"]) == (200, 3)
        refused = await stricter.put(at, json={"postbackconfig": {"attempt_interval": 301}})
        assert refused.status == 422
        # Equal to what is stored for Python, and no number.
        assert (await stricter.put(at, json={"postbackconfig": {"number_of_attempts": True}})).status == 422
