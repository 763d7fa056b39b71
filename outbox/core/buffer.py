"""Deliveries in hand: what was claimed and waits for a slot, and what is being sent; fair over configs.

How much more may be claimed is decided here and nowhere else, which config sends next in `turns.py`. No clock, no I/O.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from collections.abc import Set as AbstractSet

from outbox.core.lane import QUICK_SECONDS, Held, Lane
from outbox.core.model import ConfigId
from outbox.core.slots import QUICK, SLOW, TIMED_OUT, UNKNOWN, Standing
from outbox.core.turns import Turns

AHEAD = 5000
"""How many deliveries may wait in hand, all configs together. At 10,000 a second they last half a second."""

LOOK_AHEAD = 0.15
"""Seconds: a config may have that much of its own pace waiting, so that a claim brings many and none waits long."""

LOOK_AHEAD_ALONE = 0.4
"""The same while no other config keeps up. The answer to a route comes in pieces, one a turn of a busy event loop:
with less, all in hand is sent before the next is here. Not more for all, because to take in much takes a long turn."""

SHARES = 2
"""One config has this part of the buffer at most, however fast it is: others find slots, and claims stay short."""

UNPROVEN_SHARE = 256
"""Who is not known to be quick may have as much waiting as this part of what is free in the buffer."""

UNPROVEN_MOST = 15 / 16
"""And all of them together this part of the buffer: so something is free, however many configs hang."""

KNOWN_SECONDS = 10.0
"""Who was answered soon is known to be quick for so long, if nothing else is heard of it. So long, too, slots are kept
for others where all that is in hand is slow."""

TURN_GOAL = 0.0002
"""Seconds of POSTs of one config that a turn of the event loop should bring at most, where the config is owed much, is
quick, and others keep up."""

QUICK_TURNS = 16
"""A config is quick whose POSTs take so many turns of the event loop at most."""


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

    A fourth is for the day on which many hang at once. Who is known to be quick finds slots that the others can not
    have (`core/slots.py`), in flight and in hand. Who falls silent starts no other POST until one is answered. Of those
    that timed out, whose last POST is longest ago has the next turn.
    """

    def __init__(self, *, concurrency: int, per_config: int) -> None:
        self._concurrency = concurrency
        self._per_config = min(per_config, concurrency)
        self._capacity = concurrency + AHEAD
        self._lanes: dict[ConfigId, Lane] = {}
        self._turns = Turns(concurrency)
        self._limits: dict[ConfigId, int] = {}
        self._timed_out: dict[ConfigId, int] = {}
        """Configs whose last POST timed out, with the number of its start."""
        self._answered: dict[ConfigId, float] = {}
        """Configs that are known to be quick and have nothing in hand, with the time of the last answer."""
        self._failing: AbstractSet[ConfigId] = frozenset()
        self._clock = 0.0
        self._marked_at = 0.0
        self._others_at = 0.0
        """When there were last any who are not slow; at the start one does not know."""
        self._resume_at = -1
        self._lag = 0.0
        self._others_keep_up = False
        self.waiting = 0
        self.unsettled = 0
        """Finished and not settled yet, as the settling side counts them."""
        self._unproven = 0
        """What waits of those that are not known to be quick."""

    @property
    def in_flight(self) -> int:
        """How many are being sent."""
        return self._turns.in_flight

    @property
    def in_flight_by_standing(self) -> dict[str, int]:
        """How many of these are of configs that are `quick`, `slow`, `timed_out` or `unknown`."""
        return {standing.name.lower(): self._turns.taken(standing) for standing in Standing}

    @property
    def slots(self) -> int:
        """How many more may be claimed, all configs together."""
        return max(0, self._capacity - self.in_hand)

    @property
    def room(self) -> int:
        """How many may be claimed of a config that has nothing in hand; less as the buffer fills.

        None only where it is full of what those have in hand that are not known to be quick.
        """
        spare = self._unproven_room
        return max(min(1, spare), min(self._per_config, spare, self.slots // UNPROVEN_SHARE))

    @property
    def _unproven_room(self) -> int:
        """How many more may wait of all those that are not known to be quick."""
        return max(0, int(self._capacity * UNPROVEN_MOST) - self._unproven)

    def measure(self, elapsed: float) -> None:
        """Measure each config's pace: what it finished in the `elapsed` seconds since this was called last."""
        self._turns.queue_crowded(self._concurrency)
        if elapsed <= 0:
            return
        self._clock += elapsed
        if self._clock - self._marked_at >= QUICK_SECONDS:
            self._mark()
        known_since = self._known_since
        while self._answered and next(iter(self._answered.values())) < known_since:
            del self._answered[next(iter(self._answered))]
        self._note_others()
        for config_id, lane in list(self._lanes.items()):
            lane.measure(elapsed)
            if lane.in_hand == 0 and lane.pace < 1 and not lane.queued:
                del self._lanes[config_id]
                if lane.standing is QUICK:
                    self._answered[config_id] = lane.answered_at
                continue
            if lane.standing is QUICK and lane.answered_at < known_since:
                self._place(lane, UNKNOWN)
            self._share_the_loop(lane)

    def _note_others(self) -> None:
        """Find out whether there are others than those that are owed much, and than those that are slow."""
        self._others_keep_up = any(not lane.more for lane in self._lanes.values())
        slow = sum(lane.standing in (TIMED_OUT, SLOW) for lane in self._lanes.values())
        if slow == 0 or slow < len(self._lanes) or self._answered:
            self._others_at = self._clock
        self._turns.note_others(some=self._clock - self._others_at < KNOWN_SECONDS)

    def _share_the_loop(self, lane: Lane) -> None:
        """Let who is owed much and is quick have as few in flight as the loop serves in a moment, if others keep up."""
        enough = max(1.0, lane.pace * TURN_GOAL)
        # By Little's law: whoever's POSTs take many turns of the loop has them elsewhere, and would lose by it.
        is_quick = lane.pace * self._lag * QUICK_TURNS >= lane.in_flight
        if self._others_keep_up and lane.more and is_quick and lane.useful > enough:
            lane.useful -= (lane.useful - enough) / 2
        else:
            lane.useful = min(float(self._per_config), lane.useful + 1)

    @property
    def _known_since(self) -> float:
        """Who was answered soon before that, and not since, is known for it no more."""
        return self._clock - KNOWN_SECONDS

    def _mark(self) -> None:
        """Find out what has been in flight for long."""
        for lane in self._lanes.values():
            lane.mark()
            if lane.overdue and lane.standing not in (TIMED_OUT, SLOW):
                self._place(lane, SLOW)
        self._marked_at = self._clock

    def rooms(self) -> dict[ConfigId, int]:
        """Return how many more may be claimed of each config that has something in hand, or had lately."""
        rooms = {}
        look_ahead = LOOK_AHEAD if self._others_keep_up else LOOK_AHEAD_ALONE
        unproven = min(self.slots // UNPROVEN_SHARE, self._unproven_room)
        for config_id, lane in self._lanes.items():
            lane.allowance = min(lane.limit + int(lane.pace * look_ahead), max(lane.limit, self._capacity // SHARES))
            if lane.standing is not QUICK:
                lane.allowance = min(lane.allowance, lane.in_flight + max(unproven, len(lane.waiting)))
            rooms[config_id] = max(0, lane.allowance - lane.in_hand)
        if not self._unproven_room:
            rooms |= dict.fromkeys(self._answered, min(self._per_config, self.slots))
        return rooms

    def claimable(self, rooms: Mapping[ConfigId, int]) -> int:
        """Return how many one claim may bring at most, with these rooms.

        It may be for configs of which nothing is known yet, and all of them hang: so no more than half of what may wait
        of those, and what the others have room for.
        """
        quick = sum(rooms.get(config_id, 0) for config_id, lane in self._lanes.items() if lane.standing is QUICK)
        return min(self.slots, quick + self._unproven_room // 2 + 1)

    def note_failing(self, config_ids: AbstractSet[ConfigId]) -> None:
        """Learn whose last try failed, whoever made it: of whom nothing else is known, they are taken for slow.

        Who timed out here, has nothing in hand and is not among them recovered elsewhere, or is sent no more to.
        """
        self._failing = config_ids
        for known in (self._timed_out, self._limits):
            for config_id in [each for each in known if each not in config_ids and each not in self._lanes]:
                del known[config_id]

    def put(self, claimed: Iterable[Held]) -> None:
        """Take claimed deliveries in hand, in the order of their leases."""
        for held in claimed:
            config_id = held.delivery.config_id
            lane = self._lanes.get(config_id)
            if lane is None:
                lane = self._lanes[config_id] = self._new_lane(config_id)
            lane.waiting.append(held)
            self.waiting += 1
            if lane.standing is not QUICK:
                self._unproven += 1
            self._turns.queue(lane)

    def _new_lane(self, config_id: ConfigId) -> Lane:
        limit, answered_at = self._limits.get(config_id, self._per_config), self._answered.pop(config_id, -math.inf)
        if config_id in self._timed_out:
            standing = TIMED_OUT
        elif answered_at >= self._known_since:
            standing = QUICK
        else:
            standing = SLOW if config_id in self._failing else UNKNOWN
        started = self._timed_out.get(config_id, 0)
        return Lane(limit, float(self._per_config), standing, started, answered_at=answered_at, allowance=limit)

    def take(self) -> Held | None:
        """Return the next delivery to send, which is in flight from now on; None while there is none to start."""
        if self._turns.in_flight + self.unsettled >= self._concurrency or not (lane := self._turns.start(self._clock)):
            return None
        held = lane.waiting.popleft()
        self.waiting -= 1
        if lane.standing is not QUICK:
            self._unproven -= 1
        if not lane.is_full:
            self._turns.queue(lane)
        return held

    def finished(self, config_id: ConfigId, *, timed_out: bool | None, seconds: float = 0.0) -> bool:
        """Give back the slot of a delivery that `take` gave. Returns whether its config wants more to be claimed.

        `timed_out` is None when nothing was sent: then it says nothing of the subscriber. `seconds`: how long it took.
        """
        lane = self._lanes[config_id]
        self._turns.end(lane)
        if lane.old:
            lane.note_end(seconds, since_mark=self._clock - self._marked_at)
        standing = lane.standing
        if timed_out:
            self._timed_out[config_id] = lane.started
            standing = lane.note_timed_out()
        elif timed_out is not None:
            if standing is TIMED_OUT:
                self._timed_out.pop(config_id, None)
            standing = lane.note_answered(seconds, clock=self._clock, most=self._per_config)
        if standing is not lane.standing:
            self._place(lane, standing)
        if lane.limit < self._per_config:
            self._limits[config_id] = lane.limit
        else:
            self._limits.pop(config_id, None)
        self._turns.follow(lane)
        if lane.more and lane.in_hand <= lane.allowance * 3 // 4:
            return True
        return self._resume_at >= 0 and self.in_hand <= self._resume_at

    def note(
        self,
        claimed: Iterable[ConfigId],
        *,
        rooms: Mapping[ConfigId, int],
        room: int,
        all_taken: bool,
        governed: bool,
        full: bool,
    ) -> None:
        """Remember what a claim left.

        `claimed`: the config of each delivery. `rooms` and `room` are what the claim was given: who got all of his is
        owed more, perhaps. `all_taken`: who got less is owed no more. `governed`: it was a claim of governed configs,
        of which no other says anything. `full`: there are no slots for another claim.
        """
        taken = Counter(claimed)
        for config_id, lane in self._lanes.items():
            given = rooms.get(config_id, room)
            if taken[config_id]:
                lane.is_governed = governed
            if lane.is_governed is not governed:
                continue
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
        return not self.is_nearly_full and room >= max(
            1, min(sum(lane.allowance for lane in wanting) // 4, self._capacity // 4)
        )

    @property
    def is_nearly_full(self) -> bool:
        """Whether there is so little room that a claim would bring few, and more soon: nothing slow fills it."""
        return self.slots < self._capacity // 4 and self._unproven < self._capacity // 2

    @property
    def in_hand(self) -> int:
        """How many wait or are in flight."""
        return self.waiting + self.in_flight

    def _place(self, lane: Lane, standing: Standing) -> None:
        """Note that a config stands elsewhere now."""
        self._unproven += len(lane.waiting) * ((standing is not QUICK) - (lane.standing is not QUICK))
        self._turns.place(lane, standing)

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
                self._unproven -= lane.standing is not QUICK
        self.waiting -= len(found)
        return found

    @property
    def startable(self) -> int:
        """How many POSTs could begin now, at the most."""
        return self._turns.startable(max(0, self._concurrency - self.in_flight - self.unsettled), self._clock)

    @property
    def limited(self) -> int:
        """Of how many configs fewer may be in flight than the setting says, because their POSTs timed out."""
        return len(self._limits)

    @property
    def timed_out(self) -> int:
        """How many configs' last POST timed out: together they have a quarter of the slots."""
        return len(self._timed_out)

    @property
    def config_ids(self) -> list[ConfigId]:
        """The configs that have something waiting."""
        return [config_id for config_id, lane in self._lanes.items() if lane.waiting]
