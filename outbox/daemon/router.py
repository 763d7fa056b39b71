"""Route: turns what was captured into deliveries, no faster than they are sent; what stands behind a flood goes first.

What is leased as it is routed needs no claim, which would be an update of each row. So while there is more than those
who get it can take, a config's flood stays in the outbox, where the others' rows behind it are looked for.
"""

import time
from collections import Counter
from collections.abc import Mapping

import psycopg

from outbox.core.bypass import Bypass
from outbox.core.flood import Flood
from outbox.core.low_water import LowWater
from outbox.core.model import ConfigId
from outbox.core.stride import DELIVERIES_AT_ONCE, FanOut, Stride
from outbox.core.tally import Statement, Tally
from outbox.daemon.claimer import Claimer
from outbox.daemon.doorbell import Doorbell
from outbox.daemon.flood_log import FloodLog
from outbox.daemon.governed_claimer import GovernedClaimer
from outbox.daemon.intake import Intake
from outbox.postgres import routing
from outbox.postgres.routing import Routed

AHEAD_ROWS = 500
"""Outbox rows that are routed in each AHEAD_SECONDS at least, if there are as many, and no more is leased: a subscriber
that is slow must not keep what he is owed in the outbox, which should be small."""

AHEAD_SECONDS = 0.1

AHEAD_IN_ORDER_ROWS = 1000
"""And so many in each AHEAD_IN_ORDER_SECONDS where what a config with strict order wants stands behind a flood."""

AHEAD_IN_ORDER_SECONDS = 0.06

MANY_SLOTS = 100
"""With so many free slots no more is routed than could be leased, but for that."""

QUIET_SECONDS = 0.1
"""How long no route looks where nothing was left to find, and the doorbell, which was up by then, does not ring."""

OVERTAKE_ROWS = 500
"""How many rows from behind a flood are routed at a time; they are leased as far as there are slots."""


