"""The API described: OpenAPI 3.1 at /openapi.json, and the same as a page at /docs. Made from the rules themselves."""

import html
from typing import Any

from aiohttp import web

from outbox import __version__
from outbox.api import lists, postbackconfigs, postbacklogs
from outbox.api.keys import SETTINGS
from outbox.core.config_rules import FIELDS, NEEDS_PRODUCT_TRANSACTION, Field
from outbox.postgres import listing

_STYLE = (
    "body{font:16px/1.5 sans-serif;max-width:60em;margin:2em auto;padding:0 1em}code{background:#eee}"
    "td,th{text-align:left;padding:.2em 1em .2em 0;vertical-align:top}"
)


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


_POLICY = "default-src 'none'; style-src 'unsafe-inline'"


def document(min_attempt_interval: int) -> dict[str, Any]:
    """Return the OpenAPI document. `min_attempt_interval`: seconds; the operator's floor."""
    settable = {name: _schema(field, min_attempt_interval) for name, field in FIELDS.items()}
    required = [name for name, field in FIELDS.items() if field.required]
    flag: dict[str, Any] = {"type": "string", "enum": ["0", "1"]}
    shown: dict[str, Any] = {
        name: flag if field.kind == "boolean" else {"type": [field.kind, "null"], "description": field.text}
        for name, field in FIELDS.items() if name != "basic_auth_password"
    } | {
        "id": {"type": "string", "format": "uuid"}, "paused": flag,
        "created_ts": {"type": "integer"}, "modified_ts": {"type": "integer"},
        "_links": _object({"self": _object({"href": {"type": "string", "format": "uri"}})}),
        "postback_logs": {"type": "array", "items": {"$ref": "#/components/schemas/PostbackLog"}},
    }  # fmt: skip
    log: dict[str, Any] = {
        name: {"type": [kind, "null"], "description": text} for name, (kind, text) in postbacklogs.FIELDS.items()
    }
    tries = {name: {"type": [kind, "null"], "description": t} for name, (kind, t) in postbacklogs.TRY_FIELDS.items()}
    log["tries"] = {"type": "array", "items": _object(tries)}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "outbox", "version": __version__,
            "description": "Postback configs and the log of what they were sent. Sign in with the headers user-id and "
            "user-api-key, or with both as HTTP Basic. A user sees and touches only its locations.",
        },
        "security": [{"userId": [], "userKey": []}, {"basic": []}],
        "paths": _paths(),
        "components": {
            "securitySchemes": {
                "userId": {"type": "apiKey", "in": "header", "name": "user-id"},
                "userKey": {"type": "apiKey", "in": "header", "name": "user-api-key"},
                "basic": {"type": "http", "scheme": "basic"},
            },
            "schemas": {
                "PostbackConfigCreate": _object(settable, required) | {
                    "if": {"properties": {"resource": {"enum": sorted(NEEDS_PRODUCT_TRANSACTION)}}},
                    "then": {"required": ["product_transaction_id"]},
                },
                "PostbackConfigChange": _object(
                    settable | {name: {} for name in ("id", "created_ts", "modified_ts", "_links")}
                ),
                "PostbackConfig": _object(shown),
                "PostbackLog": _object(log),
                "Replay": _object(
                    {
                        name: {"type": ["string", "integer"], "description": text}
                        for name, text in postbacklogs.FILTERS.items()
                    } | {"dry_run": {"type": "boolean", "description": "Only count."}}
                ),
                "Replayed": _object({"count": {"type": "integer"}, "dry_run": {"type": "boolean"}}),
                "Meta": {"type": "object"},
                "Errors": _object(
                    {"errors": {
                        "type": "object",
                        "additionalProperties": {"type": "array", "items": {"type": "string"}},
                    }}, ["errors"],
                ),
            },
        },
    }  # fmt: skip


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
            parts.append(_table({each["name"]: each for each in operation.get("parameters", [])}))
            codes = ", ".join(f"{code} {text(each['description'])}" for code, each in operation["responses"].items())
            parts.append(f"<p>Answers: {codes}</p>")
    for name, schema in described["components"]["schemas"].items():
        if table := _table(schema.get("properties", {})):
            parts.append(f"<h2>{text(name)}</h2>{table}")
    return "\n".join(parts) + "</html>\n"


def _table(rows: dict[str, Any]) -> str:
    cells = "".join(
        f"<tr><td><code>{html.escape(name)}</code><td>{html.escape(str(row.get('type', '')))}"
        f"<td>{html.escape(row.get('description', ''))}"
        for name, row in rows.items()
    )
    return f"<table>{cells}</table>" if cells else ""


