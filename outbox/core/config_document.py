"""A postback config as its readers see it (contract §1 and §3): the HTTP API and `--json`."""

from collections.abc import Mapping
from datetime import datetime

from outbox.core.model import PostbackConfig

TROUBLES: Mapping[str, str] = {
    "circuit_opened_ts": "Since when it gets probes only, because it failed many times in a row.",
    "exhausted_ts": "When a delivery first ran out of tries since it last recovered.",
    "disabled_ts": "When it was switched off, because it did nothing but fail.",
    "disabled_reason": "Why it was switched off.",
}
"""What is said of a config in trouble, and what it means; null for all others."""

FLAGS = ("on_create", "on_update", "on_delete", "is_active", "paused", "signed")
"""What is a "1" or a "0" there."""


def to_document(config: PostbackConfig) -> dict[str, str | int | None]:
    """Return the config in the API's form: booleans are "1" and "0", times epoch seconds.

    What it keeps secret is left out, sealed as it is: nobody who reads a config needs it.
    """
    return {
        "id": str(config.id),
        "location_id": config.location_id,
        "resource": config.resource,
        "product_transaction_id": config.product_transaction_id,
        "on_create": _flag(config.on_create),
        "on_update": _flag(config.on_update),
        "on_delete": _flag(config.on_delete),
        "url": config.url,
        "is_active": _flag(config.is_active),
        "paused": _flag(config.paused_at is not None),
        "format": config.format,
        "number_of_attempts": config.number_of_attempts,
        "attempt_interval": config.attempt_interval,
        "expands": config.expands,
        "backoff": config.backoff,
        "backoff_limit": config.backoff_limit,
        "strict_order": config.strict_order,
        "rate_limit": config.rate_limit,
        "signed": _flag(config.signing_secrets is not None),
        "circuit_opened_ts": _seconds(config.circuit_opened_at),
        "exhausted_ts": _seconds(config.exhausted_at),
        "disabled_ts": _seconds(config.disabled_at),
        "disabled_reason": config.disabled_reason,
        "created_ts": int(config.created_at.timestamp()),
        "modified_ts": int(config.modified_at.timestamp()),
    }


def _seconds(at: datetime | None) -> int | None:
    return None if at is None else int(at.timestamp())


def _flag(value: bool) -> str:  # noqa: FBT001 - it is all that there is to pass
    return "1" if value else "0"
