"""Sign-in over HTTP: who is let in, who is not, and what the log tells of it."""

import asyncio
from base64 import b64encode
from uuid import UUID, uuid4

import psycopg
import pytest
from aiohttp import web
from structlog.testing import capture_logs

from outbox.api.identity import SignIn, connection
from outbox.api.keys import USER
from outbox.api.limits import Buckets
from outbox.api.server import CONNECTIONS
from outbox.postgres import users
from outbox.settings import Settings
from tests.apis import new_user, serving


async def _who(request: web.Request) -> web.Response:
    return web.json_response({"id": str(request[USER].id), "locations": request[USER].location_ids})


def _with_who(app: web.Application) -> None:
    app.router.add_get("/v2/who", _who)


async def test_headers_or_basic_sign_in(db: str) -> None:
    """Both ways name the user; an operator has no locations that limit it; developer-id is not needed."""
    one, operator = await new_user(db, "L1", "L2", "L1"), await new_user(db)
    async with serving(Settings(dsn=db), _with_who) as client:
        answer = await client.get("/v2/who", headers=one | {"developer-id": "dev"})
        assert (answer.status, await answer.json()) == (200, {"id": one["user-id"], "locations": ["L1", "L2"]})
        basic = b64encode(":".join(operator.values()).encode()).decode()
        answer = await client.get("/v2/who", headers={"Authorization": f"Basic {basic}"})
        assert (answer.status, await answer.json()) == (200, {"id": operator["user-id"], "locations": None})


async def test_nothing_but_the_right_key_signs_in(db: str) -> None:
    """No key, another's, half of it, an unknown or senseless user: 401, the way to do it, and no key in the log."""
    good, other = await new_user(db, "L"), await new_user(db, "L")
    wrong: list[dict[str, str]] = [
        {},
        {"user-id": good["user-id"]},
        {"user-api-key": good["user-api-key"]},
        good | {"user-api-key": other["user-api-key"]},
        good | {"user-api-key": good["user-api-key"][:-1]},
        good | {"user-id": str(uuid4())},
        good | {"user-id": "me' or true --"},
        {"Authorization": "Basic !!!"},
        {"Authorization": f"Bearer {good['user-api-key']}"},
    ]
    async with serving(Settings(dsn=db), _with_who) as client:
        with capture_logs() as lines:
            for headers in wrong:
                answer = await client.get("/v2/who", headers=headers)
                assert (answer.status, list(await answer.json())) == (401, ["errors"])
                assert answer.headers["WWW-Authenticate"].startswith("Basic ")
    failed = [line for line in lines if line["event"] == "signin.failed"]
    assert len(failed) == len(wrong)
    assert [line["user_id"] for line in failed[-5:-2]] == [good["user-id"], wrong[5]["user-id"], None]
    assert good["user-api-key"][:-1] not in str(lines)


async def test_a_key_in_the_wrong_place_is_not_logged(db: str) -> None:
    """Who takes the key for the id, in the headers or as HTTP Basic, finds it in no log."""
    good = await new_user(db, "L")
    key = good["user-api-key"]
    async with serving(Settings(dsn=db), _with_who) as client:
        with capture_logs() as lines:
            for headers in (
                {"user-id": key, "user-api-key": good["user-id"]},
                {"Authorization": "Basic " + b64encode(f"{key}:".encode()).decode()},
            ):
                assert (await client.get("/v2/who", headers=headers)).status == 401
    assert len([line for line in lines if line["event"] == "signin.failed"]) == 2
    assert key not in str(lines)


@pytest.mark.parametrize("name", ["user-id", "user-api-key", "developer-id"])
async def test_keys_in_the_query_are_refused(db: str, name: str) -> None:
    """A URL is logged on its way: 400 with the reason, although the headers are right."""
    good = await new_user(db, "L")
    async with serving(Settings(dsn=db), _with_who) as client:
        answer = await client.get("/v2/who", params={name: "x"}, headers=good)
        assert answer.status == 400
        assert "header" in (await answer.json())["errors"][name][0]


@pytest.mark.parametrize("site", ["cross-site", "same-site", "CROSS-SITE"])
async def test_a_page_of_another_site_acts_for_nobody(db: str, site: str) -> None:
    """A browser that remembers HTTP Basic signs in for any page that has it send a form; its own word stops that."""
    good = await new_user(db, "L")
    basic = {"Authorization": "Basic " + b64encode(":".join(good.values()).encode()).decode()}
    async with serving(Settings(dsn=db), _with_who) as client:
        statuses = [
            (await client.get("/v2/who", headers=basic | {"Sec-Fetch-Site": each})).status
            for each in (site, "same-origin", "none")
        ]
        assert statuses == [400, 200, 200]


