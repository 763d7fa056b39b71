"""/v2/postbacklogs: what became of the deliveries, and sending them again. Always within the user's locations."""

import re
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from aiohttp import web
from psycopg import AsyncConnection

from outbox.api import lists
from outbox.api.body import json_body
from outbox.api.errors import RefusedError
from outbox.api.identity import connection
from outbox.api.keys import USER
from outbox.core.config_rules import InvalidConfigError
from outbox.postgres import history, listing
from outbox.postgres.configs import DeletedConfigError, UnknownConfigError
from outbox.postgres.history import DeliveryKey, Summary, Try
from outbox.postgres.replay import NARROWING, REPLAYABLE, replay
from outbox.postgres.selection import Filter, Order, Position, State

KEY = "postbacklog"
PATH = "/v2/postbacklogs"
COUNTED = 1000
"""Rows that a list counts at most; more is told as `totalCountIsCapped`. Only the first page counts.

Pages by number reach as far: in the worst case each config is asked for that many rows.
"""
NEW, WAITING, DELIVERED, DEAD = 1, 2, 3, 4
SORTS: Mapping[str, Order] = {"created_ts": Order.CAPTURED, "state_ts": Order.FILED}
"""Fields that a list can be sorted by. By `created_ts` a log keeps its place, whatever becomes of it."""
_STATUSES = {"1": State.PENDING, "2": State.PENDING, "3": State.DELIVERED, "4": State.DEAD}

FIELDS: Mapping[str, tuple[str, str]] = {
    "id": ("string", "EVENT.CONFIG: changelog_id and postback_config_id with a dot between."),
    "postback_config_id": ("string", "The config."),
    "changelog_id": ("string", "The event; the webhook-id of its postbacks."),
    "postback_status_id": (
        "integer", "1 new, 2 in progress or waiting for its next try, 3 delivered, 4 dead; null when it was withdrawn."
    ),
    "http_verb": ("string", "POST."),
    "next_run_ts": ("integer", "When it may be tried, in epoch seconds; null when nothing is owed."),
    "created_ts": ("integer", "When the event was captured, in epoch seconds."),
    "model": ("string", "The resource, capitalised; null when the event is no longer kept."),
    "model_id": ("string", "The record's id."),
    "type": ("string", "CREATE, UPDATE or DELETE."),
    "state_ts": ("integer", "When it was delivered or died; of one still owed, was captured."),
    "number_of_attempts": ("integer", "Tries begun, over all replays."),
    "last_error": ("string", "Why the last try failed."),
}  # fmt: skip
"""The fields of a log, each with its type and meaning. One log alone also has `tries`."""
TRY_FIELDS: Mapping[str, tuple[str, str]] = {
    "number": ("integer", "From 1, counted over replays."),
    "created_ts": ("integer", "When it began, in epoch seconds."),
    "duration_ms": ("integer", "How long it took."),
    "outcome": ("string", "delivered, retry or dead."),
    "status": ("integer", "The HTTP status; null when there was no answer."),
    "error": ("string", "Why it failed."),
    "response": ("string", "The beginning of the answer."),
}
"""The fields of a try."""
FILTERS: Mapping[str, str] = {
    "postback_config_id": "The logs of this config, or of these, separated by commas.",
    "postback_status_id": "Of these statuses, separated by commas; 1 and 2 together or one of them.",
    "model": "Of this resource, its first letter small or capital, or of these, separated by commas.",
    "model_id": "Of the record with this id, or of these, separated by commas; an id may itself have commas.",
    "changelog_id": "Of this event, or of these, separated by commas.",
    "created_ts": "A range in epoch seconds: one or two of >=N, >N, <N, <=N, with a comma; or N for that second.",
    "state_ts": "The same, of state_ts.",
}
"""What lists and replays can be narrowed by."""

_RANGE = re.compile(r"(>=|>|<=|<|)([0-9]{1,10})")


class _UnknownLogError(RefusedError):
    """There is no such log, or it is of another location: nobody is told which."""

    def __init__(self) -> None:
        super().__init__(404, "There is no postback log with this id.", field="id")


def add_routes(app: web.Application) -> None:
    """Add the resource's routes."""
    app.router.add_get(PATH, _list)
    app.router.add_post(PATH + "/replay", _replay_chosen)
    # An id has a dot: so `replay` is none, and GET there is 405.
    app.router.add_get(PATH + r"/{id:[^{}/]*\.[^{}/]*}", _show)
    app.router.add_post(PATH + r"/{id:[^{}/]*\.[^{}/]*}/replay", _replay_one)


