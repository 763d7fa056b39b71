"""/v2/postbackconfigs: subscriptions. What one may hold is decided in core/config_rules.py."""

import re
from collections.abc import Mapping
from typing import Any
from uuid import UUID

import psycopg
from aiohttp import web
from psycopg import AsyncConnection

from outbox.api import lists, postbacklogs
from outbox.api.body import json_body
from outbox.api.errors import RefusedError
from outbox.api.identity import connection
from outbox.api.keys import SECRET_BOX, SETTINGS, USER
from outbox.core.config_document import TROUBLES, to_document
from outbox.core.config_rules import FIELDS, Value, validate
from outbox.core.model import PostbackConfig, User
from outbox.http.guard import Guard
from outbox.postgres import configs, history, listing
from outbox.postgres.configs import UnknownConfigError
from outbox.postgres.selection import Filter

KEY = "postbackconfig"
PATH = "/v2/postbackconfigs"
EXPANSIONS = ("postback_logs", "basic_auth_username")
LATEST_LOGS = 10
MOST_WITH_LOGS = 50
"""Configs of one page whose logs can be asked for with them: each is a query of its own."""
MOST_OF_LOCATION = 1000
"""Configs that a user's location may have. Each change of one of its records is routed to all that want it, and others'
changes wait for that. Operators may make more."""

