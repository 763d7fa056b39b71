"""Fetch: routes what was captured and claims what is due, as far as there is room in hand, and sleeps in between."""

import asyncio
import math
import time
from collections.abc import Callable
from uuid import UUID

import psycopg

from outbox.core.buffer import Buffer, Held
from outbox.core.marks import Marks
from outbox.core.tally import Tally
from outbox.daemon.circuits import Circuits
from outbox.daemon.outage import Outage, Patience
from outbox.daemon.settler import Settler
from outbox.daemon.targets import Targets
from outbox.postgres import governed, queue
from outbox.postgres.pool import TRANSIENT, Link

ROUTE_ROWS = 500
"""Outbox rows that a turn takes which routes ahead: the table stays tiny even when there is no slot left to send."""

ROUTE_AHEAD_SECONDS = 0.1
"""How often a turn routes ahead at least, so that what is captured behind a large batch of another config is seen."""

MANY_SLOTS = 100
"""With so many free slots a turn routes no more than it could lease: what is leased at once needs no claim."""

LEASE_MARGIN = 10.0
"""Seconds that a lease outlives the latest end of its POST, for the settle."""

LEAST_WAIT_IN_HAND = 5.0
"""Seconds that a claimed delivery may wait for its POST to begin, at least."""

CLAIM_SHARE = 4
"""A claim that found little is not repeated before this many times its duration has passed."""

WORTH_A_CLAIM = 0.25
"""Little is less than this share of what there were slots for: what comes in dribbles is let gather."""

GOVERNED_SHARE = 4
"""Governed configs may be given one in so many of the free slots by each claim."""

BYTES_IN_HAND = 16_000_000
"""Bytes of records that are claimed ahead at most, by the mean size of the last ones."""

FIRST_GUESS = 1_000_000
"""Bytes of a record before any was seen: the first claim is small."""

RECHECK_SECONDS = 1.0
"""How soon a config that was paused or edited is obeyed for what was claimed before."""

LATE_PAUSE = 0.1
"""Seconds from one look to the next at a settle that is late."""

NO_CONFIG = UUID(int=0)


