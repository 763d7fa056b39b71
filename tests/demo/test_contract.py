"""The demo's witness finds each way in which a postback can be wrong: a walk that passes proves something."""

import dataclasses
from urllib.parse import urlencode

import pytest

from outbox import __version__
from outbox.demo.contacts import COLUMNS, as_json
from outbox.demo.contract import Expected, faults, fields
from outbox.demo.receiver import Received

EVENT = "00000000-0001-8000-8000-000000000000"
DATA = as_json(dict.fromkeys(COLUMNS) | {"last_name": "Söhne / & +"})
FORM = {"type": "CREATE", "resource": "contact", "number_of_attempts": "1", "data": DATA}
HEADERS = {
    "Content-Type": "application/x-www-form-urlencoded",
    "User-Agent": f"outbox/{__version__}",
    "webhook-id": EVENT,
    "webhook-timestamp": "1000",
}
EXPECTED = Expected("CREATE", 1, DATA, sent_after=999.5, webhook_id=EVENT)
GOOD = Received("/receiver", HEADERS, urlencode(FORM).encode(), 200, at=1000.5)


def test_a_postback_as_the_contract_says_has_no_fault() -> None:
    """Nothing is found where nothing is wrong."""
    assert faults(GOOD, EXPECTED) == []
    assert fields(GOOD.body) == list(FORM.items())


@pytest.mark.parametrize(
    ("form", "said"),
    [
        (dict(reversed(FORM.items())), "the fields"),
        (FORM | {"more": "x"}, "the fields"),
        (FORM | {"type": "UPDATE"}, "type: expected CREATE, came UPDATE"),
        (FORM | {"resource": "transaction"}, "resource"),
        (FORM | {"number_of_attempts": "2"}, "number_of_attempts: expected 1, came 2"),
        (FORM | {"data": DATA.replace(",", ", ")}, "data"),
        (FORM | {"data": DATA.replace("ö", "\\u00f6")}, "data"),
        (FORM | {"data": as_json(dict.fromkeys(reversed(COLUMNS)))}, "the keys of data"),
        (FORM | {"data": "[]"}, "the keys of data"),
        (FORM | {"data": "{"}, "the keys of data"),
    ],
)
def test_each_wrong_field_is_found(form: dict[str, str], said: str) -> None:
    """A wrong field, order or record is a sentence that names it."""
    found = faults(dataclasses.replace(GOOD, body=urlencode(form).encode()), EXPECTED)
    assert any(each.startswith(said) for each in found)


@pytest.mark.parametrize("body", [b"", b"{}", b"type", b"data=%ff", b"\xff"])
def test_what_is_no_form_is_found(body: bytes) -> None:
    """JSON, bytes that are no text and an empty body are no form."""
    assert faults(dataclasses.replace(GOOD, body=body), EXPECTED)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("Content-Type", "application/json"),
        ("User-Agent", "other/1"),
        ("webhook-id", EVENT.replace("1", "2")),
        ("webhook-id", "7"),
        ("webhook-timestamp", "997"),
        ("webhook-timestamp", "1002"),
        ("webhook-timestamp", "1000.5"),
    ],
)
def test_each_wrong_or_missing_header_is_found(name: str, value: str) -> None:
    """A header that is wrong or absent is a sentence that names it."""
    wrong = dataclasses.replace(GOOD, headers=HEADERS | {name: value})
    absent = dataclasses.replace(GOOD, headers={key: kept for key, kept in HEADERS.items() if key != name})
    assert [each.partition(":")[0] for each in faults(wrong, EXPECTED)][:1] == [name]
    assert [each.partition(":")[0] for each in faults(absent, EXPECTED)][:1] == [name]
