"""Deliveries in hand: what was claimed and waits for a slot, and what is being sent; fair over configs.

Who may be sent next, and how much more may be claimed, is decided here and nowhere else. No clock, no I/O.
"""

import math
from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import NamedTuple
from uuid import UUID

from outbox.core.model import Delivery

AHEAD = 5000
"""How many deliveries may wait in hand, all configs together. At 10,000 a second they last half a second."""

LOOK_AHEAD = 0.15
"""Seconds: a config may have that much of its own pace waiting, so that a claim brings many and none waits long."""

LOOK_AHEAD_ALONE = 0.4
"""The same while no other config keeps up. The answer to a route comes in pieces, one a turn of a busy event loop:
with less, all in hand is sent before the next is here. Not more for all, because to take in much takes a long turn."""

SHARES = 2
"""One config has this part of the buffer at most, however fast it is: others find slots, and claims stay short."""

PACE_WINDOW = 0.25
"""Seconds over which a config's pace is measured while it falls."""

RISE_WINDOW = 0.05
"""Seconds over which it is measured while it rises: who has done all that he was given could have done more."""

TURN_GOAL = 0.0002
"""Seconds of POSTs of one config that a turn of the event loop should bring at most, where the config is owed much, is
quick, and others keep up."""

QUICK_TURNS = 16
"""A config is quick whose POSTs take so many turns of the event loop at most."""


class Held(NamedTuple):
    """A delivery in hand, with its lease."""

    delivery: Delivery
    claimed_at: datetime
    """The database's time of the claim."""
    clock: float
    """The monotonic clock just before the claim."""
    start_before: float
    """Until when its POST may begin, on the monotonic clock: later, the lease could run out meanwhile."""


@dataclass(slots=True)
class _Lane:
    """One config's deliveries in hand."""

    limit: int
    useful: float
    waiting: deque[Held] = field(default_factory=deque)
    in_flight: int = 0
    finished: int = 0
    pace: float = 0.0
    queued: bool = False
    allowance: int = 0
    """How many it may have in hand, as it was asked for last."""
    more: bool = False
    """Whether it may be owed more than it was given last."""

    @property
    def in_hand(self) -> int:
        return len(self.waiting) + self.in_flight

    @property
    def is_full(self) -> bool:
        return self.in_flight >= min(self.limit, self.useful)

    @property
    def startable(self) -> int:
        return 0 if self.is_full else min(len(self.waiting), math.ceil(min(self.limit, self.useful)) - self.in_flight)


