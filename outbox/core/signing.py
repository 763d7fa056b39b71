"""Signing secrets and the signature that they make: Standard Webhooks 1.0, symmetric. Bytes and text; no I/O."""

import base64
import binascii
import dataclasses
import hmac
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from outbox.errors import OutboxError

DEFAULT_OVERLAP = 86_400
MOST_OVERLAP = 30 * 86_400
"""Seconds."""
KEY_BYTES = 32
_MOST_SECRETS = 5
"""Of one config, at a time: each is 47 bytes more in a header of every request."""
_PREFIX = "whsec_"


class SigningError(OutboxError):
    """The config signs already, or does not sign, or has too many secrets for what was asked."""


@dataclass(frozen=True, slots=True)
class Secret:
    """One secret. `until`: epoch seconds at which it ceases to sign; None for the newest, which has no end."""

    key: bytes = field(repr=False)
    until: int | None = None


def to_text(key: bytes) -> str:
    """Return the form in which a receiver is given the secret."""
    return _PREFIX + base64.b64encode(key).decode("ascii")


def dump(secrets: Sequence[Secret]) -> str:
    """Return the secrets as the text that is sealed and stored, all of a config in one."""
    return json.dumps([[to_text(each.key), each.until] for each in secrets], separators=(",", ":"))


def load(text: str) -> tuple[Secret, ...]:
    """Return the secrets of such a text; ValueError when it is none."""
    try:
        return tuple(
            Secret(base64.b64decode(key.removeprefix(_PREFIX), validate=True), until) for key, until in json.loads(text)
        )
    except (TypeError, AttributeError, binascii.Error) as error:
        raise ValueError("no text of signing secrets") from error


def rotated(secrets: Sequence[Secret], key: bytes, *, now: int, overlap: int) -> tuple[Secret, ...]:
    """Return the secrets after a rotation, the new one first; the former ones sign for `overlap` seconds more.

    One that was rotated out before keeps its own end. Without an overlap all of them end at once: that is for a secret
    that got out. SigningError when there is none to rotate, or when as many sign as may.
    """
    if not secrets:
        raise SigningError("The config has no signing secret that could be rotated: make one first.")
    if overlap == 0:
        return (Secret(key),)
    ended = (dataclasses.replace(each, until=now + overlap) if each.until is None else each for each in secrets)
    former = [each for each in ended if each.until is not None and each.until > now]
    if len(former) >= _MOST_SECRETS:
        # Dropping the oldest would break a receiver that knows no other, which nobody here can know.
        raise SigningError(
            f"{_MOST_SECRETS} secrets of the config sign already: wait until the overlap of one is over, or rotate "
            "with an overlap of 0, which ends all of them at once."
        )
    return (Secret(key), *former)


def signature(secrets: Sequence[Secret], event_id: str, timestamp: int, body: bytes) -> str:
    """Return the value of webhook-signature: one `v1,…` for each secret that signs at `timestamp`, the newest first."""
    signed = b"%b.%d.%b" % (event_id.encode("ascii"), timestamp, body)
    return " ".join(
        "v1," + base64.b64encode(hmac.digest(each.key, signed, "sha256")).decode("ascii")
        for each in secrets
        if each.until is None or timestamp < each.until
    )