_UUID = re.compile(r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")
_BOOLEANS = {"1": "true", "true": "true", "0": "false", "false": "false"}
READ_ONLY = ("id", "paused", "signed", *TROUBLES, "created_ts", "modified_ts", "_links")
"""What an answer has beside the fields; a body may repeat it as it is."""


def add_routes(app: web.Application) -> None:
    """Add the resource's routes."""
    app.router.add_post(PATH, _create)
    app.router.add_get(PATH, _list)
    app.router.add_get(PATH + "/{id}", _show)
    app.router.add_put(PATH + "/{id}", _change)
    app.router.add_delete(PATH + "/{id}", _remove)


async def _create(request: web.Request) -> web.Response:
    raw = await json_body(request, KEY)
    fields = _validated(request, raw, None)
    async with connection(request) as conn:
        await _check_number(request, conn, fields)
        config = await configs.add(conn, fields, request.app[SECRET_BOX])
    document = _document(request, config)
    return web.json_response({KEY: document}, status=201, headers={"Location": document["_links"]["self"]["href"]})


async def _list(request: web.Request) -> web.Response:
    page = lists.read_page(request, filters=listing.COLUMNS, sorts=listing.COLUMNS, default="created_ts")
    expand = lists.expansions(request, EXPANSIONS)
    if "postback_logs" in expand and page.size > MOST_WITH_LOGS:
        raise lists.refuse("page_size", f"must be {MOST_WITH_LOGS} at most with expand=postback_logs.")
    filters = {name: _texts(name, request.query[name]) for name in listing.COLUMNS if name in request.query}
    if page.after is not None:
        _check_cursor(page)
    async with connection(request) as conn:
        try:
            found, total, following = await listing.page(
                conn,
                request[USER].location_ids,
                filters,
                sort=page.sort,
                descending=page.descending,
                limit=page.size,
                offset=page.offset,
                after=page.after,
            )
        except psycopg.DataError:
            # What stands in a cursor is cast by the database alone.
            if page.after is None:
                raise
            raise _no_cursor() from None
        documents = [await _expanded(request, conn, config, expand) for config in found]
    meta = lists.meta(request, page, total=total, capped=False, following=following)
    return web.json_response({KEY + "s": documents, "meta": meta})


async def _show(request: web.Request) -> web.Response:
    _only_expand(request)
    expand = lists.expansions(request, EXPANSIONS)
    async with connection(request) as conn:
        config = await listing.visible(conn, config_id(request), request[USER].location_ids)
        return web.json_response({KEY: await _expanded(request, conn, config, expand)})


async def _change(request: web.Request) -> web.Response:
    raw = await json_body(request, KEY)
    async with connection(request) as conn, conn.transaction():
        # Locked, so that what is judged together with the change is still so when it is made.
        current = await listing.visible(conn, config_id(request), request[USER].location_ids, lock=True)
        shown = _document(request, current)
        # Who sends back what he read has changed nothing of it, and what is stored already is not judged anew.
        wanted = {
            name: value
            for name, value in raw.items()
            if name not in shown
            or value != shown[name]
            or type(value) is not type(shown[name])
            # Who sends nothing else means it: it closes a circuit.
            or raw.keys() == {"is_active"}
        }
        fields = _validated(request, wanted, current)
        config = current
        if fields.get("location_id", current.location_id) != current.location_id:
            await _check_number(request, conn, fields)
        if fields:
            config = await configs.edit(
                conn, current.id, fields, request.app[SECRET_BOX], locations=request[USER].location_ids
            )
    return web.json_response({KEY: _document(request, config)})


async def _remove(request: web.Request) -> web.Response:
    locations = request[USER].location_ids
    async with connection(request) as conn:
        config = await listing.visible(conn, config_id(request), locations)
        await configs.remove(conn, config.id, locations=locations)
    return web.Response(status=204)


def _validated(request: web.Request, raw: dict[str, Any], current: PostbackConfig | None) -> dict[str, Value]:
    user = request[USER]
    fields = validate(
        raw,
        min_attempt_interval=request.app[SETTINGS].min_attempt_interval,
        # Whose locations are whose is no question of form: it is answered below, with 403.
        any_location=True,
        current=current,
        url_fault=Guard.of(request.app[SETTINGS]).url_fault,
    )
    if "location_id" in fields:
        check_location(user, fields["location_id"])
    return fields


def check_location(user: User, location: Value) -> None:
    """Raise RefusedError 403 unless the location is the user's; null, for all of them, is an operator's."""
    if user.location_ids is not None and location not in user.location_ids:
        raise RefusedError(403, "location_id must be a location of yours.", field="location_id")


async def _check_number(request: web.Request, conn: AsyncConnection, fields: Mapping[str, Value]) -> None:
    """Raise RefusedError 422 where a user's location has as many configs as it may."""
    location = fields["location_id"]
    if request[USER].location_ids is None or not isinstance(location, str):
        return
    if await configs.number_of(conn, location) >= MOST_OF_LOCATION:
        raise RefusedError(422, f"location_id has {MOST_OF_LOCATION} configs already.", field="location_id")


def config_id(request: web.Request) -> UUID:
    """Return the id in the path; UnknownConfigError when it is none."""
    text = request.match_info["id"]
    if not _UUID.fullmatch(text):
        raise UnknownConfigError("There is no config with this id.")
    return UUID(text)


def _only_expand(request: web.Request) -> None:
    for name in request.query:
        if name != "expand":
            raise lists.refuse(name, "is not a parameter here. Accepted: expand.")


def _document(request: web.Request, config: PostbackConfig) -> dict[str, Any]:
    href = str(lists.address(request).origin().with_path(f"{PATH}/{config.id}"))
    document: dict[str, Any] = to_document(config) | {"_links": {"self": {"href": href}}}
    # The source document's answer has none of these: they come only where they say something.
    silent = {name: field.default for name, field in FIELDS.items() if field.beyond_contract}
    silent |= {"product_transaction_id": None, "paused": "0", "signed": "0", **dict.fromkeys(TROUBLES)}
    for name, value in silent.items():
        if document[name] == value:
            del document[name]
    return document


async def _expanded(
    request: web.Request, conn: AsyncConnection, config: PostbackConfig, expand: set[str]
) -> dict[str, Any]:
    document = _document(request, config)
    if "basic_auth_username" in expand:
        token = config.basic_auth_username
        document["basic_auth_username"] = None if token is None else request.app[SECRET_BOX].open(token)
    if "postback_logs" in expand:
        chosen = Filter(config=config.id, locations=request[USER].location_ids)
        latest = await history.deliveries(conn, chosen, limit=LATEST_LOGS)
        document["postback_logs"] = [postbacklogs.to_document(each) for each in latest]
    return document


def _texts(name: str, text: str) -> list[str]:
    """Return the values that a filter names, as the database writes them."""
    texts = text.split(",")
    kind = FIELDS[name].kind if name in FIELDS else "uuid" if name == "id" else "integer"
    if not lists.is_text(text):
        raise lists.refuse(name, "must not contain NUL or half a character.")
    match kind:
        case "boolean":
            if not set(texts) <= _BOOLEANS.keys():
                raise lists.refuse(name, "must be of 1, 0, true and false, separated by commas.")
            return [_BOOLEANS[each] for each in texts]
        case "integer":
            if not all(re.fullmatch(r"[0-9]{1,12}", each) for each in texts):
                raise lists.refuse(name, "must be whole numbers, separated by commas.")
            return [str(int(each)) for each in texts]
        case "uuid":
            if not all(_UUID.fullmatch(each) for each in texts):
                raise lists.refuse(name, "must be UUIDs, separated by commas.")
            return [each.lower() for each in texts]
        case _:
            return texts


def _check_cursor(page: lists.Page) -> None:
    try:
        _, last = page.after or ()
        UUID(last)
    except ValueError:
        raise _no_cursor() from None


def _no_cursor() -> RefusedError:
    return lists.refuse("after", "must be taken from links.next as it is.")
