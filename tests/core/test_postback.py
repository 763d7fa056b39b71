"""The request is what the contract says, to the byte."""

import base64
import urllib.parse
from uuid import UUID

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from outbox.core import postback

# PostgreSQL holds neither NUL nor half of a surrogate pair, so no record has them.
RECORDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"))


def test_the_body_has_four_fields_in_the_contracts_order() -> None:
    """The bytes of a body, in full."""
    data = '{"id":"1","name":"O\'Neil & Söhne = 100% +1","note":null}'
    assert postback.form_body("CREATE", "contact", 2, data) == (
        b"type=CREATE&resource=contact&number_of_attempts=2&data="
        b"%7B%22id%22:%221%22,%22name%22:%22O'Neil+%26+S%C3%B6hne+%3D+100%25+%2B1%22,%22note%22:null%7D"
    )


@settings(deadline=None)
@given(RECORDS, RECORDS, st.integers(1, 2**31 - 1))
@example('{"a":"\\"&=+%;#\\u0000 \\\\"}', "a&b=c+d", 1)
@example('{"a":"🎉é\u2028\t\r\n%41"}', "x", 5)
@example("", "", 1)
def test_a_form_parser_gets_back_what_was_sent(data: str, resource: str, number: int) -> None:
    """Whatever a record holds, a strict parser of forms finds the same four texts."""
    body = postback.form_body("UPDATE", resource, number, data)
    fields = [("type", "UPDATE"), ("resource", resource), ("number_of_attempts", str(number)), ("data", data)]
    parsed = urllib.parse.parse_qsl(
        body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=4
    )
    assert parsed == fields


def test_the_headers_carry_what_the_form_may_not() -> None:
    """The event's id, the try's time, the sender; Authorization, signature and trace only where there are any."""
    common = {
        "User-Agent": "outbox/1",
        "Content-Type": "application/x-www-form-urlencoded",
        "webhook-id": "00000000-0000-0000-0000-000000000001",
        "webhook-timestamp": "1472325312",
    }
    made = [
        postback.headers(
            str(UUID(int=1)),
            timestamp=1472325312,
            user_agent="outbox/1",
            authorization=authorization,
            signature=signature,
        )
        for authorization, signature in ((None, None), ("Basic eDp5", "v1,x v1,y"))
    ]
    assert made == [common, {**common, "Authorization": "Basic eDp5", "webhook-signature": "v1,x v1,y"}]
    traced = postback.headers(
        str(UUID(int=1)),
        timestamp=1472325312,
        user_agent="outbox/1",
        authorization=None,
        signature=None,
        traceparent="00-a-b-01",
    )
    assert traced == {**common, "traceparent": "00-a-b-01"}


@pytest.mark.parametrize(
    ("username", "password", "clear"),
    [
        ("Aladdin", "open sesame", b"Aladdin:open sesame"),
        ("test", "123£", b"test:123\xc2\xa3"),
        ("key", None, b"key:"),
        ("key", "", b"key:"),
        ("user", "a:b", b"user:a:b"),
    ],
)
def test_basic_authorization_is_utf8(username: str, password: str | None, clear: bytes) -> None:
    """User name, colon, password, in UTF-8; a missing password is an empty one."""
    scheme, token = postback.basic_authorization(username, password).split(" ")
    assert (scheme, base64.b64decode(token, validate=True)) == ("Basic", clear)
