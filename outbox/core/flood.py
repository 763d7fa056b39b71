"""A flood: more is captured for some configs than they can take. Whose it is, and how much of it to route next.

No clock, no I/O.
"""

import math
from collections import Counter
from collections.abc import Collection, Mapping

from outbox.core.model import ConfigId

MUCH = 0.25
"""What part of the changes a config must want for a flood. Where as much is for others, it is none either: passing it
by would take longer than routing it."""

ENOUGH_ROWS = 50
"""So many changes tell whose flood it is. A look that brings fewer is judged together with the next ones."""

MANY_ROWS = 500
"""And so many tell that there is none, however few want them."""

A_PART_OF_MOST = 0.25
"""Of a flood's configs those take part that have room for no less than this part of what the one with the most has."""


class Flood:
    """Whose flood there is, by what the looks at the outbox bring; empty where there is none."""

    def __init__(self) -> None:
        self._shares: Mapping[ConfigId, float] = {}
        """What part of the changes each of its configs wants."""
        self._forget()

    def _forget(self) -> None:
        self._found: Counter[ConfigId] = Counter()
        self._rooms: Counter[ConfigId] = Counter()
        self._rows = self._created = self._leasable = 0

    @property
    def configs(self) -> Collection[ConfigId]:
        """Whose it is."""
        return self._shares.keys()

    def over(self) -> None:
        """Note a look after which nothing is left."""
        self._shares = {}
        self._forget()

    def looked(
        self,
        found: Mapping[ConfigId, int],
        *,
        rows: int,
        created: int,
        slots: int,
        rooms: Mapping[ConfigId, int],
        room: int,
        enough: int,
    ) -> None:
        """Note a look that left something.

        `found`: how many deliveries each config was made, of those that are not governed. `rows`: the look's changes,
        which made `created` deliveries. `slots`: how many could be leased; `rooms`, and `room` for the others, of each.
        `enough`: so many deliveries tell whose flood it is, and no more changes than that.
        """
        room_of = {config_id: rooms.get(config_id, room) for config_id in found}
        self._found.update(found)
        self._rooms.update(room_of)
        self._rows += rows
        self._created += created
        self._leasable += min(slots, sum(room_of.values()))
        tells = self._created >= enough and self._rows >= min(enough, ENOUGH_ROWS)
        if tells or self._rows >= MANY_ROWS:
            self._shares = self._judged()
            self._forget()

    def _judged(self) -> Mapping[ConfigId, float]:
        """Return who had much, and no less than he had room for, or than could be leased of all."""
        is_more = self._created >= self._leasable
        shares = {
            config_id: number / self._rows
            for config_id, number in self._found.items()
            if number >= self._rows * MUCH
            and (is_more or config_id in self._shares or number >= self._rooms[config_id])
        }
        others = sum(number for config_id, number in self._found.items() if config_id not in shares)
        return {} if others > self._created * MUCH else shares

    def rows_wanted(self, *, slots: int, rooms: Mapping[ConfigId, int]) -> int:
        """Return how many changes to route, at least one: what that of its configs can take which has the most room.

        Who is slow has little, and must not hold back the quick ones that want the same changes. Of those that take
        part no more comes than there are slots.
        """
        room_of = {config_id: rooms.get(config_id, 0) for config_id in self._shares}
        least = max(room_of.values()) * A_PART_OF_MOST
        made = sum(self._shares[config_id] for config_id, room in room_of.items() if room >= least)
        wanted = max(room / self._shares[config_id] for config_id, room in room_of.items())
        return max(1, min(slots, math.ceil(wanted), math.ceil(slots / made)))
