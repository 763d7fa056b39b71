"""What every request passes: ids, one form of errors, strict bodies, one line in the log, the database's outages."""

import asyncio
import io
import json
from uuid import UUID

import psycopg
import pytest
import structlog
from aiohttp import web
from structlog.testing import capture_logs

from outbox.api.body import json_body
from outbox.api.keys import LINKS
from outbox.api.server import add_health
from outbox.core.config_rules import InvalidConfigError
from outbox.postgres.pool import Links
from outbox.settings import Settings
from tests.apis import new_user, serving

JSON = {"Content-Type": "application/json"}


async def _echo(request: web.Request) -> web.Response:
    return web.json_response(await json_body(request, "thing"))


async def _invalid(_request: web.Request) -> web.Response:
    raise InvalidConfigError({"url": ["url is wrong."], "format": ["format is wrong."]})


async def _broken(_request: web.Request) -> web.Response:
    structlog.get_logger("outbox").info("inside")
    raise RuntimeError("secret detail")


async def _query(request: web.Request) -> web.Response:
    async with request.app[LINKS].connection() as conn:
        await conn.execute("select %s::text", (request.query.get("text", ""),))
    return web.json_response({})


def _prepare(app: web.Application) -> None:
    app.router.add_post("/v2/echo/{id}", _echo)
    app.router.add_get("/v2/invalid", _invalid)
    app.router.add_get("/v2/broken", _broken)
    app.router.add_get("/v2/query", _query)
    add_health(app)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"thing": {"a": [1, "\xc3\xa9"]}}', 200),
        (b"{", 400),
        (b"", 400),
        (b'{"thing": {"a": 1, "a": 1}}', 400),
        (b'{"thing": {"a": NaN}}', 400),
        (b'{"thing": {"a": 1e999}}', 400),
        (b'{"thing": {"a": ' + b"9" * 5000 + b"}}", 400),
        (b'{"thing": {"a": "\\u0000"}}', 400),
        (b'{"thing": {"a": "\\ud800"}}', 400),
        (b'{"thing": {"\\udfff": 1}}', 400),
        (b'{"thing": "\xff"}', 400),
        (b'{"thing": ' + b"[" * 17 + b"]" * 17 + b"}", 400),
        (b"[" * 60_000, 400),
        (b'{"thing": ' + b'{"a":' * 10_000 + b"1" + b"}" * 10_001, 400),
        (b'{"thing": "' + b"a" * 65_536 + b'"}', 413),
        (b"x" * 10_000_000, 413),
        (b'{"thing": []}', 422),
        (b'{"thing": {}, "more": 1}', 422),
        (b'{"other": {}}', 422),
        (b"[]", 422),
        (b"null", 422),
    ],
    ids=lambda value: repr(value)[:30],
)
async def test_a_body_is_read_strictly(db: str, body: bytes, status: int) -> None:
    """What is no strict JSON of moderate size, in its envelope, is refused, in the one form of errors."""
    user = await new_user(db, "L")
    async with serving(Settings(dsn=db), _prepare) as client:
        answer = await client.post("/v2/echo/1", data=io.BytesIO(body), headers=user | JSON)
        found = json.loads(await answer.read())
        assert (answer.status, found) == (200, {"a": [1, "é"]}) if status == 200 else (status, found)
        if status != 200:
            [messages] = found["errors"].values()
            assert all(isinstance(each, str) for each in messages)


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded", "application/json; charset=utf-7"])
async def test_another_content_type_is_415(db: str, kind: str) -> None:
    """A body is JSON by its label too."""
    user = await new_user(db, "L")
    async with serving(Settings(dsn=db), _prepare) as client:
        answer = await client.post("/v2/echo/1", data=b'{"thing": {}}', headers=user | {"Content-Type": kind})
        assert answer.status == 415


async def test_errors_have_one_form_and_an_id(db: str) -> None:
    """Unknown address, wrong method, invalid config, a bug: `errors` and a request-id; of a bug nothing else."""
    user = await new_user(db, "L")
    async with serving(Settings(dsn=db), _prepare) as client:
        seen = {}
        with capture_logs():
            for path in ("/nowhere", "/v2/nowhere", "/v2/echo/1", "/v2/invalid", "/v2/broken", "/v2/query?text=%00"):
                answer = await client.get(path, headers=user)
                UUID(answer.headers["request-id"])
                seen[path] = (answer.status, (await answer.json())["errors"])
        assert [status for status, _ in seen.values()] == [404, 404, 405, 422, 500, 400]
        assert seen["/v2/invalid"][1] == {"url": ["url is wrong."], "format": ["format is wrong."]}
        assert "secret" not in str(seen["/v2/broken"])
        answer = await client.get("/v2/echo/1", headers=user)
        assert answer.headers["Allow"] == "POST"


