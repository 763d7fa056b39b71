"""A flood: more is captured for some configs than they can take. Whose it is, and how much of it to route next.

No clock, no I/O.
"""

import math
from collections.abc import Mapping
from uuid import UUID

MUCH = 0.25
"""What part of the changes in a look a config must want for a flood. Where as much is for others, it is none either:
passing it by would take longer than routing it."""

A_PART_OF_MOST = 0.25
"""Of a flood's configs those take part that have room for no less than this part of what the one with the most has."""

Shares = Mapping[UUID, float]
"""The configs of a flood, each with the part of its changes that it wants; empty where there is no flood."""


def whose(
    found: Mapping[UUID, int],
    *,
    rows: int,
    created: int,
    says_little: bool,
    before: Shares,
    rooms: Mapping[UUID, int],
    room: int,
) -> Shares:
    """Return whose flood it is after a look that left something: who had much in it, and no less than he had room for.

    `found`: how many deliveries each config was made, of those that are not governed. `rows`: the look's changes, which
    made `created` deliveries; `says_little`: too few to tell what is behind them. `before`: the flood until then.
    `rooms`, and `room` for the others: how many each could take.
    """
    if says_little:
        return {config_id: share for config_id, share in before.items() if config_id in found}
    flood = {
        config_id: number / rows
        for config_id, number in found.items()
        if number >= rows * MUCH and (config_id in before or number >= rooms.get(config_id, room))
    }
    others = sum(number for config_id, number in found.items() if config_id not in flood)
    return {} if others > created * MUCH else flood


def rows_wanted(flood: Shares, *, slots: int, rooms: Mapping[UUID, int]) -> int:
    """Return how many changes of a flood to route: what that of its configs can take which has the most room.

    Who is slow has little, and must not hold back the quick ones that want the same changes. Of those that take part no
    more comes than there are slots. At least one.
    """
    room_of = {config_id: rooms.get(config_id, 0) for config_id in flood}
    least = max(room_of.values()) * A_PART_OF_MOST
    made = sum(flood[config_id] for config_id, room in room_of.items() if room >= least)
    wanted = max(room / flood[config_id] for config_id, room in room_of.items())
    return max(1, min(slots, math.ceil(wanted), math.ceil(slots / made)))
