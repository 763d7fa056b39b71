"""A postback config as its readers see it (contract §1 and §3): the HTTP API and `--json`."""

from outbox.core.model import PostbackConfig


def to_document(config: PostbackConfig) -> dict[str, str | int | None]:
    """Return the config in the API's form: booleans are "1" and "0", times epoch seconds.

    The basic auth values are left out, sealed as they are: nobody who reads a config needs them.
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
        "created_ts": int(config.created_at.timestamp()),
        "modified_ts": int(config.modified_at.timestamp()),
    }


def _flag(value: bool) -> str:  # noqa: FBT001 - it is all that there is to pass
    return "1" if value else "0"