def _paths() -> dict[str, Any]:
    configs, logs = postbackconfigs, postbacklogs
    one = [_parameter("id", "The id.", where="path")]
    expand = [_parameter("expand", f"Of {', '.join(configs.EXPANSIONS)}, separated by commas.")]
    paging = [
        _parameter("page", f"From 1; times page_size up to {lists.REACH}, of logs {logs.COUNTED}. Behind that: after."),
        _parameter("page_size", f"From 1 to {lists.MAX_PAGE_SIZE}; {lists.PAGE_SIZE} if not given."),
        _parameter("after", "The cursor, as it stands in meta.pagination.links.next."),
    ]
    columns = [_parameter(name, "A value, or several separated by commas: any of them.") for name in listing.COLUMNS]
    config, log = "PostbackConfig", "PostbackLog"
    sort = "A field, with - in front for the reverse: "
    return {
        configs.PATH: {
            "get": _operation(
                "List configs.", 200, _list_of(configs.KEY, config),
                parameters=[*paging, *expand, _parameter("sort", sort + ", ".join(listing.COLUMNS)), *columns],
            ),
            "post": _operation(
                "Create a config.", 201, _in(configs.KEY, config), body=_in(configs.KEY, config + "Create")
            ),
        },
        configs.PATH + "/{id}": {
            "get": _operation("Show a config.", 200, _in(configs.KEY, config), parameters=[*one, *expand]),
            "put": _operation(
                "Change fields of a config.", 200, _in(configs.KEY, config),
                parameters=one, body=_in(configs.KEY, config + "Change"),
            ),
            "delete": _operation("Delete a config and what it is owed.", 204, None, parameters=one),
        },
        logs.PATH: {
            "get": _operation(
                "List postback logs.", 200, _list_of(logs.KEY, log),
                parameters=[
                    *paging, _parameter("sort", sort + ", ".join(logs.SORTS)),
                    *(_parameter(name, text) for name, text in logs.FILTERS.items()),
                ],
            ),
        },
        logs.PATH + "/{id}": {"get": _operation("Show a log with its tries.", 200, _in(logs.KEY, log), parameters=one)},
        logs.PATH + "/{id}/replay": {
            "post": _operation("Send it once more.", 202, _in("replay", "Replayed"), parameters=one)
        },
        logs.PATH + "/replay": {
            "post": _operation(
                "Send all once more that a filter chooses: the dead ones, unless postback_status_id says otherwise.",
                202, _in("replay", "Replayed"), body=_in("replay", "Replay"),
            )
        },
    }  # fmt: skip


def _schema(field: Field, min_attempt_interval: int) -> dict[str, Any]:
    described: dict[str, Any] = {"description": field.text}
    match field.kind:
        case "boolean":
            described["enum"] = [True, False, 1, 0, "1", "0", "true", "false"]
        case "integer":
            least = min_attempt_interval if field.name == "attempt_interval" else field.least
            described |= {"type": ["integer", "string"], "minimum": least, "maximum": field.most, "pattern": "^[0-9]+$"}
        case "string":
            nullable = field.nullable or field.name == "location_id"
            described |= {"type": ["string", "null"] if nullable else "string", "minLength": field.least}
            if field.most is not None:
                described["maxLength"] = field.most
    if field.default is not None:
        described["default"] = field.default
    return described


def _object(properties: dict[str, Any], required: list[str] | None = None) -> dict[str, Any]:
    described = {"type": "object", "properties": properties, "additionalProperties": False}
    return described | {"required": required} if required else described


def _in(key: str, schema: str) -> dict[str, Any]:
    return _object({key: {"$ref": f"#/components/schemas/{schema}"}}, [key])


def _list_of(key: str, schema: str) -> dict[str, Any]:
    items = {"type": "array", "items": {"$ref": f"#/components/schemas/{schema}"}}
    return _object({key + "s": items, "meta": {"$ref": "#/components/schemas/Meta"}}, [key + "s", "meta"])


def _parameter(name: str, text: str, *, where: str = "query") -> dict[str, Any]:
    return {"name": name, "in": where, "required": where == "path", "description": text, "schema": {"type": "string"}}


def _operation(
    summary: str,
    status: int,
    answer: dict[str, Any] | None,
    *,
    parameters: list[dict[str, Any]] | None = None,
    body: dict[str, Any] | None = None,
) -> dict[str, Any]:
    def content(schema: dict[str, Any]) -> dict[str, Any]:
        return {"content": {"application/json": {"schema": schema}}}

    refused = {"description": "Refused.", **content({"$ref": "#/components/schemas/Errors"})}
    described: dict[str, Any] = {
        "summary": summary,
        "parameters": parameters or [],
        "responses": {str(status): {"description": "Done."} | (content(answer) if answer else {})}
        | {"default": refused},
    }
    if body:
        described["requestBody"] = {"required": True, **content(body)}
    return described