async def test_failures_are_limited_by_address_and_lock_nobody_out(db: str) -> None:
    """After ten failures an address is told to wait; who signs in rightly from there still may."""
    good = await new_user(db, "L")
    async with serving(Settings(dsn=db), _with_who) as client:
        answers = [await client.get("/v2/who", headers=good | {"user-api-key": "x"}) for _ in range(11)]
        assert [each.status for each in answers] == [401] * 10 + [429]
        assert int(answers[-1].headers["Retry-After"]) >= 1
        assert (await client.get("/v2/who", headers=good)).status == 200


async def test_requests_are_limited_by_user(db: str) -> None:
    """A user that asks too often waits; another does not."""
    one, other = await new_user(db, "L"), await new_user(db, "L")
    async with serving(Settings(dsn=db), _with_who, sign_in=SignIn(user_rate=0.001, user_burst=2.0)) as client:
        assert [(await client.get("/v2/who", headers=one)).status for _ in range(3)] == [200, 200, 429]
        assert (await client.get("/v2/who", headers=other)).status == 200


async def test_one_user_keeps_no_other_waiting(db: str) -> None:
    """However many of his requests hold a connection, some are left for others."""
    one, other = await new_user(db, "L"), await new_user(db, "L")
    over = asyncio.Event()

    async def hold(request: web.Request) -> web.Response:
        async with connection(request):
            await over.wait()
        return web.Response()

    def prepare(app: web.Application) -> None:
        _with_who(app)
        app.router.add_get("/v2/hold", hold)

    async with serving(Settings(dsn=db), prepare) as client:
        held = [asyncio.create_task(client.get("/v2/hold", headers=one)) for _ in range(2 * CONNECTIONS)]
        # In the order in which they were sent: what comes after them finds them there.
        async with asyncio.timeout(30):
            for _ in range(20):
                assert (await client.get("/v2/postbackconfigs", headers=other)).status == 200
        over.set()
        assert {(await each).status for each in held} == {200}


async def test_a_rotated_key_and_a_removed_user_end(db: str) -> None:
    """When what was remembered is forgotten, the old key and then the user are worth nothing."""
    old = await new_user(db, "L")
    async with (
        serving(Settings(dsn=db), _with_who, sign_in=SignIn(remembered=0.0)) as client,
        await psycopg.AsyncConnection.connect(db, autocommit=True) as conn,
    ):
        new = old | {"user-api-key": await users.rotate(conn, UUID(old["user-id"]))}
        assert [(await client.get("/v2/who", headers=each)).status for each in (old, new)] == [401, 200]
        await users.remove(conn, UUID(old["user-id"]))
        assert (await client.get("/v2/who", headers=new)).status == 401


async def test_a_new_key_is_good_at_once(db: str) -> None:
    """Although the user is remembered with the key before; with the first use of the new one the old one ends."""
    old = await new_user(db, "L")
    async with (
        serving(Settings(dsn=db), _with_who) as client,
        await psycopg.AsyncConnection.connect(db, autocommit=True) as conn,
    ):
        assert (await client.get("/v2/who", headers=old)).status == 200
        new = old | {"user-api-key": await users.rotate(conn, UUID(old["user-id"]))}
        assert [(await client.get("/v2/who", headers=each)).status for each in (new, old)] == [200, 401]


async def test_a_user_is_remembered(db: str, conn: psycopg.Connection) -> None:
    """A request soon after another asks the database for no user."""
    good = await new_user(db, "L")
    async with serving(Settings(dsn=db), _with_who) as client:
        assert (await client.get("/v2/who", headers=good)).status == 200
        conn.execute("delete from outbox.users")
        assert (await client.get("/v2/who", headers=good)).status == 200


def test_a_bucket_fills_again() -> None:
    """It gives its burst at once, then one token each 1/rate seconds, and never more than the burst."""
    buckets: Buckets[str] = Buckets(rate=2, burst=2)
    assert [buckets.take("a", 0) for _ in range(3)] == [0, 0, 0.5]
    assert buckets.take("b", 0) == 0
    assert [buckets.take("a", 0.5), buckets.take("a", 0.5)] == [0, 0.5]
    assert [buckets.take("a", 100) for _ in range(3)] == [0, 0, 0.5]
