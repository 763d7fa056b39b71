"""Claim of governed configs, those with strict order, a rate limit or an open circuit: each by its own rules."""

import math
import time

import psycopg

from outbox.core.low_water import LowWater
from outbox.core.model import NO_CONFIG
from outbox.core.tally import Statement, Tally
from outbox.daemon.intake import Intake
from outbox.daemon.rest import Rest
from outbox.postgres import governed
from outbox.postgres.governed import Governed

GOVERNED_SHARE = 4
"""Governed configs may be given one in so many of the free slots by each claim."""

GATHER_TIMES = 1
"""See Rest. No route leases anything of theirs: each of their deliveries waits for a claim. With 4, a change took twice
as long at 400 a second, and a backlog half as long again, for the same processor time."""


class GovernedClaimer:
    """It claims on the connection that the routes have: what goes in order must not be claimed beside them."""

    def __init__(self, intake: Intake, low_water: LowWater, *, tally: Tally, poll_interval: float) -> None:
        self._intake = intake
        self._low_water = low_water
        self._tally = tally
        self._rest = Rest(GATHER_TIMES, most=poll_interval)
        self._after = NO_CONFIG
        self._are_some = False
        self._is_behind = True
        """Whether something may be due since the last claim, or was left by it."""
        self._refilled_at = math.inf
        self._parked_until = math.inf

    def note_woken(self) -> None:
        """Note that something woke the loop: it may be due."""
        self._is_behind = True

    @property
    def is_owed(self) -> bool:
        """Whether something may be due that was not looked at, or only waits for a rate limit."""
        return self._are_some and (self._is_anything_left or self._refilled_at < math.inf)

    @property
    def _is_anything_left(self) -> bool:
        return self._is_behind or self._rest.has_unseen

    @property
    def is_in_doubt(self) -> bool:
        """Whether a route left something for a config that may be governed, and none was known to be."""
        return self._rest.has_unseen and not self._are_some

    @property
    def next_look(self) -> float:
        """When to look though nothing rings, on the monotonic clock."""
        if not self._are_some:
            return math.inf
        if self._is_anything_left:
            return self._rest.ends
        return self._rest.put_off(min(self._refilled_at, self._parked_until))

    def look_at_once(self) -> None:
        """Let the next claim not be put off."""
        self._rest.end()

    def note_unseen(self) -> None:
        """Note that something was left due which no claim has seen."""
        self._rest.has_unseen = True

    async def prepare(self, conn: psycopg.AsyncConnection) -> None:
        """Learn whether there are any."""
        self._are_some, are_in_order = await governed.prepare(conn)
        self._rest.has_unseen &= self._are_some
        self._low_water.keep_order(time.monotonic(), wanted=are_in_order)

    async def claim(self, conn: psycopg.AsyncConnection) -> bool:
        """Claim what is due of some of them; returns whether to go on with the others at once."""
        if not self._are_some:
            return False
        now = time.monotonic()
        # A share, before the common claim: each must leave something to the other.
        slots = -(-self._intake.slots // GOVERNED_SHARE)
        if slots == 0 or now < self._rest.ends:
            return False
        rooms, room = self._intake.rooms()
        self._rest.claim_begins()
        found = await governed.claim_governed(
            conn, after=self._after, slots=slots, room=room, rooms=rooms, lease=self._intake.lease,
            hidden=self._low_water.hidden(now),
        )  # fmt: skip
        self._tally.took(Statement.CLAIM_GOVERNED, time.monotonic() - now)
        self._tally.claimed += len(found.deliveries)
        self._note(found, now, slots=slots)
        await self._intake.admit(conn, found, now)
        self._intake.note(found, rooms=rooms, room=room, governed=True)
        return found.walked_to is not None

    def _note(self, found: Governed, now: float, *, slots: int) -> None:
        """Remember what was left, and when to look at it."""
        was_in_the_middle, self._after = self._after != NO_CONFIG, found.walked_to or NO_CONFIG
        self._is_behind = found.cut_short or len(found.deliveries) == slots or was_in_the_middle
        self._refilled_at = math.inf if found.refilled_in is None else now + found.refilled_in
        if self._parked_until <= now:
            self._parked_until = math.inf
        if found.parked_for is not None:
            self._parked_until = min(self._parked_until, now + found.parked_for)
        if found.walked_to is None:
            # Where nothing could be done about what was seen, the next claim would see the same.
            self._rest.claimed_all(found=bool(found.deliveries) or found.parked_for is not None)
