"""What the contract says of one postback, against what arrived. Pure: the walk prints what is found here."""

import json
import re
from dataclasses import dataclass
from urllib.parse import parse_qsl

from outbox import __version__
from outbox.demo.contacts import COLUMNS, RESOURCE
from outbox.demo.receiver import Received

FIELDS = ("type", "resource", "number_of_attempts", "data")
_CLOCK_SLACK = 1.0
"""Seconds. The database's clock and ours are read at slightly different moments."""
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


@dataclass(frozen=True, slots=True)
class Expected:
    """What must arrive: `data` to the letter; `sent_after`, seconds since 1970, is when the change was made."""

    type: str
    number_of_attempts: int
    data: str
    sent_after: float
    webhook_id: str | None = None
    """None: any that no other event had."""


def fields(body: bytes) -> list[tuple[str, str]]:
    """Return the form's fields in their order; ValueError when it is no form."""
    return parse_qsl(
        body.decode("ascii"), keep_blank_values=True, strict_parsing=True, encoding="utf-8", errors="strict"
    )


def faults(received: Received, expected: Expected) -> list[str]:
    """Return each way in which the postback is not as the contract says, a sentence each: expected, and came."""
    try:
        form = fields(received.body)
    except ValueError as error:
        return [f"expected a form, came a body that is none ({error})"]
    names = tuple(name for name, _ in form)
    value = dict(form)
    head = received.headers
    pairs: list[tuple[str, object, object]] = [
        ("the fields", FIELDS, names),
        ("type", expected.type, value.get("type")),
        ("resource", RESOURCE, value.get("resource")),
        ("number_of_attempts", str(expected.number_of_attempts), value.get("number_of_attempts")),
        ("data", expected.data, value.get("data")),
        ("the keys of data", COLUMNS, _keys(value.get("data", ""))),
        ("Content-Type", "application/x-www-form-urlencoded", head.get("Content-Type")),
        ("User-Agent", f"outbox/{__version__}", head.get("User-Agent")),
    ]
    if expected.webhook_id is not None:
        pairs.append(("webhook-id", expected.webhook_id, head.get("webhook-id")))
    found = [f"{what}: expected {wanted}, came {came}" for what, wanted, came in pairs if wanted != came]
    if not _UUID.fullmatch(head.get("webhook-id", "")):
        found.append(f"webhook-id: expected a UUID, came {head.get('webhook-id')}")
    stamp = head.get("webhook-timestamp", "")
    earliest, latest = int(expected.sent_after - _CLOCK_SLACK), received.at + _CLOCK_SLACK
    if not (re.fullmatch(r"\d{1,12}", stamp) and earliest <= int(stamp) <= latest):
        found.append(f"webhook-timestamp: expected the second of this try, came {stamp or None}")
    return found


def _keys(data: str) -> tuple[str, ...] | None:
    try:
        record = json.loads(data)
    except ValueError:
        return None
    return tuple(record) if isinstance(record, dict) else None