def to_document(summary: Summary) -> dict[str, Any]:
    """Return a log in the API's form."""
    status = {State.DEAD: DEAD, State.DELIVERED: DELIVERED, State.PENDING: WAITING if summary.attempts else NEW}
    return {
        "id": str(summary.key),
        "postback_config_id": str(summary.config_id),
        "changelog_id": str(summary.event_id),
        "postback_status_id": status.get(summary.state),
        "http_verb": "POST",
        "next_run_ts": None if summary.due_at is None else _seconds(summary.due_at),
        "created_ts": _seconds(summary.event_created_at),
        # Only the first letter: what follows is the application's own spelling.
        "model": None if summary.resource is None else summary.resource[:1].upper() + summary.resource[1:],
        "model_id": summary.resource_id,
        "type": summary.type,
        "state_ts": _seconds(summary.state_at),
        "number_of_attempts": summary.attempts,
        "last_error": summary.last_error,
    }


async def _list(request: web.Request) -> web.Response:
    ranges = [name for name in SORTS if name in request.query]
    default = ranges[0] if ranges else "created_ts"
    page = lists.read_page(request, filters=FILTERS, sorts=tuple(SORTS), default=f"-{default}", reach=COUNTED)
    if ranges and page.sort not in ranges:
        # It would read all that is in the order and not in the range.
        raise lists.refuse(
            "sort", f"must be {ranges[0]} or -{ranges[0]} where that is a filter and {page.sort} is none."
        )
    lists.expansions(request, ())
    chosen = _chosen(request, {name: request.query[name] for name in FILTERS if name in request.query})
    order = SORTS[page.sort]
    after, counted = (None, None) if page.after is None else _cursor(page.after)
    async with connection(request) as conn:
        total, capped = counted or await history.count(conn, chosen, most=COUNTED + 1)
        found = await history.deliveries(
            conn, chosen, limit=page.offset + page.size + 1, after=after, order=order, oldest_first=not page.descending
        )
    rows = found[page.offset :][: page.size]
    total = min(total, COUNTED)
    following = None
    if len(found) > page.offset + page.size:
        at, event, config = rows[-1].position(order)
        counts = ("more" if capped else "all", str(total))
        following = (at.astimezone(UTC).isoformat(), str(event), str(config), *counts)
    meta = lists.meta(request, page, total=total, capped=capped, following=following)
    return web.json_response({KEY + "s": [to_document(each) for each in rows], "meta": meta})


async def _show(request: web.Request) -> web.Response:
    for name in request.query:
        raise lists.refuse(name, "is not a parameter here; none is accepted.")
    key = _key(request)
    async with connection(request) as conn:
        await _check_owner(conn, request, key)
        detail = await history.delivery(conn, key, locations=request[USER].location_ids)
    if detail is None:
        raise _UnknownLogError
    document = to_document(detail.summary)
    document["tries"] = [_try(each) for each in detail.tries]
    return web.json_response({KEY: document})


async def _replay_one(request: web.Request) -> web.Response:
    key = _key(request)
    chosen = Filter(states=REPLAYABLE, event=key.event_id, config=key.config_id, locations=request[USER].location_ids)
    async with connection(request) as conn:
        await _check_owner(conn, request, key)
        if await history.delivery(conn, key) is None:
            raise _UnknownLogError
        replayed = await replay(conn, chosen)
        if not replayed:
            raise RefusedError(
                409, "It can not be replayed: it is still owed, or its config or its event is gone.", field="id"
            )
    return web.json_response({"replay": {"count": replayed, "dry_run": False}}, status=202)


async def _replay_chosen(request: web.Request) -> web.Response:
    raw = await json_body(request, "replay")
    dry_run = raw.pop("dry_run", False)
    errors = {
        name: [f"{name} is not a field here. Accepted: dry_run, {', '.join(FILTERS)}."]
        for name in raw if name not in FILTERS
    } | {
        name: [f"{name} must be a string or a whole number."]
        for name, value in raw.items() if isinstance(value, bool) or not isinstance(value, str | int)
    }  # fmt: skip
    if not isinstance(dry_run, bool):
        errors["dry_run"] = ["dry_run must be true or false."]
    if not raw:
        errors["replay"] = [f"replay must be narrowed by one of {', '.join(FILTERS)} at least."]
    if errors:
        raise InvalidConfigError(errors)
    chosen = _chosen(request, {name: str(value) for name, value in raw.items()})
    states = [state for state in REPLAYABLE if state in chosen.states]
    # Without a status it is what died: to send everything delivered once more, one must say so.
    if "postback_status_id" not in raw:
        states = [State.DEAD]
    if not states:
        raise lists.refuse("postback_status_id", "must be of 3 and 4: what is still owed is not replayed.")
    if State.DELIVERED in states and all(getattr(chosen, name) is None for name in NARROWING):
        raise lists.refuse(
            "postback_status_id",
            "3 by itself would send the whole history again: add postback_config_id, changelog_id, model_id, or a "
            "lower bound of created_ts or state_ts.",
        )
    async with connection(request) as conn:
        count = await replay(conn, replace(chosen, states=states), dry_run=dry_run)
    return web.json_response({"replay": {"count": count, "dry_run": dry_run}}, status=200 if dry_run else 202)