class Buffer:
    """Hands out deliveries to senders, turn by turn over the configs.

    `concurrency`: POSTs in flight at most, those included that are not settled yet: so many outcomes can a crash leave
    unknown. `per_config`: in flight of one config at most. Two rules keep one subscriber from
    slowing another. A config may start a POST only while it has fewer in flight than there are free slots, so that
    some are always free. And each POST that timed out halves what its config may have in flight, each answer gives
    one back, so that endpoints that hang end up with one slot each.

    A third keeps the event loop quick for all. A subscriber that answers at once needs few POSTs in flight: of more,
    the answers wait for the loop, which has the others wait as long. So while there are others that keep up, who is
    owed much and is quick has as few in flight as the loop serves in a moment. Who is slow keeps what it has.
    """

    def __init__(self, *, concurrency: int, per_config: int) -> None:
        self._concurrency = concurrency
        self._per_config = min(per_config, concurrency)
        self._capacity = concurrency + AHEAD
        self._lanes: dict[UUID, _Lane] = {}
        self._turns: deque[_Lane] = deque()
        self._crowded: deque[_Lane] = deque()
        self._limits: dict[UUID, int] = {}
        self._resume_at = -1
        self._lag = 0.0
        self._others_keep_up = False
        self.in_flight = 0
        self.waiting = 0
        self.unsettled = 0
        """Finished and not settled yet, as the settling side counts them."""

    @property
    def slots(self) -> int:
        """How many more may be claimed, all configs together."""
        return max(0, self._capacity - self.in_hand)

    @property
    def room(self) -> int:
        """How many may be claimed of a config that has nothing in hand; less as the buffer fills, but never none."""
        return max(1, min(self._per_config, self.slots // 4))

    def measure(self, elapsed: float) -> None:
        """Measure each config's pace: what it finished in the `elapsed` seconds since this was called last."""
        while self._crowded:
            self._queue(self._crowded.popleft())
        if elapsed <= 0:
            return
        falling, rising = min(1.0, elapsed / PACE_WINDOW), min(1.0, elapsed / RISE_WINDOW)
        self._others_keep_up = any(not lane.more for lane in self._lanes.values())
        for config_id, lane in list(self._lanes.items()):
            change = lane.finished / elapsed - lane.pace
            lane.pace += change * (rising if change > 0 else falling)
            lane.finished = 0
            if lane.in_hand == 0 and lane.pace < 1:
                del self._lanes[config_id]
                continue
            enough = max(1.0, lane.pace * TURN_GOAL)
            # By Little's law: whoever's POSTs take many turns of the loop has them elsewhere, and would lose by it.
            is_quick = lane.pace * self._lag * QUICK_TURNS >= lane.in_flight
            if self._others_keep_up and lane.more and is_quick and lane.useful > enough:
                lane.useful -= (lane.useful - enough) / 2
            else:
                lane.useful = min(float(self._per_config), lane.useful + 1)

    def rooms(self) -> dict[UUID, int]:
        """Return how many more may be claimed of each config that has something in hand, or had lately."""
        rooms = {}
        look_ahead = LOOK_AHEAD if self._others_keep_up else LOOK_AHEAD_ALONE
        for config_id, lane in self._lanes.items():
            lane.allowance = min(lane.limit + int(lane.pace * look_ahead), max(lane.limit, self._capacity // SHARES))
            rooms[config_id] = max(0, lane.allowance - lane.in_hand)
        return rooms

    def put(self, claimed: Iterable[Held]) -> None:
        """Take claimed deliveries in hand, in the order of their leases."""
        for held in claimed:
            config_id = held.delivery.config_id
            lane = self._lanes.get(config_id)
            if lane is None:
                limit = self._limits.get(config_id, self._per_config)
                lane = self._lanes[config_id] = _Lane(limit, float(self._per_config), allowance=limit)
            lane.waiting.append(held)
            self.waiting += 1
            self._queue(lane)

    def take(self) -> Held | None:
        """Return the next delivery to send, which is in flight from now on; None while there is none to start."""
        while self._turns and self.in_flight + self.unsettled < self._concurrency:
            lane = self._turns.popleft()
            lane.queued = False
            if not lane.waiting or lane.is_full:
                continue
            if lane.in_flight >= max(1, self._concurrency - self.in_flight):
                self._crowded.append(lane)
                continue
            held = lane.waiting.popleft()
            lane.in_flight += 1
            self.waiting -= 1
            self.in_flight += 1
            self._queue(lane)
            return held
        return None

    def finished(self, config_id: UUID, *, timed_out: bool | None) -> bool:
        """Give back the slot of a delivery that `take` gave. Returns whether its config wants more to be claimed.

        `timed_out` is None when nothing was sent: then it says nothing of the subscriber.
        """
        lane = self._lanes[config_id]
        lane.in_flight -= 1
        self.in_flight -= 1
        if timed_out is not None:
            lane.finished += 1
            lane.limit = max(1, lane.limit // 2) if timed_out else min(self._per_config, lane.limit + 1)
        if lane.limit < self._per_config:
            self._limits[config_id] = lane.limit
        else:
            self._limits.pop(config_id, None)
        self._queue(lane)
        if self._crowded:  # there is one free slot more
            self._queue(self._crowded.popleft())
        return self.in_hand <= self._resume_at or (lane.more and lane.in_hand <= lane.allowance * 3 // 4)

    def note(
        self, claimed: Iterable[UUID], *, rooms: Mapping[UUID, int], room: int, all_taken: bool, full: bool
    ) -> None:
        """Remember what a claim left.

        `claimed`: the config of each delivery. `rooms` and `room` are what the claim was given: who got all of his is
        owed more, perhaps. `all_taken`: who got less is owed no more. `full`: there are no slots for another claim.
        """
        taken = Counter(claimed)
        for config_id, lane in self._lanes.items():
            given = rooms.get(config_id, room)
            if taken[config_id] >= given:
                lane.more = True
            elif all_taken:
                lane.more = False
        self._resume_at = self.in_hand // 2 if full else -1

    @property
    def is_hungry(self) -> bool:
        """Whether those that may be owed more have room for so many that a claim is worth while at once."""
        wanting = [lane for lane in self._lanes.values() if lane.more]
        room = sum(max(0, lane.allowance - lane.in_hand) for lane in wanting)
        return room >= max(1, min(sum(lane.allowance for lane in wanting) // 4, self._capacity // 4))

    @property
    def in_hand(self) -> int:
        """How many wait or are in flight."""
        return self.waiting + self.in_flight

    def _queue(self, lane: _Lane) -> None:
        if lane.waiting and not lane.queued:
            lane.queued = True
            self._turns.append(lane)

    def note_lag(self, seconds: float) -> None:
        """Remember how long a turn of the event loop took."""
        self._lag += (seconds - self._lag) / 2

    def withdraw(self) -> list[Held]:
        """Give up all that waits, and return it."""
        return self.expired(math.inf)

    def expired(self, now: float) -> list[Held]:
        """Give up what may not begin any more at `now`, and return it."""
        found: list[Held] = []
        for lane in self._lanes.values():
            while lane.waiting and lane.waiting[0].start_before < now:
                found.append(lane.waiting.popleft())
        self.waiting -= len(found)
        return found

    @property
    def startable(self) -> int:
        """How many POSTs could begin now, at the most."""
        free = max(0, self._concurrency - self.in_flight - self.unsettled)
        count = 0
        for lane in self._turns:
            if count >= free:
                break
            count += lane.startable
        return min(count, free)

    @property
    def limited(self) -> int:
        """Of how many configs fewer may be in flight than the setting says, because their POSTs timed out."""
        return len(self._limits)

    @property
    def config_ids(self) -> list[UUID]:
        """The configs that have something waiting."""
        return [config_id for config_id, lane in self._lanes.items() if lane.waiting]
