"""/v2/postbacklogs over a real server: lists, one with its tries, replays."""

from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest
from yarl import URL

from outbox.core.model import Dead, Delivered, Outcome, Retry
from outbox.postgres.pool import connected
from outbox.settings import Settings
from tests.apis import Client, new_user, serving
from tests.tried import add_config, attach_contacts, route, try_all

PATH = "/v2/postbacklogs"


@pytest.fixture
async def api(db: str) -> AsyncIterator[Client]:
    async with serving(Settings(dsn=db)) as client:
        client.session.headers.update(await new_user(db, "L"))
        yield client


@pytest.fixture
async def tried(db: str, conn: psycopg.Connection) -> str:
    """A delivered one (record 1), a dead one (2), a waiting one (3) and a new one (4); returns the config's id."""
    attach_contacts(conn)
    config = add_config(conn)
    async with await psycopg.AsyncConnection.connect(db, autocommit=True) as daemon:
        outcomes: tuple[Outcome, ...] = (Delivered(), Dead("no luck"), Retry(300, "busy"))
        for record, outcome in enumerate(outcomes, 1):
            conn.execute("insert into contacts values (%s, 'L', 'x')", [record])
            await try_all(daemon, outcome)
        conn.execute("insert into contacts values (4, 'L', 'x')")
        await route(daemon)
    return str(config)


async def listed(api: Client, **query: str) -> list[dict[str, Any]]:
    answer = await api.get(PATH, params=query)
    assert answer.status == 200, await answer.text()
    found: list[dict[str, Any]] = (await answer.json())["postbacklogs"]
    return found


async def test_each_filter_narrows(api: Client, tried: str) -> None:
    """By config, status, model, record, event and time; a comma means any of."""
    logs = {each["model_id"]: each for each in await listed(api)}
    assert {record: each["postback_status_id"] for record, each in logs.items()} == {"1": 3, "2": 4, "3": 2, "4": 1}
    first = logs["1"]
    assert (first["model"], first["http_verb"], first["type"]) == ("Contact", "POST", "CREATE")
    day = first["created_ts"]
    for query, expected in (
        ({"postback_config_id": tried}, "1234"), ({"postback_status_id": "1"}, "4"),
        ({"postback_status_id": "2,3"}, "13"),
        ({"model": "Contact"}, "1234"), ({"model": "tag"}, ""), ({"model_id": "2"}, "2"),
        ({"changelog_id": first["changelog_id"]}, "1"), ({"changelog_id": first["changelog_id"], "model_id": "2"}, ""),
        ({"created_ts": f">={day}"}, "1234"), ({"created_ts": f"<{day}"}, ""), ({"created_ts": f">={day},<{day}"}, ""),
        ({"state_ts": f">{day + 3600}"}, ""),
        ({"postback_config_id": f"{tried},00000000-0000-4000-8000-000000000001"}, "1234"),
        ({"changelog_id": f"{first['changelog_id']},{logs['3']['changelog_id']}"}, "13"),
        ({"model_id": "4,1,1"}, "14"), ({"model_id": "1,2", "model": "tag,contact", "postback_status_id": "4"}, "2"),
        ({"model": "tag,Contact"}, "1234"), ({"model": "contact"}, "1234"), ({"model": "CONTACT"}, ""),
    ):  # fmt: skip
        assert sorted(each["model_id"] for each in await listed(api, **query)) == list(expected), query


async def test_a_model_is_found_by_what_the_list_calls_it_and_a_record_by_an_id_with_commas(
    api: Client, conn: psycopg.Connection, db: str
) -> None:
    """A resource may begin with a capital letter, and a key be of two columns."""
    conn.execute("create table parts (a int, b int, location_id text default 'L', primary key (a, b))")
    conn.execute("select outbox.attach('parts', 'Part')")
    conn.execute("update outbox.postback_configs set resource = 'Part' where id = %s", [add_config(conn)])
    conn.execute("insert into parts values (7, 8)")
    async with connected(db, "test") as aconn:
        await route(aconn)
    for query in ({"model": "Part"}, {"model": "part"}, {"model_id": "7,8"}, {"model_id": "7,8", "model": "x,Part"}):
        assert [(each["model"], each["model_id"]) for each in await listed(api, **query)] == [("Part", "7,8")], query


@pytest.mark.parametrize("sort", ["state_ts", "-state_ts", "created_ts", "-created_ts"])
async def test_a_walk_along_next_meets_each_once(api: Client, tried: str, sort: str) -> None:
    """Newest or oldest first; `page` leads to the same."""
    assert tried
    seen: list[str] = []
    url: str | None = str(URL(PATH).with_query(sort=sort, page_size=1))
    while url:
        body = await (await api.get(url)).json()
        seen += [each["id"] for each in body["postbacklogs"]]
        links = body["meta"]["pagination"]["links"]
        assert "totalCountIsCapped" not in body["meta"]["pagination"]
        url = URL(links["next"]["href"]).path_qs if "next" in links else None
    assert len(set(seen)) == len(seen) == 4
    assert [each["id"] for each in await listed(api, sort=sort, page="3", page_size="1")] == [seen[2]]