def _chosen(request: web.Request, given: Mapping[str, str]) -> Filter:
    """Return the filter within the user's locations; RefusedError 422 says what is wrong with a value."""
    for name, text in given.items():
        if not text or not lists.is_text(text):
            raise lists.refuse(name, "must be a text without NUL and half characters, and not empty.")
    statuses = set(given.get("postback_status_id", "1,2,3,4").split(","))
    if not statuses <= _STATUSES.keys():
        raise lists.refuse("postback_status_id", "must be of 1, 2, 3 and 4, separated by commas.")
    created, filed = (_range(name, given.get(name)) for name in ("created_ts", "state_ts"))
    return Filter(
        states={_STATUSES[each] for each in statuses},
        tried=None if {"1", "2"} <= statuses else "2" in statuses,
        config=_uuids("postback_config_id", given.get("postback_config_id")),
        event=_uuids("changelog_id", given.get("changelog_id")),
        # The key of several columns is an id with commas.
        record=None if (record := given.get("model_id")) is None else (record, *record.split(",")),
        resource=None if (model := given.get("model")) is None else _resources(model),
        since=filed[0],
        until=filed[1],
        created_since=created[0],
        created_until=created[1],
        locations=request[USER].location_ids,
    )


def _range(name: str, text: str | None) -> tuple[datetime | None, datetime | None]:
    since = until = None
    for part in [] if text is None else text.split(","):
        found = _RANGE.fullmatch(part)
        if found is None:
            raise lists.refuse(name, "must be like >=1700000000 or >=1700000000,<1700003600, in epoch seconds.")
        sign, second = found[1], int(found[2])
        if (since is not None and not sign.startswith("<")) or (until is not None and not sign.startswith(">")):
            raise lists.refuse(name, "must be one range: a lower and an upper bound, one of them, or one second.")
        if not sign.startswith("<"):
            since = _time(second + (sign == ">"))
        if not sign.startswith(">"):
            until = _time(second + (sign != "<"))
    return since, until


def _time(second: int) -> datetime:
    return datetime.fromtimestamp(second, UTC)


def _uuids(name: str, text: str | None) -> tuple[UUID, ...] | None:
    try:
        return None if text is None else tuple(map(UUID, text.split(",")))
    except ValueError:
        raise lists.refuse(name, "must be a UUID, or several, separated by commas.") from None


def _resources(text: str) -> tuple[str, ...]:
    """Return what these models may be called: a model is the resource with its first letter capital."""
    return tuple(
        first + model[1:] for model in text.split(",") if model for first in (model[:1].lower(), model[:1].upper())
    )


def _cursor(cursor: tuple[str, ...]) -> tuple[Position, tuple[int, bool]]:
    """Return where the list goes on, and what the first page had counted."""
    try:
        at, event, config, more, total = cursor
        when = datetime.fromisoformat(at)
        if when.tzinfo is None or more not in {"more", "all"} or not re.fullmatch(r"[0-9]{1,9}", total):
            raise ValueError  # noqa: TRY301 - the one answer for all that is no cursor
        return Position(when, UUID(event), UUID(config)), (int(total), more == "more")
    except ValueError:
        raise lists.refuse("after", "must be taken from links.next as it is.") from None


def _key(request: web.Request) -> DeliveryKey:
    try:
        return DeliveryKey.parse(request.match_info["id"])
    except ValueError:
        raise _UnknownLogError from None


async def _check_owner(conn: AsyncConnection, request: web.Request, key: DeliveryKey) -> None:
    """Raise unless the log's config is one that the user may see, deleted or not."""
    try:
        await listing.visible(conn, key.config_id, request[USER].location_ids)
    except DeletedConfigError:
        return
    except UnknownConfigError:
        raise _UnknownLogError from None


def _try(each: Try) -> dict[str, Any]:
    return {
        "number": each.number,
        "created_ts": _seconds(each.at),
        "duration_ms": each.duration_ms,
        "outcome": each.outcome,
        "status": each.status,
        "error": each.error,
        "response": each.answer,
    }


def _seconds(at: datetime) -> int:
    return int(at.timestamp())
