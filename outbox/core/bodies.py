"""Form bodies: what several configs want of one change is made once. No I/O."""

from outbox.core import expansions, postback
from outbox.core.model import Delivery

KEPT = 64
"""Bodies that are kept, those made last: configs that want the same changes are sent them about the same time."""

LARGEST_KEPT = 1 << 14
"""Bytes of a body that is kept: a megabyte in all."""

GIVEN_UP_AFTER = 256
"""So many different ones in a row, and nobody wants the same."""

RESTS_FOR = 4096
"""So many are made then before it is tried again."""


class Bodies:
    """Makes the bodies of POSTs. To encode a record takes a tenth of all that its delivery costs the daemon."""

    def __init__(self) -> None:
        self._made: dict[tuple[str, int, str], bytes] = {}
        self._different = 0
        self._rest = 0

    def of(self, delivery: Delivery, expands: str) -> bytes | None:
        """Return the body for a config with these expands; None where the event is no longer kept."""
        if self._rest:
            self._rest -= 1
            return _body(delivery, expands)
        key = (delivery.webhook_id, delivery.attempt, expands)
        body = self._made.get(key)
        if body is not None:
            self._different = 0
            return body
        body = _body(delivery, expands)
        self._different += 1
        if self._different >= GIVEN_UP_AFTER:
            self._different, self._rest = 0, RESTS_FOR
            self._made.clear()
        elif body is not None and len(body) <= LARGEST_KEPT:
            if len(self._made) >= KEPT:
                del self._made[next(iter(self._made))]
            self._made[key] = body
        return body


def _body(delivery: Delivery, expands: str) -> bytes | None:
    if delivery.type is None or delivery.resource is None or delivery.data is None:
        return None
    data = delivery.data
    if delivery.expansions is not None:
        data = expansions.embed(data, delivery.expansions, expands)
    return postback.form_body(delivery.type, delivery.resource, delivery.attempt, data)
