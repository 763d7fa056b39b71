"""The rules of a postback config (contract §1), each in one place: for the command line and for the HTTP API.

Values in, values or faults out; nothing here knows where a config is stored.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from outbox.core.model import PostbackConfig
from outbox.core.url import UrlFaultError, parse
from outbox.core.url_pattern import URL_PATTERN
from outbox.errors import UsageError

Value = str | int | bool | None

NEEDS_PRODUCT_TRANSACTION = frozenset({"transaction", "transactionbatch"})
MOST_EXPANDS = 16
"""Names in a config's `expands`, at most: each is looked at in the writer's own transaction."""
_EXPANDS = f"[A-Za-z0-9_.-]+(?:, *[A-Za-z0-9_.-]+){{0,{MOST_EXPANDS - 1}}}"


class InvalidConfigError(UsageError):
    """A config breaks its rules. `errors`: the messages of each field, all faults at once."""

    def __init__(self, errors: Mapping[str, list[str]]) -> None:
        super().__init__("\n".join(message for messages in errors.values() for message in messages))
        self.errors = dict(errors)


@dataclass(frozen=True, slots=True, kw_only=True)
class Field:
    """What one field holds. `least` and `most` limit a string's characters or an integer's value."""

    name: str
    kind: Literal["string", "integer", "boolean"]
    text: str
    """What it is for, in a sentence for people."""
    least: int = 0
    most: int | None = None
    default: Value = None
    required: bool = False
    nullable: bool = False
    choices: tuple[str, ...] = ()
    """The only values of a string, where there are such."""
    beyond_contract: bool = False
    """Whether the contract does not know it: off by default, and shown only where it is not."""
    pattern: str = r"^[^\u0000]*$"
    """What a string must match, said for those who check before they ask. What is checked here stands below."""


FIELDS: Mapping[str, Field] = {
    field.name: field
    for field in (
        Field(
            name="location_id", kind="string", least=1, most=36, required=True, text="Whose rows it sees; any id."
        ),
        Field(name="resource", kind="string", least=1, most=128, required=True, text="What to watch, e.g. contact."),
        Field(
            name="product_transaction_id", kind="string", least=1, nullable=True,
            text="Only rows of this merchant account; needed for transaction and transactionbatch.",
        ),
        Field(
            name="url", kind="string", least=1, most=512, required=True, pattern=URL_PATTERN,
            text="Whom to tell; http or https.",
        ),
        Field(name="on_create", kind="boolean", default=True, text="Whether it wants CREATE events."),
        Field(name="on_update", kind="boolean", default=True, text="Whether it wants UPDATE events."),
        Field(name="on_delete", kind="boolean", default=True, text="Whether it wants DELETE events."),
        Field(name="is_active", kind="boolean", default=True, text="Whether it matches new events and sends."),
        Field(
            name="number_of_attempts", kind="integer", least=1, most=5, default=1,
            text="Total tries of one delivery; 1 is never retried.",
        ),
        Field(
            name="attempt_interval", kind="integer", least=300, most=86_400, default=300,
            text="Seconds from the end of one try to the next.",
        ),
        Field(
            name="basic_auth_username", kind="string", least=1, most=512, nullable=True, pattern=r"^[^:\u0000]*$",
            text="User name of HTTP Basic.",
        ),
        Field(name="basic_auth_password", kind="string", most=512, nullable=True, text="Password of HTTP Basic."),
        Field(
            name="expands", kind="string", most=512, default="", pattern=f"^(?:{_EXPANDS})?$",
            text="Related records to embed in data, separated by commas, e.g. changelogs,tags.",
        ),
        Field(name="format", kind="string", choices=("api-default",), default="api-default", text="Only api-default."),
        Field(
            name="backoff", kind="string", choices=("fixed", "exponential"), default="fixed", beyond_contract=True,
            text="fixed: each wait is attempt_interval; exponential: each is twice the last, with jitter.",
        ),
        Field(
            name="backoff_limit", kind="integer", least=1, most=86_400, default=86_400, beyond_contract=True,
            text="Longest wait of the exponential backoff, in seconds.",
        ),
        Field(
            name="strict_order", kind="string", choices=("off", "release", "hold"), default="off",
            beyond_contract=True,
            text="One change of a record at a time, in their order: off; release, where a dead one lets the later ones "
            "go; hold, where it holds them. For what is captured from then on.",
        ),
        Field(
            name="rate_limit", kind="integer", least=1, most=10_000, nullable=True, beyond_contract=True,
            text="Tries a second at most, over all daemons.",
        ),
    )
}  # fmt: skip


def validate(
    raw: Mapping[str, object],
    *,
    min_attempt_interval: int,
    any_location: bool = False,
    current: PostbackConfig | None = None,
    url_fault: Callable[[str], str | None] | None = None,
) -> dict[str, Value]:
    """Return the fields of `raw` in their final types; the basic auth values are clear text.

    Without `current` it is a create: defaults are filled in, and what is required must be there. With `current` it is
    an edit of that config: only what `raw` names comes back. `min_attempt_interval`: seconds; the operator's floor.
    `any_location`: whether location_id may be null, for all locations. `url_fault`: what the operator has against a
    new URL, as the rest of a sentence, or None. Raises InvalidConfigError with all faults.
    """
    errors: dict[str, list[str]] = {}
    values: dict[str, Value] = {}
    for name in raw:
        if name not in FIELDS:
            errors[name] = [f"{name} is not a field that can be set. Accepted: {', '.join(FIELDS)}."]
    for name, field in FIELDS.items():
        if name in raw:
            try:
                values[name] = _value(raw[name], field, min_attempt_interval, any_location=any_location)
            except _FaultError as error:
                errors[name] = [f"{name} {error}"]
        elif current is None and field.required:
            errors[name] = [f"{name} is required."]
        elif current is None:
            values[name] = field.default
    for name, message in (_faults_together(values, current) | _url_refused(values, current, url_fault)).items():
        errors.setdefault(name, [f"{name} {message}"])
    if errors:
        raise InvalidConfigError(errors)
    return values


class _FaultError(ValueError):
    """What is wrong with a value, as the rest of a sentence that begins with the field's name."""