async def test_no_answer_is_kept_on_its_way(db: str) -> None:
    """No cache may give it to another, no browser guess what it is, nobody learn of which release the server is."""
    user = await new_user(db, "L")
    async with serving(Settings(dsn=db), _prepare) as client:
        for path, headers in (
            ("/v2/postbackconfigs", user),
            ("/v2/postbackconfigs", {}),
            ("/nowhere", {}),
            ("/docs", {}),
        ):
            answer = await client.get(path, headers=headers)
            told = [answer.headers[name] for name in ("Cache-Control", "X-Content-Type-Options", "Server")]
            assert told == ["no-store", "nosniff", "outbox"]


async def test_each_request_has_one_line_and_its_id_on_all_lines(db: str) -> None:
    """The line names the route, not what the URL held; what the handler logs bears the same id."""
    user = await new_user(db, "L")
    async with serving(Settings(dsn=db), _prepare) as client:
        with capture_logs(processors=[structlog.contextvars.merge_contextvars]) as lines:
            first = await client.get("/v2/broken?token=hidden", headers=user)
            second = await client.post("/v2/echo/hidden", json={"thing": {}}, headers=user)
    ids = [each.headers["request-id"] for each in (first, second)]
    assert [line["event"] for line in lines] == ["inside", "request.failed", "request.answered", "request.answered"]
    assert [line["request_id"] for line in lines] == [ids[0]] * 3 + [ids[1]]
    last = lines[-1]
    told = [last[key] for key in ("method", "route", "status", "user_id")]
    assert told == ["POST", "/v2/echo/{id}", 200, user["user-id"]]
    assert "hidden" not in str(lines)


async def test_an_outage_is_503_and_passes(db: str, conn: psycopg.Connection) -> None:
    """A connection that was lost costs one answer, with the advice to try again; the next one works."""
    user = await new_user(db, "L")
    async with serving(Settings(dsn=db), _prepare) as client:
        assert (await client.get("/v2/query", headers=user)).status == 200
        conn.execute(
            "select pg_terminate_backend(pid, 5000) from pg_stat_activity "
            "where application_name = 'outbox api' and datname = current_database()"
        )
        answer = await client.get("/v2/query", headers=user)
        assert (answer.status, answer.headers["Retry-After"]) == (503, "5")
        assert (await client.get("/v2/query", headers=user)).status == 200


async def test_readiness_follows_the_schema(db: str, conn: psycopg.Connection) -> None:
    """Without a sign-in: alive always, ready when the schema is the one that this program knows."""
    async with serving(Settings(dsn=db), _prepare) as client:
        assert [(await client.get(path)).status for path in ("/livez", "/readyz")] == [200, 200]
        conn.execute("update outbox.migrations set version = 999 where version = 4")
        try:
            assert (await client.get("/readyz")).status == 503
        finally:
            conn.execute("update outbox.migrations set version = 4 where version = 999")


async def test_links_are_lent_one_by_one_and_mended(db: str) -> None:
    """No more connections than said; a fault of a statement keeps the connection, an open transaction does not."""
    links = Links(db, "test", count=2)
    pids, most, busy = set(), 0, 0

    async def ask() -> None:
        nonlocal most, busy
        async with links.connection() as conn:
            busy += 1
            most = max(most, busy)
            pids.add(conn.info.backend_pid)
            await conn.execute("select pg_sleep(0.001)")
            busy -= 1

    await asyncio.gather(*(ask() for _ in range(20)))
    assert (most, len(pids)) == (2, 2)
    with pytest.raises(psycopg.errors.DivisionByZero):
        async with links.connection() as conn:
            await conn.execute("select 1 / 0")
    async with links.connection() as conn:
        assert conn.info.backend_pid in pids
        await conn.execute("begin")
    async with links.connection() as conn:
        assert conn.info.backend_pid not in pids
    await links.close()
