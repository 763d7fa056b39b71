"""The API described: OpenAPI 3.1 at /openapi.json, and the same as a page at /docs. Made from the rules themselves."""

import html
from collections.abc import Iterable, Mapping
from typing import Any

from aiohttp import web

from outbox import __version__
from outbox.api import lists, postbackconfigs, postbacklogs, schemas, signing
from outbox.api.body import MAX_BYTES
from outbox.api.keys import SETTINGS
from outbox.postgres import listing

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code{background:#eee}"
    "td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}"
)
_POLICY = "default-src 'none'; style-src 'unsafe-inline'"

_REFUSALS: Mapping[int, str] = {
    400: "Broken: a body that is no strict JSON, a Host that is none, sign-in in the query; or sent by a browser "
    "for a page of another site. What is no HTTP at all, or has a line of more than 8190 bytes, gets it in plain text.",
    401: "Nobody signed in.",
    403: "The location is none of the user's.",
    404: "There is none, or it is of another location.",
    408: "The body did not come in time.",
    409: "It is deleted, or in a state that forbids it.",
    413: f"The body has more than {MAX_BYTES} bytes.",
    415: "The content type is not application/json in UTF-8, or the body is compressed.",
    422: "Values are wrong: each field with what is accepted.",
    429: "Too often.",
    500: "Something failed here; the message has a reference to the log.",
    503: "The database can not be reached now, or takes too long.",
}
_MORE_HEADERS = {
    401: ("WWW-Authenticate", "Authenticate"), 429: ("Retry-After", "RetryAfter"), 503: ("Retry-After", "RetryAfter"),
}  # fmt: skip
_EVERYWHERE = (400, 401, 429, 500, 503)
_WITH_BODY = (408, 413, 415, 422)
_SORT = "A field, with - in front for the reverse."


def add_routes(app: web.Application) -> None:
    """Add /openapi.json and /docs."""
    described = document(app[SETTINGS].min_attempt_interval)
    page = render(described)

    async def show_json(_request: web.Request) -> web.Response:
        return web.json_response(described)

    async def show_page(_request: web.Request) -> web.Response:
        return web.Response(text=page, content_type="text/html", headers={"Content-Security-Policy": _POLICY})

    app.router.add_get("/openapi.json", show_json)
    app.router.add_get("/docs", show_page)