def _value(given: object, field: Field, min_attempt_interval: int, *, any_location: bool) -> Value:
    nullable = field.nullable or (field.name == "location_id" and any_location)
    if given is None and nullable:
        return None
    or_null = " or null" if nullable else ""
    match field.kind:
        case "boolean":
            return _boolean(given)
        case "integer":
            least = min_attempt_interval if field.name == "attempt_interval" else field.least
            return _integer(given, least, field.most, or_null)
        case "string":
            return _string(given, field, or_null)


def _boolean(given: object) -> bool:
    # By their texts, because 1.0 equals 1 and is no boolean.
    if isinstance(given, bool | int | str):
        match str(given) if isinstance(given, str) else str(int(given)):
            case "1" | "true":
                return True
            case "0" | "false":
                return False
    raise _FaultError("must be true or false; 1, 0 and both as strings are accepted as well.")


def _integer(given: object, least: int, most: int | None, or_null: str) -> int:
    number = None
    if isinstance(given, int) and not isinstance(given, bool):
        number = given
    elif isinstance(given, str) and re.fullmatch(r"[0-9]{1,9}", given):
        number = int(given)
    if number is None or number < least or (most is not None and number > most):
        raise _FaultError(f"must be a whole number from {least} to {most}{or_null}.")
    return number


def _string(given: object, field: Field, or_null: str) -> str:
    least, most = field.least, field.most
    limits = f" of {least} to {most} characters" if most and least else f" of at most {most} characters" if most else ""
    if not isinstance(given, str):
        raise _FaultError(f"must be a string{limits}{or_null}.")
    if "\0" in given or any("\ud800" <= character <= "\udfff" for character in given):
        raise _FaultError("must not contain NUL or half of a surrogate pair.")
    if not given and least:
        raise _FaultError(f"must not be empty: a string{limits}{or_null}.")
    if most is not None and len(given) > most:
        raise _FaultError(f"must have at most {most} characters, and has {len(given)}.")
    if field.choices and given not in field.choices:
        raise _FaultError(f"must be {' or '.join(field.choices)}.")
    if (check := _CHECKS.get(field.name)) and (fault := check(given)):
        raise _FaultError(fault)
    return given


def _username_fault(username: str) -> str | None:
    return "must not contain a colon: HTTP Basic ends the name there." if ":" in username else None


def _expands_fault(expands: str) -> str | None:
    if expands and not re.fullmatch(_EXPANDS, expands):
        return f"must be names separated by commas, such as changelogs,tags, and {MOST_EXPANDS} of them at most."
    return None


def _url_fault(url: str) -> str | None:
    try:
        parse(url)
    except UrlFaultError as fault:
        return str(fault)
    return None


_CHECKS: Mapping[str, Callable[[str], str | None]] = {
    "url": _url_fault,
    "basic_auth_username": _username_fault,
    "expands": _expands_fault,
}


def _url_refused(
    values: Mapping[str, Value], current: PostbackConfig | None, url_fault: Callable[[str], str | None] | None
) -> dict[str, str]:
    """Return the operator's fault of a URL. One that is stored already is not judged again: a pause needs no leave."""
    url = values.get("url")
    if url_fault is None or not isinstance(url, str) or (current is not None and url == current.url):
        return {}
    fault = url_fault(url)
    return {} if fault is None else {"url": fault}


def _faults_together(values: Mapping[str, Value], current: PostbackConfig | None) -> dict[str, str]:
    """Return the faults of fields that depend on one another, judged as they will stand together."""

    def result(name: str) -> object:
        return values[name] if name in values else getattr(current, name, None)

    faults = {}
    if result("resource") in NEEDS_PRODUCT_TRANSACTION and result("product_transaction_id") is None:
        faults["product_transaction_id"] = f"is required for the resource {result('resource')}."
    if result("basic_auth_password") is not None and result("basic_auth_username") is None:
        faults["basic_auth_password"] = "needs a basic_auth_username: set both, or neither."  # noqa: S105 - a message
    return faults
