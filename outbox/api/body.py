"""Reads a JSON body strictly: what two readers could understand differently, and what cannot be stored, is refused."""

import asyncio
import json
import math
from typing import Any, NoReturn

from aiohttp import web

from outbox.api.errors import RefusedError

MAX_BYTES = 64 * 1024
"""Of a body. The application is built with it; more is answered with 413."""
MAX_DEPTH = 16
"""Of objects and lists in each other."""
PATIENCE_SECONDS = 30.0
"""How long a body may take to come."""
_LAST_EXACT = 2**53


async def json_body(request: web.Request, key: str, *, patience: float = PATIENCE_SECONDS) -> dict[str, Any]:
    """Return the object under `key`, the body's only member.

    Raises RefusedError: 415 for another content type, 400 for what is no strict JSON, 422 for another envelope, 408
    for a body that does not come within `patience` seconds.
    """
    if request.content_type != "application/json" or (request.charset or "utf-8").lower() not in ("utf-8", "utf8"):
        raise RefusedError(415, "The content type must be application/json, in UTF-8.")
    # What is small and packed can be large unpacked, and nobody needs it for a few fields.
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise RefusedError(415, "The body must not be compressed.", headers={"Connection": "close"})
    try:
        async with asyncio.timeout(patience):
            raw = await request.read()
    except TimeoutError:
        raise RefusedError(408, f"The body did not come within {patience:g} seconds.", field="body") from None
    except web.RequestPayloadError:
        raise RefusedError(400, "The body is broken off, or no such body as its headers say.", field="body") from None
    document = strict_json(raw)
    if not isinstance(document, dict) or document.keys() != {key} or not isinstance(document[key], dict):
        raise RefusedError(422, f'The body must be {{"{key}": {{…}}}} and nothing else.', field=key)
    found: dict[str, Any] = document[key]
    return found


def strict_json(raw: bytes) -> object:
    """Return the value of a JSON text; RefusedError 400 says what is wrong with it."""
    try:
        value = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_object, parse_float=_number, parse_constant=_constant
        )
    except UnicodeDecodeError:
        raise RefusedError(400, "The body is not UTF-8.", field="body") from None
    except RecursionError:
        raise _too_deep() from None
    except ValueError as error:
        raise RefusedError(400, f"The body is not JSON: {error}.", field="body") from None
    _check(value)
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise RefusedError(400, "The body has an object that names a key twice.", field="body")
    return found


def _number(text: str) -> int | float:
    # JSON has one kind of number: 3.0 is 3, as many a writer writes it. Beyond 2**53 not even that is sure.
    value = float(text)
    return int(value) if value.is_integer() and abs(value) <= _LAST_EXACT else value


def _constant(name: str) -> NoReturn:
    raise RefusedError(400, f"The body is not JSON: {name} is no number.", field="body")


def _too_deep() -> RefusedError:
    return RefusedError(400, f"The body is nested more than {MAX_DEPTH} deep.", field="body")


def _check(value: object) -> None:
    waiting = [(value, 1)]
    while waiting:
        each, depth = waiting.pop()
        match each:
            case dict() | list() if depth > MAX_DEPTH:
                raise _too_deep()
            case dict():
                waiting += [(part, depth + 1) for item in each.items() for part in item]
            case list():
                waiting += [(part, depth + 1) for part in each]
            case str() if "\0" in each or any("\ud800" <= c <= "\udfff" for c in each):
                raise RefusedError(400, "The body has text with a NUL or half a character.", field="body")
            case float() if not math.isfinite(each):
                raise RefusedError(400, "The body has a number that is too large.", field="body")
            case _:
                pass
