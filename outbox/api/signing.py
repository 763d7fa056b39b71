"""/v2/postbackconfigs/{id}/secret: what signs a config's requests. A secret is in one answer, and in no other."""

from aiohttp import web

from outbox.api.body import json_body
from outbox.api.errors import RefusedError
from outbox.api.identity import connection
from outbox.api.keys import SECRET_BOX, USER
from outbox.api.postbackconfigs import PATH as CONFIGS
from outbox.api.postbackconfigs import config_id
from outbox.core.signing import DEFAULT_OVERLAP, MOST_OVERLAP
from outbox.postgres import signing

KEY = "secret"
PATH = CONFIGS + "/{id}/secret"


def add_routes(app: web.Application) -> None:
    """Add the resource's routes."""
    app.router.add_post(PATH, _make)
    app.router.add_post(PATH + "/rotate", _rotate)
    app.router.add_delete(PATH, _remove)


async def _make(request: web.Request) -> web.Response:
    async with connection(request) as conn:
        made = await signing.make(
            conn, config_id(request), request.app[SECRET_BOX], locations=request[USER].location_ids
        )
    return _told(made)


async def _rotate(request: web.Request) -> web.Response:
    overlap = _overlap(await json_body(request, KEY))
    async with connection(request) as conn:
        made = await signing.rotate(
            conn,
            config_id(request),
            request.app[SECRET_BOX],
            overlap=overlap,
            locations=request[USER].location_ids,
        )
    return _told(made)


async def _remove(request: web.Request) -> web.Response:
    async with connection(request) as conn:
        await signing.remove(conn, config_id(request), locations=request[USER].location_ids)
    return web.Response(status=204)


def _overlap(raw: dict[str, object]) -> int:
    for name in raw:
        if name != "overlap":
            raise RefusedError(422, f"{name} is not a field here. Accepted: overlap.", field=name)
    overlap = raw.get("overlap", DEFAULT_OVERLAP)
    if not isinstance(overlap, int) or isinstance(overlap, bool) or not 0 <= overlap <= MOST_OVERLAP:
        raise RefusedError(422, f"overlap must be a whole number of seconds from 0 to {MOST_OVERLAP}.", field="overlap")
    return overlap


def _told(secret: str) -> web.Response:
    return web.json_response({KEY: secret}, status=201)