class Fetcher:
    """The loop that brings work in. `wake` ends its sleep; `start_senders` is called when something came."""

    def __init__(
        self,
        link: Link,
        targets: Targets,
        buffer: Buffer,
        settler: Settler,
        *,
        outage: Outage,
        circuits: Circuits,
        tally: Tally,
        wake: asyncio.Event,
        start_senders: Callable[[], None],
        poll_interval: float,
        request_timeout: float,
    ) -> None:
        self._link = link
        self._targets = targets
        self._buffer = buffer
        self._settler = settler
        self._outage = outage
        self._circuits = circuits
        self._tally = tally
        self._wake = wake
        self._start_senders = start_senders
        self._poll_interval = poll_interval
        self._wait_in_hand = max(LEAST_WAIT_IN_HAND, request_timeout)
        self._lease = self._wait_in_hand + request_timeout + LEASE_MARGIN
        self._marks = Marks()
        self._rooms_at = time.monotonic()
        self._route_ahead_at = 0.0
        self._cursor = NO_CONFIG
        self._claim_not_before = 0.0
        self._claim_is_owed = False
        self._recheck_at = 0.0
        self._governed_after = NO_CONFIG
        self._governed_not_before = 0.0
        self._governed_is_owed = False
        self._is_short_of_tokens = False
        self._record_bytes: float | None = None
        self._doorbell_is_up = False
        self._looked_with_nothing_in_hand = False
        self._stopping = False
        self.has_governed = False
        """Whether a config has strict order, a rate limit or an open circuit."""
        self.turned_at = -math.inf
        """When a turn was last completed, on the monotonic clock."""

    def ring(self) -> None:
        """Look for work now: the doorbell rang, and has to be raised again."""
        self._doorbell_is_up = False
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return after the turn under way."""
        self._stopping = True
        self._wake.set()

    async def run(self, *, until_empty: bool) -> None:
        """Fetch until `stop` or, with `until_empty`, until nothing is due or in hand. Raises what is no outage."""
        patience = Patience()
        while not self._stopping:
            self._wake.clear()
            self._looked_with_nothing_in_hand = False
            if self._settler.is_late:
                # What is not written down could be claimed once more: first the settle, then the next claim.
                await self._rest(LATE_PAUSE)
                continue
            try:
                conn = await self._link.connection()
                found = await self._turn(conn) or await self._look_once_more(conn)
            except TRANSIENT as error:
                self._outage.began(error)
                self._doorbell_is_up = False
                await self._link.drop()
                await patience.wait()
                continue
            self._outage.ended()
            patience.restored()
            self.turned_at = time.monotonic()
            if found:
                continue
            if not until_empty or self._in_hand or self._governed_is_owed or self._is_short_of_tokens:
                await self._rest(self._until_next_look())
            elif self._looked_with_nothing_in_hand and not self._claim_is_owed:
                return

    async def _turn(self, conn: psycopg.AsyncConnection) -> bool:
        """Route, then claim; returns whether to look again at once."""
        now = time.monotonic()
        for held in self._buffer.expired(now):
            self._settler.give_back(held.delivery)
        if now >= self._recheck_at:
            self._recheck_at = now + RECHECK_SECONDS
            await self._targets.reload(conn, self._buffer.config_ids)
            await self._circuits.refresh(conn)
            self.has_governed = await governed.prepare(conn)
            if not self.has_governed:
                self._governed_is_owed = self._is_short_of_tokens = False
        routed = await self._route(conn, now)
        governed_claimed = self.has_governed and await self._claim_governed(conn)
        await self._claim(conn)
        self._start_senders()
        return routed or governed_claimed

    async def _route(self, conn: psycopg.AsyncConnection, now: float) -> bool:
        """Route what was captured; returns whether there is more."""
        rooms, room, slots = *self._rooms(now - self._rooms_at), self._slots()
        self._rooms_at = now
        if self._claim_is_owed:
            slots //= 2  # what is new must not take every slot from what is due
        limit = min(slots, max(MANY_SLOTS, sum(rooms.values()) + room))
        if slots < MANY_SLOTS or now >= self._route_ahead_at:
            limit = max(ROUTE_ROWS, slots)
            self._route_ahead_at = now + ROUTE_AHEAD_SECONDS
        routed = await queue.route(
            conn, low=self._marks.low(now), rows=limit, slots=slots, room=room, rooms=rooms, lease=self._lease
        )
        self._marks.routed(now, at=routed.now, top=routed.top)
        self._tally.routed += routed.rows
        self._tally.created += routed.created
        self._tally.leased_at_once += len(routed.deliveries)
        await self._admit(conn, routed, now)
        self._buffer.note(
            [each.config_id for each in routed.deliveries], rooms=rooms, room=room, all_taken=False, full=self._is_full
        )
        if not routed.deliveries:
            self._route_ahead_at = 0.0  # nobody wants it now, or may have more: perhaps of what is behind it
        return routed.rows == limit

    async def _claim(self, conn: psycopg.AsyncConnection) -> None:
        """Claim what is due: onward from who was served last, and then, where slots are left, from the first."""
        now, slots, in_the_middle = time.monotonic(), self._slots(), self._cursor != NO_CONFIG
        if slots == 0 or now < self._claim_not_before:
            self._claim_is_owed = True
            return
        found, to_the_last = await self._claim_onward(conn, slots)
        if to_the_last and in_the_middle:
            to_the_last = False
            if left := self._slots():
                more, to_the_last = await self._claim_onward(conn, left)
                found += more
        self._claim_is_owed = not to_the_last
        if to_the_last and found < slots * WORTH_A_CLAIM:
            spent = time.monotonic() - now
            self._claim_not_before = now + min(spent * CLAIM_SHARE, self._poll_interval)

    async def _claim_onward(self, conn: psycopg.AsyncConnection, slots: int) -> tuple[int, bool]:
        """Claim from the config after the cursor on; returns how many, and whether it came to the last config.

        Who got all that he had room for asks again when he has done half of it: not at once, for the few that were done
        meanwhile.
        """
        now, (rooms, room) = time.monotonic(), self._rooms(0.0)
        found = await queue.claim(
            conn, after=self._cursor, slots=slots, room=room, rooms=rooms, lease=self._lease, since=self._marks.since
        )
        self._tally.claimed += len(found.deliveries)
        await self._admit(conn, found, now)
        config_ids = [each.config_id for each in found.deliveries]
        from_the_first = self._cursor == NO_CONFIG
        to_the_last = len(config_ids) < slots
        self._marks.claimed(
            config_ids, found.reached, after=self._cursor, rooms=rooms, room=room, to_the_last=to_the_last
        )
        self._cursor = NO_CONFIG if to_the_last else max(config_ids)
        self._buffer.note(
            config_ids, rooms=rooms, room=room, all_taken=to_the_last and from_the_first, full=self._is_full
        )
        return len(config_ids), to_the_last

    async def _claim_governed(self, conn: psycopg.AsyncConnection) -> bool:
        """Claim what is due of governed configs; returns whether there may be more."""
        now = time.monotonic()
        # A share, before the common claim: each must leave something to the other.
        slots = -(-self._slots() // GOVERNED_SHARE)
        self._governed_is_owed = slots == 0 or now < self._governed_not_before
        if self._governed_is_owed:
            return False
        rooms, room = self._rooms(0.0)
        found = await governed.claim_governed(
            conn, after=self._governed_after, slots=slots, room=room, rooms=rooms, lease=self._lease
        )
        self._is_short_of_tokens = found.short_of_tokens
        self._governed_after = found.walked_to or NO_CONFIG
        if found.walked_to is None:
            self._governed_not_before = now + (time.monotonic() - now) * CLAIM_SHARE
        await self._admit(conn, found, now)
        self._buffer.note(
            [each.config_id for each in found.deliveries], rooms=rooms, room=room, all_taken=False, full=self._is_full
        )
        return bool(found.deliveries) or found.saw_blocked_only or found.walked_to is not None

    async def _look_once_more(self, conn: psycopg.AsyncConnection) -> bool:
        """Before sleeping: raise the doorbell, and look at what came before it was up, or committed out of order."""
        again, self._looked_with_nothing_in_hand = False, not self._in_hand
        if not self._doorbell_is_up and not self._link.is_pooled:  # behind a pooler nobody hears it, and it costs
            # First, because it may ring before the answer is here; after the answer that ring would be forgotten.
            self._doorbell_is_up = True
            again = await queue.raise_doorbell(conn)
        if self._looked_with_nothing_in_hand:
            again = again or bool(self._marks) or self._claim_is_owed or self._governed_is_owed
            self._marks.forget()
            self._claim_not_before = self._governed_not_before = 0.0
        return await self._turn(conn) if again else False

    async def _admit(self, conn: psycopg.AsyncConnection, claimed: queue.Claimed, clock: float) -> None:
        """Take leased deliveries in hand and have them sent."""
        if not claimed.deliveries or claimed.now is None:
            return
        try:
            await self._targets.refresh(conn, claimed.deliveries)
        except TRANSIENT:
            for delivery in claimed.deliveries:
                self._settler.give_back(delivery)
            raise
        texts = [(each.data or "", each.expansions or "") for each in claimed.deliveries]
        size = sum(len(data) + len(expansions) for data, expansions in texts) / len(texts)
        known = size if self._record_bytes is None else self._record_bytes
        self._record_bytes = max(1000.0, size, (known + size) / 2)
        start_before = clock + self._wait_in_hand
        self._buffer.put([Held(delivery, claimed.now, clock, start_before) for delivery in claimed.deliveries])
        self._start_senders()
        # PostgreSQL may answer the next statement before the event loop has had a turn: first the POSTs.
        await asyncio.sleep(0)

    def _rooms(self, elapsed: float) -> tuple[dict[UUID, int], int]:
        """Return how many may be claimed of each config in hand, and of another.

        Where the bytes are what is short, one config takes a part of them only: it could hang, and keep them.
        """
        rooms, room, slots = self._buffer.rooms(elapsed), self._buffer.room, self._slots()
        if slots == self._buffer.slots:
            return rooms, room
        share = max(1, slots // 4)
        return {config_id: min(own, share) for config_id, own in rooms.items()}, min(room, share)

    def _slots(self) -> int:
        """How many deliveries may be claimed now. A record larger than the budget is taken by itself."""
        in_hand = self._buffer.in_hand
        by_size = max(0 if in_hand else 1, int(BYTES_IN_HAND / (self._record_bytes or FIRST_GUESS)) - in_hand)
        return min(self._buffer.slots, by_size)

    @property
    def _is_full(self) -> bool:
        return self._slots() == 0

    @property
    def _in_hand(self) -> int:
        """What is not done yet: waiting, being sent, being settled."""
        return self._buffer.in_hand + self._settler.count

    def _until_next_look(self) -> float:
        looks = [self._claim_not_before] if self._claim_is_owed else []
        if self._governed_is_owed:
            looks.append(self._governed_not_before)
        if self._is_full or not looks:
            return self._poll_interval
        return min(self._poll_interval, max(0.0, min(looks) - time.monotonic()))

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            if seconds >= self._poll_interval:
                self._doorbell_is_up = False  # perhaps it rang and nobody told us
