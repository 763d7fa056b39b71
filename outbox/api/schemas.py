"""What is sent and answered, as JSON Schema: made from the rules of a config and the fields and filters of a log."""

from typing import Any

from outbox.api import lists, postbackconfigs, postbacklogs
from outbox.core import signing
from outbox.core.config_document import TROUBLES
from outbox.core.config_rules import FIELDS, NEEDS_PRODUCT_TRANSACTION, Field
from outbox.postgres import listing

Schema = dict[str, Any]

_LEAST_DIGITS, _MOST_DIGITS = 1, 9
_LAST_SECOND = 9_999_999_999
_UUID = "[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
_TEXT = r"^[^\u0000]*$"
_SECOND = "[0-9]{1,10}"
_RANGE = f"^(?:{_SECOND}|>=?{_SECOND}(?:,<=?{_SECOND})?|<=?{_SECOND}(?:,>=?{_SECOND})?)$"

LOG_ID: Schema = {"type": "string", "pattern": rf"^{_UUID}\.{_UUID}$"}
CONFIG_ID: Schema = {"type": "string", "format": "uuid"}
SECONDS: Schema = {"type": "integer", "minimum": 0, "description": "Epoch seconds."}

_FLAG: Schema = {"type": "string", "enum": ["0", "1"]}
_LINKS: Schema = {
    "type": "object",
    "properties": {"self": {"type": "object", "properties": {"href": {"type": "string", "format": "uri"}}}},
}
_OF_READ_ONLY: dict[str, Schema] = {
    "id": CONFIG_ID, "paused": _FLAG, "signed": _FLAG, "created_ts": SECONDS, "modified_ts": SECONDS, "_links": _LINKS,
}  # fmt: skip
_OF_READ_ONLY |= {
    name: {"type": ["string" if name == "disabled_reason" else "integer", "null"], "description": text}
    for name, text in TROUBLES.items()
}
_READ_ONLY = {name: _OF_READ_ONLY[name] for name in postbackconfigs.READ_ONLY}
_OFTEN_ABSENT = ("product_transaction_id", "basic_auth_username", "paused", "signed")


def components(min_attempt_interval: int) -> dict[str, Schema]:
    """Return the schemas by name. `min_attempt_interval`: seconds; the operator's floor."""
    settable = {name: _settable(field, min_attempt_interval) for name, field in FIELDS.items()}
    log: dict[str, Schema] = {
        name: {"type": [kind, "null"], "description": text} for name, (kind, text) in postbacklogs.FIELDS.items()
    }
    tries: dict[str, Schema] = {
        name: {"type": [kind, "null"], "description": text} for name, (kind, text) in postbacklogs.TRY_FIELDS.items()
    }
    shown = {name: _shown(field) for name, field in FIELDS.items() if name != "basic_auth_password"}
    return {
        "PostbackConfigCreate": only(
            {
                name: schema if FIELDS[name].default is None else schema | {"default": FIELDS[name].default}
                for name, schema in settable.items()
            },
            [name for name, field in FIELDS.items() if field.required],
        )
        | {"allOf": _together()},
        "PostbackConfigChange": only(
            settable | {name: schema | {"readOnly": True} for name, schema in _READ_ONLY.items()}
        ),
        "PostbackConfig": only(
            shown | _READ_ONLY | {"postback_logs": {"type": "array", "items": _reference("PostbackLog")}},
            [
                name
                for name in (*shown, *_READ_ONLY)
                if name not in _OFTEN_ABSENT
                and name not in TROUBLES
                and not (name in FIELDS and FIELDS[name].beyond_contract)
            ],
        ),
        "PostbackLog": only(
            log | {"tries": {"type": "array", "items": only(tries, list(tries))}}, list(postbacklogs.FIELDS)
        ),
        "Replay": only(_replay_filters() | {"dry_run": {"type": "boolean", "description": "Only count."}})
        | {"anyOf": _narrowed()},
        "Replayed": only({"count": {"type": "integer", "minimum": 0}, "dry_run": {"type": "boolean"}}, ["count"]),
        "Rotation": only(
            {
                "overlap": number(0, signing.MOST_OVERLAP, signing.DEFAULT_OVERLAP)
                | {"description": "Seconds for which the former secret signs as well. 0 ends all former ones now."}
            }
        ),
        "Secret": only(
            {"secret": {"type": "string", "pattern": "^whsec_", "description": "For the receiver. Shown this once."}},
            ["secret"],
        ),
        "Meta": _meta(),
        "Errors": only(
            {
                "errors": {
                    "type": "object",
                    "minProperties": 1,
                    "additionalProperties": {"type": "array", "items": {"type": "string"}, "minItems": 1},
                }
            },
            ["errors"],
        ),
        "Health": only({"live": {"type": "boolean"}}, ["live"]),
        "Readiness": only(
            {"ready": {"type": "boolean"}, "problems": {"type": "array", "items": {"type": "string"}}},
            ["ready", "problems"],
        ),
    }