class Router:
    """Looks at the outbox. It is for one task at a time."""

    def __init__(
        self,
        intake: Intake,
        low_water: LowWater,
        doorbell: Doorbell,
        claimer: Claimer,
        governed_claimer: GovernedClaimer,
        *,
        tally: Tally,
    ) -> None:
        self._intake = intake
        self._low_water = low_water
        self._doorbell = doorbell
        self._claimer = claimer
        self._governed_claimer = governed_claimer
        self._tally = tally
        self._stride = Stride()
        self._fan_out_behind = FanOut()
        self._not_before = 0.0
        self._flood = Flood()
        self._flood_log = FloodLog()
        self._bypass = Bypass()
        self._is_waited_for = False
        self.is_captured_now = False
        """Whether something is being captured, and less than could be taken."""
        self.is_put_off = False
        """Whether the last look was left out."""

    @property
    def is_flooded(self) -> bool:
        """Whether more is captured than the configs that it is for can take, as far as one can see."""
        return bool(self._flood.configs)

    @property
    def flooded(self) -> int:
        """For how many configs that is so."""
        return len(self._flood.configs)

    @property
    def next_look(self) -> float | None:
        """When there may be something to find though nothing rings, on the monotonic clock; None when not."""
        if self.is_flooded:
            return min(self._not_before, self._bypass.next_look)
        return self._doorbell.next_look

    def look_at_once(self) -> None:
        """Let the next look not be put off."""
        self._not_before = 0.0

    def forget(self) -> None:
        """Note that a route had no answer, or may have had none."""
        self._stride.had_no_answer()
        self.look_at_once()

    def let_down_doorbell(self) -> None:
        """Note that it rang."""
        self._doorbell.let_down()
        self._low_water.rang()
        self.look_at_once()

    def poll(self) -> None:
        """Look at everything: the doorbell might have rung unheard."""
        self.let_down_doorbell()
        self._low_water.ask(time.monotonic())

    async def raise_doorbell(self, conn: psycopg.AsyncConnection) -> bool:
        """Have the next capture ring; returns whether to look for some that came before."""
        may_have_missed = await self._doorbell.raise_up(conn)
        if not may_have_missed and self._doorbell.is_up:
            self._not_before = time.monotonic() + QUIET_SECONDS
        return may_have_missed

    def may_look_below(self, *, quickly: bool) -> bool:
        """Whether it is time to look below the mark, and that takes no longer than a route may wait for it, or does."""
        return self._low_water.is_quick == quickly and self._low_water.is_due(time.monotonic())

    async def look_below(self, conn: psycopg.AsyncConnection) -> bool:
        """Look for what was committed when the routes had passed it; returns whether to look at it at once."""
        began = time.monotonic()
        lowest = await routing.lowest(conn, up_to=self._low_water.begin_look_below(began))
        ended = time.monotonic()
        self._tally.took(Statement.LOOK_BELOW, ended - began)
        self._low_water.looked_below(ended, lowest)
        if lowest is not None:
            self.look_at_once()
        return lowest is not None

    async def look(self, conn: psycopg.AsyncConnection) -> bool:
        """Route what was captured, unless it is too early to; returns whether to look again at once."""
        now = time.monotonic()
        is_urgent = self.is_flooded and self._intake.is_hungry and not self._intake.is_full
        self.is_put_off = now < self._not_before and not is_urgent and not self._doorbell.is_look_due(now)
        if self.is_put_off:
            self.is_captured_now = False
            return False
        self._doorbell.look(now)
        doorbell_was_up = self._doorbell.is_up
        (rooms, room), slots = self._intake.rooms(), self._slots
        low = self._low_water.low(now)
        limit = self._limit(now, slots, rooms, room)
        routed = await routing.route(
            conn, low=low, rows=limit, slots=slots, room=room, rooms=rooms,
            lease=self._intake.lease, tell_left=self._low_water.keeps_order,
        )  # fmt: skip
        seconds = time.monotonic() - now
        self._tally.took(Statement.ROUTE, seconds)
        self._stride.took(seconds)
        self._stride.fan_out.note(routed.rows, routed.created)
        self.is_captured_now = routed.rows > 0 and routed.to_the_end
        self._doorbell.note(routed, now)
        if routed.rows == 0 and doorbell_was_up and self._doorbell.is_up:
            self._not_before = now + QUIET_SECONDS
        if routed.now is not None:
            self._claimer.note_route(routed.now)
        self._low_water.looked(
            now, routed.top, routed.snapshot, low=low, to_the_end=routed.to_the_end, rows=routed.rows,
            left_to_others=routed.left_to_others,
        )  # fmt: skip
        self._note_flood(routed, slots=slots, rooms=rooms, room=room)
        self._flood_log.note(self._flood.configs, now)
        # Where what keeps its place is waited for, what others take says nothing of how soon its turn comes.
        self._stride.routed(routed.rows, leased=0 if self._is_waited_for else len(routed.deliveries))
        await self._admit(conn, routed, now, rooms=rooms, room=room)
        if not routed.deliveries and not self.is_flooded:
            self._stride.found_nothing()
        return (not routed.to_the_end and not self.is_flooded) or self._low_water.is_due(now)

    def _limit(self, now: float, slots: int, rooms: Mapping[ConfigId, int], room: int) -> int:
        """Return how many rows to route. They may be for any config that has room; of a flood one knows for which."""
        if self.is_flooded:
            limit = self._flood.rows_wanted(slots=slots, rooms=rooms)
        else:
            limit = self._stride.fan_out.rows(min(slots, max(MANY_SLOTS, sum(rooms.values()) + room)))
            if slots < MANY_SLOTS:
                return self._stride.at_once(limit + self._rows_ahead)
        pause = AHEAD_IN_ORDER_SECONDS if self._is_waited_for else AHEAD_SECONDS
        return self._stride.next(now, limit, ahead=self._rows_ahead, pause=pause)

    def _note_flood(self, routed: Routed, *, slots: int, rooms: Mapping[ConfigId, int], room: int) -> None:
        """Find out whose there is more of than they can take; then the next look waits until they have room."""
        was_flooded = self.is_flooded
        if routed.to_the_end:
            self._flood.over()
            # Not when the flood is over, which it is also while a look brings nothing of it: all would be passed again.
            self._bypass = Bypass()
            self._is_waited_for = False
        else:
            self._flood.looked(
                Counter(each.config_id for each in routed.deliveries) + Counter(routed.left), rows=routed.rows,
                created=routed.created, slots=slots, rooms=rooms, room=room, enough=min(MANY_SLOTS, self._rows_ahead),
            )  # fmt: skip
        self._claimer.note_flood(lasts=self.is_flooded)
        if was_flooded and not self.is_flooded:
            self.look_at_once()
        if not self.is_flooded or routed.top is None:
            return
        self._not_before = 0.0 if self._stride.is_cut else self._stride.ahead_at
        self._bypass.stands_at(routed.top)

    @property
    def may_overtake(self) -> bool:
        """Whether it is time to look behind a flood."""
        return self.is_flooded and time.monotonic() >= self._bypass.next_look

    async def overtake(self, conn: psycopg.AsyncConnection) -> None:
        """Route what stands behind the flood and is wanted by others. `look` may be under way on another connection."""
        now, bypass = time.monotonic(), self._bypass
        stretch = bypass.next(now)
        (rooms, room), slots = self._intake.rooms(), self._intake.reserve(OVERTAKE_ROWS)
        fan_out = self._fan_out_behind if self._fan_out_behind.is_known else self._stride.fan_out
        limit = min(OVERTAKE_ROWS, fan_out.rows(DELIVERIES_AT_ONCE))
        try:
            routed = await routing.overtake(
                conn, low=stretch.low, high=stretch.high, scan=stretch.scan, flood=self._flood.configs, rows=limit,
                slots=slots, room=room, rooms=rooms, lease=self._intake.lease,
            )  # fmt: skip
        except BaseException:
            self._intake.free(slots)
            raise
        ended = time.monotonic()
        self._tally.took(Statement.OVERTAKE, ended - now)
        self._fan_out_behind.note(routed.rows, routed.created)
        self._is_waited_for |= routed.in_order
        came_to = stretch.low if routed.top is None else routed.top
        rows = routed.rows
        if rows == limit < OVERTAKE_ROWS:
            rows = stretch.as_dense(rows, came_to=came_to)
        self._stride.routed(routed.rows)
        bypass.looked(stretch, began=now, now=ended, came_to=came_to, rows=rows, to_the_end=routed.to_the_end)
        await self._admit(conn, routed, now, rooms=rooms, room=room, reserved=slots)
        if bypass.is_long(stretch, rows=rows, to_the_end=routed.to_the_end):
            bypass.go_on_near(await routing.last(conn))

    async def _admit(
        self,
        conn: psycopg.AsyncConnection,
        routed: Routed,
        now: float,
        *,
        rooms: Mapping[ConfigId, int],
        room: int,
        reserved: int = 0,
    ) -> None:
        left = sum(routed.left.values())
        if left:
            self._claimer.note_unseen()
        if routed.created > len(routed.deliveries) + left:
            self._governed_claimer.note_unseen()
        self._tally.routed += routed.rows
        self._tally.created += routed.created
        self._tally.leased_at_once += len(routed.deliveries)
        await self._intake.admit(conn, routed, now, reserved=reserved)
        self._intake.note(routed, rooms=rooms, room=room)

    @property
    def _rows_ahead(self) -> int:
        """AHEAD_ROWS; of large records fewer, because a look is one statement."""
        rows = AHEAD_IN_ORDER_ROWS if self._is_waited_for else AHEAD_ROWS
        return int(min(rows, max(1.0, self._intake.records)))

    @property
    def _slots(self) -> int:
        """How many may be leased: half of the slots. What is new must not take all, nor those that hang in one look."""
        return -(-self._intake.slots // 2)
