"""The demo application's own API: /v2/contacts, beside the product's, whose sign-in it shares."""

import re
from collections.abc import Mapping
from datetime import date
from typing import Any

from aiohttp import web
from psycopg import AsyncConnection
from psycopg.rows import dict_row

from outbox.api.body import json_body
from outbox.api.errors import RefusedError
from outbox.api.keys import USER
from outbox.core.config_rules import InvalidConfigError
from outbox.demo import contacts
from outbox.demo.contacts import Record
from outbox.postgres.pool import Links

KEY = "contact"
PATH = "/v2/contacts"
CONTACTS = web.AppKey("CONTACTS", Links)
"""Connections of the application's role."""

_READ_ONLY = ("id", "created_ts", "modified_ts")
_FIELDS = tuple(name for name in contacts.COLUMNS if name not in _READ_ONLY)
_REQUIRED: Mapping[str, int] = {"last_name": 64, "location_id": 36}
_MOST_MESSAGE_TYPE = 4
_MOST_TEXT = 1000
_LISTED = 50


def add_routes(app: web.Application) -> None:
    """Add the resource's routes; `app[CONTACTS]` must be set."""
    app.router.add_post(PATH, _create)
    app.router.add_get(PATH, _list)
    app.router.add_get(PATH + "/{id}", _show)
    app.router.add_put(PATH + "/{id}", _change)
    app.router.add_delete(PATH + "/{id}", _remove)


async def _create(request: web.Request) -> web.Response:
    fields = _validated(request, await json_body(request, KEY), create=True)
    async with request.app[CONTACTS].connection() as conn:
        record = await contacts.create(conn, **fields)
    return web.json_response({KEY: _document(record)}, status=201)


async def _list(request: web.Request) -> web.Response:
    async with request.app[CONTACTS].connection() as conn:
        found = await _select(
            conn,
            "select * from contacts where %(all)s or location_id = any(%(locations)s) order by id desc limit %(limit)s",
            {**_locations(request), "limit": _LISTED},
        )
    return web.json_response({KEY + "s": [_document(each) for each in found]})


async def _show(request: web.Request) -> web.Response:
    async with request.app[CONTACTS].connection() as conn:
        return web.json_response({KEY: _document(await _one(conn, request))})


async def _change(request: web.Request) -> web.Response:
    raw = await json_body(request, KEY)
    async with request.app[CONTACTS].connection() as conn, conn.transaction():
        current = await _one(conn, request, lock=True)
        shown = _document(current)
        wanted = {name: value for name, value in raw.items() if name not in _READ_ONLY or value != shown[name]}
        fields = _validated(request, wanted, create=False)
        # Who saves what he read has changed nothing, not even modified_ts: no event.
        fields = {name: value for name, value in fields.items() if value != shown[name]}
        record = await contacts.change(conn, current["id"], **fields) if fields else current
    return web.json_response({KEY: _document(record)})


async def _remove(request: web.Request) -> web.Response:
    async with request.app[CONTACTS].connection() as conn, conn.transaction():
        await contacts.delete(conn, (await _one(conn, request, lock=True))["id"])
    return web.Response(status=204)


async def _one(conn: AsyncConnection, request: web.Request, *, lock: bool = False) -> Record:
    query = "select * from contacts where id = %(id)s and (%(all)s or location_id = any(%(locations)s))"
    found = []
    if re.fullmatch(r"[0-9a-f]{24}", request.match_info["id"]):
        values = {**_locations(request), "id": request.match_info["id"]}
        found = await _select(conn, query + " for update" * lock, values)
    if not found:
        raise RefusedError(404, "There is no contact with this id.", field="id")
    return found[0]


async def _select(conn: AsyncConnection, query: str, values: Mapping[str, object]) -> list[Record]:
    async with conn.cursor(row_factory=dict_row) as cursor:
        await cursor.execute(query.encode(), values)
        return await cursor.fetchall()


def _locations(request: web.Request) -> dict[str, object]:
    locations = request[USER].location_ids
    return {"all": locations is None, "locations": list(locations or ())}


def _document(record: Record) -> dict[str, Any]:
    return {name: value.isoformat() if isinstance(value, date) else value for name, value in record.items()}


def _validated(request: web.Request, raw: Mapping[str, Any], *, create: bool) -> dict[str, Any]:
    errors = {
        name: [f"{name} is not a field that can be set. Accepted: {', '.join(_FIELDS)}."]
        for name in raw
        if name not in _FIELDS
    }
    errors |= {name: [f"{name} is required."] for name in _REQUIRED if create and name not in raw}
    for name, value in raw.items():
        if name not in errors and (fault := _fault(name, value)):
            errors[name] = [f"{name} {fault}"]
    if errors:
        raise InvalidConfigError(errors)
    locations = request[USER].location_ids
    if "location_id" in raw and locations is not None and raw["location_id"] not in locations:
        raise RefusedError(403, "location_id must be a location of yours.", field="location_id")
    return dict(raw)


def _fault(name: str, value: object) -> str | None:
    if name == "email_trx_receipt":
        return None if isinstance(value, bool) else "must be true or false."
    if name == "header_message_type_id":
        fits = isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _MOST_MESSAGE_TYPE
        return None if fits else f"must be a whole number from 0 to {_MOST_MESSAGE_TYPE}."
    if name in _REQUIRED:
        fits = isinstance(value, str) and 1 <= len(value) <= _REQUIRED[name]
        return None if fits else f"must be a string of 1 to {_REQUIRED[name]} characters."
    if value is None:
        return None
    if name == "date_of_birth":
        return None if isinstance(value, str) and _is_date(value) else "must be a date as yyyy-mm-dd, or null."
    return (
        None
        if isinstance(value, str) and len(value) <= _MOST_TEXT
        else f"must be a string of at most {_MOST_TEXT} characters, or null."
    )


def _is_date(text: str) -> bool:
    try:
        date.fromisoformat(text)
    except ValueError:
        return False
    return re.fullmatch(r"\d{4}-\d{2}-\d{2}", text, re.ASCII) is not None