def document(min_attempt_interval: int) -> dict[str, Any]:
    """Return the OpenAPI document. `min_attempt_interval`: seconds; the operator's floor."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "outbox",
            "version": __version__,
            "description": "Postback configs and the log of what they were sent. Sign in with the headers user-id and "
            "user-api-key, or with both as HTTP Basic. A user sees and touches only its locations. What is no address "
            "answers 404, and a method that an address does not have 405, with the header Allow.",
        },
        "security": [{"userId": [], "userKey": []}, {"basic": []}],
        "paths": _config_paths() | _secret_paths() | _log_paths() | _open_paths(),
        "components": {
            "securitySchemes": {
                "userId": {"type": "apiKey", "in": "header", "name": "user-id"},
                "userKey": {"type": "apiKey", "in": "header", "name": "user-api-key"},
                "basic": {"type": "http", "scheme": "basic"},
            },
            "headers": {
                "RequestId": _header("Of this request, in the log too.", {"type": "string", "format": "uuid"}),
                "RetryAfter": _header("Seconds to wait.", {"type": "integer", "minimum": 1}),
                "Authenticate": _header("How to sign in.", {"type": "string"}),
                "Location": _header("Of what was made.", {"type": "string", "format": "uri"}),
            },
            "responses": {f"Refused{status}": _refused(status, text) for status, text in _REFUSALS.items()},
            "schemas": schemas.components(min_attempt_interval),
        },
    }


def render(described: dict[str, Any]) -> str:
    """Return the document as an HTML page that asks no other server for anything."""
    text = html.escape
    parts = [
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>outbox API</title><style>{_STYLE}</style>',
        f"<h1>{text(described['info']['title'])} {text(described['info']['version'])}</h1>",
        f"<p>{text(described['info']['description'])}</p>",
    ]
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            parts.append(f"<h2><code>{method.upper()} {text(path)}</code></h2><p>{text(operation['summary'])}</p>")
            parts.append(_table({each["name"]: each["schema"] | each for each in operation["parameters"]}))
            answers = {
                code: described["components"]["responses"][each["$ref"].rpartition("/")[2]] if "$ref" in each else each
                for code, each in operation["responses"].items()
            }
            parts.append(_table(answers))
    for name, schema in described["components"]["schemas"].items():
        if table := _table(schema.get("properties", {})):
            parts.append(f"<h2>{text(name)}</h2>{table}")
    return "\n".join(parts) + "</html>\n"


def _table(rows: dict[str, Any]) -> str:
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(_kind(row))}"
        f"<td>{html.escape(row.get('description', ''))}"
        for name, row in rows.items()
    )
    return f"<table>{cells}</table>" if cells else ""


def _kind(row: dict[str, Any]) -> str:
    """Return what a value may be, in a few words."""
    if "enum" in row:
        return ", ".join(str(each).lower() if isinstance(each, bool) else str(each) for each in row["enum"])
    if "anyOf" in row:
        return " or ".join(_kind(each) for each in row["anyOf"])
    kinds = row.get("type", "")
    kind = kinds if isinstance(kinds, str) else " or ".join(kinds)
    limits = [str(row[name]) for name in ("minimum", "maximum") if name in row]
    return f"{kind} {' to '.join(limits)}" if len(limits) > 1 else kind


def _config_paths() -> dict[str, Any]:
    key, path, config = postbackconfigs.KEY, postbackconfigs.PATH, "PostbackConfig"
    one = _parameter("id", "The config's id.", schemas.CONFIG_ID, where="path")
    expand = _parameter(
        "expand",
        "What to add, separated by commas.",
        {"type": "array", "items": {"type": "string", "enum": list(postbackconfigs.EXPANSIONS)}},
    )
    filters = [
        _parameter(name, "A value, or several separated by commas: any of them.", schema)
        for name, schema in schemas.config_filters().items()
    ]
    made = _answer("Made.", _in(key, config))
    made["headers"]["Location"] = {"$ref": "#/components/headers/Location"}
    made["links"] = {
        operation: {"operationId": operation, "parameters": {"id": f"$response.body#/{key}/id"}}
        for operation in ("showPostbackconfig", "changePostbackconfig", "removePostbackconfig")
    }
    return {
        path: {
            "get": _operation(
                "listPostbackconfigs",
                "List configs.",
                {200: _answer("The page.", _list_of(key, config))},
                (422,),
                parameters=[
                    *_paging(lists.REACH),
                    expand,
                    _parameter("sort", _SORT, schemas.sorts(listing.COLUMNS)),
                    *filters,
                ],
            ),
            "post": _operation(
                "createPostbackconfig", "Create a config.", {201: made}, (403,), body=_in(key, config + "Create")
            ),
        },
        path + "/{id}": {
            "get": _operation(
                "showPostbackconfig",
                "Show a config.",
                {200: _answer("The config.", _in(key, config))},
                (404, 409, 422),
                parameters=[one, expand],
            ),
            "put": _operation(
                "changePostbackconfig",
                "Change the fields that the body names. What is read-only may be sent back as it was.",
                {200: _answer("The config as it is now.", _in(key, config))},
                (403, 404, 409),
                parameters=[one],
                body=_in(key, config + "Change"),
            ),
            "delete": _operation(
                "removePostbackconfig",
                "Delete a config and what it is owed.",
                {204: _answer("Deleted.")},
                (404, 409),
                parameters=[one],
            ),
        },
    }


def _secret_paths() -> dict[str, Any]:
    one = _parameter("id", "The config's id.", schemas.CONFIG_ID, where="path")
    made = _answer("Made. It signs from now on.", _in_schema("Secret"))
    return {
        signing.PATH: {
            "post": _operation(
                "makeSecret",
                "Let the config's requests be signed (Standard Webhooks 1.0), with a secret that is shown this once.",
                {201: made},
                # 422: there is no OUTBOX_SECRET_KEY to seal it with.
                (404, 409, 422),
                parameters=[one],
            ),
            "delete": _operation(
                "removeSecret",
                "Let the config's requests be signed no more.",
                {204: _answer("They are not.")},
                (404, 409),
                parameters=[one],
            ),
        },
        signing.PATH + "/rotate": {
            "post": _operation(
                "rotateSecret",
                "Make another secret. For a while both sign: webhook-signature has one signature of each.",
                {201: made},
                (404, 409),
                parameters=[one],
                body=_in(signing.KEY, "Rotation"),
            )
        },
    }


def _log_paths() -> dict[str, Any]:
    key, path, log = postbacklogs.KEY, postbacklogs.PATH, "PostbackLog"
    one = _parameter("id", postbacklogs.FIELDS["id"][1], schemas.LOG_ID, where="path")
    filters = [_parameter(name, postbacklogs.FILTERS[name], schema) for name, schema in schemas.log_filters().items()]
    replayed = _in("replay", "Replayed")
    return {
        path: {
            "get": _operation(
                "listPostbacklogs",
                "List postback logs.",
                {200: _answer("The page.", _list_of(key, log))},
                (422,),
                parameters=[
                    *_paging(postbacklogs.COUNTED),
                    _parameter("sort", _SORT, schemas.sorts(tuple(postbacklogs.SORTS))),
                    *filters,
                ],
            )
        },
        path + "/{id}": {
            "get": _operation(
                "showPostbacklog",
                "Show a log with its tries.",
                {200: _answer("The log.", _in(key, log))},
                (404, 422),
                parameters=[one],
            )
        },
        path + "/{id}/replay": {
            "post": _operation(
                "replayPostbacklog",
                "Send it once more.",
                {202: _answer("It is owed again.", replayed)},
                (404, 409),
                parameters=[one],
            )
        },
        path + "/replay": {
            "post": _operation(
                "replayPostbacklogs",
                "Send all once more that a filter chooses: the dead ones, unless postback_status_id says otherwise.",
                {
                    200: _answer("Counted only: dry_run.", replayed),
                    202: _answer("They are owed again.", replayed),
                },
                body=_in("replay", "Replay"),
            )
        },
    }


def _open_paths() -> dict[str, Any]:
    """Return what needs no sign-in."""
    ready = _in_schema("Readiness")
    return {
        "/livez": _open("isAlive", "Whether the process lives.", {200: _answer("It does.", _in_schema("Health"))}),
        "/readyz": _open(
            "isReady",
            "Whether it does its work: the database answers, and its schema fits.",
            {200: _answer("It does.", ready), 503: _answer("It does not, and why.", ready)},
        ),
    }


def _open(name: str, summary: str, answers: dict[int, Any]) -> dict[str, Any]:
    described = {
        "operationId": name, "summary": summary, "security": [], "parameters": [],
        "responses": {str(status): answer for status, answer in answers.items()},
    }  # fmt: skip
    return {"get": described}


def _paging(reach: int) -> list[dict[str, Any]]:
    return [
        _parameter(
            "page",
            f"Times page_size up to {reach}; links.next leads on from any page, with after.",
            schemas.number(1, reach, 1),
        ),
        _parameter("page_size", "Rows of a page.", schemas.number(1, lists.MAX_PAGE_SIZE, lists.PAGE_SIZE)),
        _parameter(
            "after",
            "The cursor, as it stands in meta.pagination.links.next; no other is accepted.",
            {"type": "string", "pattern": "^[A-Za-z0-9_-]+$"},
        ),
    ]


def _parameter(name: str, text: str, schema: dict[str, Any], *, where: str = "query") -> dict[str, Any]:
    described = {"name": name, "in": where, "required": where == "path", "description": text, "schema": schema}
    return described | {"style": "form", "explode": False} if schema["type"] == "array" else described


def _operation(
    name: str,
    summary: str,
    answers: dict[int, dict[str, Any]],
    refusals: Iterable[int] = (),
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    refused = sorted({*_EVERYWHERE, *refusals, *(_WITH_BODY if body else ())})
    described: dict[str, Any] = {
        "operationId": name,
        "summary": summary,
        "parameters": parameters or [],
        "responses": {str(status): answer for status, answer in answers.items()}
        | {str(status): {"$ref": f"#/components/responses/Refused{status}"} for status in refused},
    }
    if body:
        described["requestBody"] = {"required": True, **_content(body)}
    return described


def _answer(text: str, schema: dict[str, Any] | None = None) -> dict[str, Any]:
    described = {"description": text, "headers": {"request-id": {"$ref": "#/components/headers/RequestId"}}}
    return described | _content(schema) if schema else described


def _refused(status: int, text: str) -> dict[str, Any]:
    described = _answer(text, _in_schema("Errors"))
    if status in _MORE_HEADERS:
        name, header = _MORE_HEADERS[status]
        described["headers"][name] = {"$ref": f"#/components/headers/{header}"}
    return described


def _header(text: str, schema: dict[str, Any]) -> dict[str, Any]:
    return {"description": text, "required": True, "schema": schema}


def _content(schema: dict[str, Any]) -> dict[str, Any]:
    return {"content": {"application/json": {"schema": schema}}}


def _in_schema(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def _in(key: str, schema: str) -> dict[str, Any]:
    return schemas.only({key: _in_schema(schema)}, [key])


def _list_of(key: str, schema: str) -> dict[str, Any]:
    items = {"type": "array", "items": _in_schema(schema)}
    return schemas.only({key + "s": items, "meta": _in_schema("Meta")}, [key + "s", "meta"])