async def test_a_list_is_in_the_order_of_capture_whatever_became_of_it(api: Client, tried: str) -> None:
    """It is the default; a cursor of one order is none of another."""
    assert tried
    assert [each["model_id"] for each in await listed(api)] == ["4", "3", "2", "1"]
    assert [each["model_id"] for each in await listed(api, sort="created_ts")] == ["1", "2", "3", "4"]
    first = await (await api.get(PATH, params={"page_size": 1})).json()
    after = URL(first["meta"]["pagination"]["links"]["next"]["href"]).query["after"]
    answer = await api.get(PATH, params={"sort": "created_ts", "after": after})
    assert answer.status == 422
    assert "same sort" in await answer.text()


async def test_only_the_first_page_counts(api: Client, conn: psycopg.Connection, tried: str) -> None:
    """A walk keeps the number that its first page told; above 1,000 it says that there are more."""
    page = await (await api.get(PATH, params={"page_size": 1})).json()
    conn.execute(
        "insert into outbox.attempts (event_id, config_id, number, at, event_created_at, duration_ms, outcome)"
        " select gen_random_uuid(), %s, 1, now(), now() - interval '1 day', 5, 'delivered'"
        " from generate_series(1, 1000)",
        [tried],
    )
    following = URL(page["meta"]["pagination"]["links"]["next"]["href"]).path_qs
    for url, total in ((following, 4), (PATH, 1000)):
        pagination = (await (await api.get(url)).json())["meta"]["pagination"]
        assert pagination["totalCount"] == total
        assert pagination.get("totalCountIsCapped", False) == (total == 1000)
        assert ("last" in pagination["links"]) == (total != 1000)


async def test_a_page_by_number_reaches_1000_rows(api: Client) -> None:
    """Behind that each page would read and throw away more; the answer tells the way on."""
    assert (await api.get(PATH, params={"page": "2", "page_size": "500"})).status == 200
    answer = await api.get(PATH, params={"page": "3", "page_size": "500"})
    assert answer.status == 422
    [message] = (await answer.json())["errors"]["page"]
    assert "1000 at most" in message
    assert "after" in message


async def test_one_has_its_tries(api: Client, tried: str) -> None:
    """With status, duration, error and the beginning of the answer."""
    assert tried
    [dead] = await listed(api, postback_status_id="4")
    shown = (await (await api.get(f"{PATH}/{dead['id']}")).json())["postbacklog"]
    [attempt] = shown.pop("tries")
    assert shown == dead
    assert (attempt["outcome"], attempt["status"], attempt["error"]) == ("dead", 200, "no luck")
    assert (attempt["response"], attempt["duration_ms"]) == ("ok", 5)
    assert (await api.get(f"{PATH}/nonsense")).status == 404
    only_post = await api.get(f"{PATH}/replay")
    assert (only_post.status, only_post.headers["Allow"]) == (405, "POST")


async def test_one_is_replayed_once(api: Client, tried: str) -> None:
    """It is owed again; one that is still owed answers 409."""
    assert tried
    [dead] = await listed(api, postback_status_id="4")
    at = f"{PATH}/{dead['id']}/replay"
    assert await (await api.post(at)).json() == {"replay": {"count": 1, "dry_run": False}}
    assert (await api.post(at)).status == 409
    assert len(await listed(api, postback_status_id="2")) == 2


async def test_a_filter_is_replayed(api: Client, tried: str) -> None:
    """A dry run only counts; without a status only the dead ones go; what nothing narrows is refused."""
    asked = {"postback_config_id": tried}
    dry = await (await api.post(f"{PATH}/replay", json={"replay": asked | {"dry_run": True}})).json()
    assert dry == {"replay": {"count": 1, "dry_run": True}}
    assert len(await listed(api, postback_status_id="4")) == 1
    since = {"replay": {"postback_status_id": "3", "state_ts": ">0", "dry_run": True}}
    assert (await (await api.post(f"{PATH}/replay", json=since)).json())["replay"]["count"] == 1
    both = asked | {"postback_status_id": "3,4"}
    assert (await (await api.post(f"{PATH}/replay", json={"replay": both})).json())["replay"]["count"] == 2
    # Everything that was ever delivered is not sent again for want of a condition.
    whole = {"postback_status_id": "3"}
    for wrong in ({}, {"colour": 1}, {"dry_run": "yes"}, {"model_id": True}, {"postback_status_id": "1"}, whole,
                  whole | {"state_ts": "<9999999999"}, whole | {"model": "contact"}):  # fmt: skip
        assert (await api.post(f"{PATH}/replay", json={"replay": wrong})).status == 422


@pytest.mark.parametrize(
    "query",
    ["colour=red", "postback_status_id=5", "created_ts=yesterday", "changelog_id=x", "sort=model", "after=x",
     "after=WyJ4Il0", "model_id=%00", "page=201", "sort=created_ts&state_ts=1", "sort=-state_ts&created_ts=1",
     "created_ts=1,2", "created_ts=>=100,>=50", "state_ts=<5,<=4", "state_ts=5,<6"],
)  # fmt: skip
async def test_a_wrong_query_is_told(api: Client, query: str) -> None:
    """What is unknown or wrong is refused with what is accepted, never ignored."""
    answer = await api.get(f"{PATH}?{query}")
    assert answer.status == 422
    assert (await answer.json())["errors"]
