"""Signatures that the specification's own library accepts, and the life of a secret over its rotations."""

import time
from dataclasses import replace
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from standardwebhooks import Webhook, WebhookVerificationError

from outbox.core import signing
from outbox.core.signing import Secret, SigningError

EVENT = str(UUID(int=7))
NEW, OLD, OLDER = (Secret(bytes([n]) * 32) for n in (1, 2, 3))
NOW = 1_700_000_000


def verify(secret: Secret, signature: str, body: bytes, *, timestamp: int, event_id: str = EVENT) -> None:
    """Raise WebhookVerificationError unless a receiver with this secret accepts it."""
    headers = {"webhook-id": str(event_id), "webhook-timestamp": str(timestamp), "webhook-signature": signature}
    Webhook(signing.to_text(secret.key)).verify(body, headers, json_parse=False)


@given(st.binary(min_size=24, max_size=32), st.text(st.characters(codec="utf-8")))
def test_the_reference_library_accepts_what_is_signed_and_nothing_else(key: bytes, text: str) -> None:
    """Another body, id, time or secret is refused."""
    now, secret, body = int(time.time()), Secret(key), text.encode()
    made = signing.signature([secret], EVENT, now, body)
    verify(secret, made, body, timestamp=now)
    other = Secret(key[:-1] + bytes([key[-1] ^ 1]))
    for by, what, when, event_id in (
        (secret, body + b"x", now, EVENT),
        (secret, body, now - 1, EVENT),
        (secret, body, now, str(UUID(int=8))),
        (other, body, now, EVENT),
    ):
        with pytest.raises(WebhookVerificationError):
            verify(by, made, what, timestamp=when, event_id=event_id)


def test_the_signature_of_a_known_request() -> None:
    """The bytes in full, as `openssl dgst -sha256 -hmac 0123456789abcdef01234567 -binary` gives them."""
    secret = Secret(b"0123456789abcdef01234567")
    assert signing.to_text(secret.key) == "whsec_MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3"
    assert signing.signature([secret], EVENT, NOW, b"a=b") == "v1,OzBRKyrD8SttLY7nfCkNjfS8PI73XoiA/F6pnqznbD4="


def test_all_that_sign_at_the_time_of_a_try_sign_it() -> None:
    """The newest first, separated by spaces; one whose overlap is over signs no more, from that second on."""
    now = int(time.time())
    secrets = [NEW, replace(OLD, until=now + 1), replace(OLDER, until=now)]
    both = signing.signature(secrets, EVENT, now, b"x")
    assert both == " ".join(signing.signature([each], EVENT, now, b"x") for each in (NEW, OLD))
    for each in (NEW, OLD):
        verify(each, both, b"x", timestamp=now)
    with pytest.raises(WebhookVerificationError):
        verify(OLDER, both, b"x", timestamp=now)
    assert signing.signature(secrets, EVENT, now + 1, b"x") == signing.signature([NEW], EVENT, now + 1, b"x")


def test_a_rotation_lets_the_former_ones_end_in_their_time() -> None:
    """The current one gets an end, one that has an end keeps it, and one that ended is forgotten."""
    ending, ended = replace(OLD, until=NOW + 1), replace(OLDER, until=NOW)
    kept = signing.rotated([OLD, replace(OLDER, until=NOW + 1)], NEW.key, now=NOW, overlap=60)
    assert kept == (NEW, replace(OLD, until=NOW + 60), replace(OLDER, until=NOW + 1))
    assert signing.rotated([OLDER, ending, ended], NEW.key, now=NOW, overlap=9) == (
        NEW, replace(OLDER, until=NOW + 9), ending,
    )  # fmt: skip


def test_a_rotation_without_an_overlap_ends_all_of_them() -> None:
    """What got out is worth nothing from then on, and neither is what was before it."""
    assert signing.rotated([OLD, replace(OLDER, until=NOW + 60)], NEW.key, now=NOW, overlap=0) == (NEW,)


def test_no_rotation_takes_a_secret_away_that_a_receiver_may_rely_on() -> None:
    """When five sign, the sixth is refused, until an overlap is over or all are ended."""
    secrets: tuple[Secret, ...] = (OLD,)
    for n in range(4):
        secrets = signing.rotated(secrets, bytes([n]) * 32, now=NOW + n, overlap=60)
    assert len(secrets) == 5
    with pytest.raises(SigningError, match="5 secrets"):
        signing.rotated(secrets, NEW.key, now=NOW + 5, overlap=60)
    assert len(signing.rotated(secrets, NEW.key, now=NOW + 60, overlap=60)) == 5
    assert signing.rotated(secrets, NEW.key, now=NOW + 5, overlap=0) == (NEW,)
    with pytest.raises(SigningError, match="make one first"):
        signing.rotated((), NEW.key, now=NOW, overlap=60)


def test_what_is_stored_can_be_read_and_nothing_else() -> None:
    """Secrets with their ends go there and back; another text is an error, not a secret."""
    secrets = (NEW, replace(OLD, until=NOW))
    assert signing.load(signing.dump(secrets)) == secrets
    for text in ("", "user", "7", '{"a":1}', "[1]", '[["whsec_?",null]]', '[["whsec_"]]', "[[1,2]]"):
        with pytest.raises(ValueError, match=r"."):
            signing.load(text)


def test_a_secret_does_not_show_itself() -> None:
    """Its key is in no repr, and so in no traceback that shows one."""
    assert repr(NEW) == "Secret(until=None)"