def config_filters() -> dict[str, Schema]:
    """Return the schema of each filter of a list of configs: any of several values, separated by commas."""
    kinds = {name: FIELDS[name].kind if name in FIELDS else "seconds" for name in listing.COLUMNS} | {"id": "id"}
    values: dict[str, Schema] = {
        "id": CONFIG_ID,
        "boolean": {"type": "string", "enum": ["0", "1", "false", "true"]},
        "integer": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999},
        "seconds": {"type": "integer", "minimum": 0, "maximum": 999_999_999_999},
        "string": {"type": "string", "pattern": _TEXT},
    }
    return {name: several(values[kind]) for name, kind in kinds.items()}


def log_filters() -> dict[str, Schema]:
    """Return the schema of each filter of a list of logs, by name."""
    seconds = {"type": "string", "pattern": _RANGE}
    text = {"type": "string", "minLength": 1, "pattern": _TEXT}
    schemas = {
        "postback_config_id": CONFIG_ID,
        "postback_status_id": several({"type": "integer", "enum": [1, 2, 3, 4]}),
        "model": text,
        "model_id": text,
        "changelog_id": {"type": "string", "format": "uuid"},
        "created_ts": seconds,
        "state_ts": seconds,
    }
    return {name: schemas[name] for name in postbacklogs.FILTERS}


def sorts(names: tuple[str, ...]) -> Schema:
    """Return the schema of `sort`: one of the names, or one with a minus in front."""
    return {"type": "string", "enum": [*names, *(f"-{name}" for name in names)]}


def several(value: Schema) -> Schema:
    """Return the schema of values separated by commas."""
    return {"type": "array", "items": value, "minItems": 1}


def number(least: int, most: int, default: int) -> Schema:
    """Return the schema of a whole number."""
    return {"type": "integer", "minimum": least, "maximum": most, "default": default}


def only(properties: dict[str, Schema], required: list[str] | None = None) -> Schema:
    """Return the schema of an object that has these properties and no others."""
    described: Schema = {"type": "object", "properties": properties, "additionalProperties": False}
    return described | {"required": required} if required else described


def digits(least: int, most: int) -> str:
    """Return the pattern of the whole numbers from `least` to `most`, zeros in front or none."""
    lengths = range(len(str(least)), len(str(most)) + 1)
    parts = [_digits(str(max(least, 10 ** (n - 1) if n > 1 else 0)), str(min(most, 10**n - 1))) for n in lengths]
    return f"^0*(?:{'|'.join(parts)})$"


def _digits(least: str, most: str) -> str:
    """Return what matches the numbers between two of the same length."""
    if not least:
        return ""
    first, last, rest = int(least[0]), int(most[0]), len(least) - 1
    if first == last:
        return least[0] + _digits(least[1:], most[1:])
    parts = [f"{first}{_digits(least[1:], '9' * rest)}", f"{last}{_digits('0' * rest, most[1:])}"]
    if last - first > 1:
        parts.append(f"[{first + 1}-{last - 1}]" + f"[0-9]{{{rest}}}" * bool(rest))
    return f"(?:{'|'.join(parts)})"


def _settable(field: Field, min_attempt_interval: int) -> Schema:
    described: Schema = {"description": field.text}
    match field.kind:
        case "boolean":
            described["enum"] = [True, False, 1, 0, "1", "0", "true", "false"]
        case "integer":
            least = min_attempt_interval if field.name == "attempt_interval" else field.least
            most = field.most or least
            described["anyOf"] = [
                {"type": "integer", "minimum": least, "maximum": most},
                {
                    "type": "string",
                    "minLength": _LEAST_DIGITS,
                    "maxLength": _MOST_DIGITS,
                    "pattern": digits(least, most),
                },
                *([{"type": "null"}] if field.nullable else []),
            ]
        case "string" if field.choices:
            described["enum"] = list(field.choices)
        case "string":
            nullable = field.nullable or field.name == "location_id"
            described |= {"type": ["string", "null"] if nullable else "string", "pattern": field.pattern}
            if field.least:
                described["minLength"] = field.least
            if field.most is not None:
                described["maxLength"] = field.most
    return described


def _shown(field: Field) -> Schema:
    if field.kind == "boolean":
        return _FLAG | {"description": field.text}
    nullable = field.nullable or field.name == "location_id"
    return {"type": [field.kind, "null"] if nullable else field.kind, "description": field.text}


def _together() -> list[Schema]:
    """Return what holds between the fields of a new config."""
    return [
        {
            "if": {"properties": {"resource": {"enum": sorted(NEEDS_PRODUCT_TRANSACTION)}}, "required": ["resource"]},
            "then": {
                "properties": {"product_transaction_id": {"type": "string"}}, "required": ["product_transaction_id"],
            },
        },
        {
            "if": {"properties": {"basic_auth_password": {"type": "string"}}, "required": ["basic_auth_password"]},
            "then": {"properties": {"basic_auth_username": {"type": "string"}}, "required": ["basic_auth_username"]},
        },
    ]  # fmt: skip


def _replay_filters() -> dict[str, Schema]:
    text = {"type": ["string", "integer"], "minLength": 1, "pattern": _TEXT}
    schemas = log_filters() | {
        "model": text,
        "model_id": text,
        "postback_status_id": {
            "anyOf": [
                {"type": "integer", "enum": [3, 4]},
                {"type": "string", "pattern": "^(?:[1-4],)*[34](?:,[1-4])*$"},
            ]
        },
    }
    for name in ("created_ts", "state_ts"):
        schemas[name] = {"anyOf": [schemas[name], {"type": "integer", "minimum": 0, "maximum": _LAST_SECOND}]}
    return {name: schemas[name] | {"description": text} for name, text in postbacklogs.FILTERS.items()}


def _narrowed() -> list[Schema]:
    """Return what a replay must be narrowed by: one filter, or where the delivered are meant, one that is narrow."""
    dead: Schema = {
        "properties": {
            "postback_status_id": {"anyOf": [{"const": 4}, {"type": "string", "pattern": "^[124](?:,[124])*$"}]}
        },
        "anyOf": [{"required": [name]} for name in postbacklogs.FILTERS],
    }
    since: Schema = {"anyOf": [{"type": "integer"}, {"type": "string", "pattern": "^[0-9>]|,>"}]}
    narrow: list[Schema] = [{"required": [name]} for name in ("postback_config_id", "changelog_id", "model_id")]
    narrow += [{"properties": {name: since}, "required": [name]} for name in ("created_ts", "state_ts")]
    return [dead, *narrow]


def _meta() -> Schema:
    link = only({"href": {"type": "string", "format": "uri"}}, ["href"])
    count = {"type": "integer", "minimum": 0}
    pagination: dict[str, Schema] = {
        "links": only({"self": link, "next": link, "last": link}, ["self"]),
        "totalCount": count,
        "pageCount": count,
        "currentPage": count,
        "perPage": {"type": "integer", "minimum": 1, "maximum": lists.MAX_PAGE_SIZE},
    }
    capped = {"totalCountIsCapped": {"type": "boolean", "description": "Whether there are more than totalCount."}}
    sort = {"type": "object", "additionalProperties": {"type": "string", "enum": ["asc", "desc"]}}
    return only(
        {
            "pagination": only(pagination | capped, list(pagination)),
            "sort": only({"attributes": sort}, ["attributes"]),
        },
        ["pagination", "sort"],
    )


def _reference(name: str) -> Schema:
    return {"$ref": f"#/components/schemas/{name}"}
