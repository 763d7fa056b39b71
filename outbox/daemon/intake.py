"""Intake: how much may be claimed now, by number and by size, and the taking in hand of what was."""

import asyncio
import time
from collections.abc import Callable, Mapping

import psycopg

from outbox.core.buffer import Buffer
from outbox.core.lane import Held
from outbox.core.model import ConfigId
from outbox.core.tally import GivenBack
from outbox.daemon.settler import Settler
from outbox.daemon.targets import Targets
from outbox.postgres.queue import Claimed

LEASE_MARGIN = 10.0
"""Seconds that a lease outlives the latest end of its POST, for the settle."""

LEAST_WAIT_IN_HAND = 5.0
"""Seconds that a claimed delivery may wait for its POST to begin, at least."""

BYTES_IN_HAND = 10_000_000
"""Bytes of records that are claimed ahead at most, by the mean size of the last ones."""

ASSUMED_BYTES_OF_A_CLAIM = 1_000_000
"""Bytes of a record before any was seen: the first claim is small."""

ASSUMED_BYTES_OF_A_ROUTE = 200_000
"""Bytes of a record before any was seen, for what is routed: more at a time, as most of it is leased to nobody."""

MEASURED_SECONDS = 0.01
"""Over so many seconds the pace of the configs is measured at least."""

LEFT_FOR_ROUTES = 100
"""Slots that a claim leaves, of which at most a quarter, to the routes that run beside it."""


class Intake:
    """What route and claim share. `start_senders` is called when something came."""

    def __init__(
        self,
        targets: Targets,
        buffer: Buffer,
        settler: Settler,
        *,
        start_senders: Callable[[], None],
        request_timeout: float,
    ) -> None:
        self._targets = targets
        self._buffer = buffer
        self._settler = settler
        self._start_senders = start_senders
        self._wait_in_hand = max(LEAST_WAIT_IN_HAND, request_timeout)
        self._record_bytes: float | None = None
        self._reserved = 0
        self._closed = False
        self._measured_at = time.monotonic()
        self._difference = time.time() - time.monotonic()
        self.lease = self._wait_in_hand + request_timeout + LEASE_MARGIN
        """Seconds for which a delivery is leased."""

    @property
    def slots(self) -> int:
        """How many deliveries may be claimed now. A record larger than the budget is taken by itself."""
        in_hand = self._buffer.in_hand + self._reserved
        record = self._record_bytes or ASSUMED_BYTES_OF_A_CLAIM
        by_size = max(0 if in_hand else 1, int(BYTES_IN_HAND / record) - in_hand)
        return min(max(0, self._buffer.slots - self._reserved), by_size)

    @property
    def records(self) -> float:
        """How many records make up what may be in hand, by the mean size of the last ones."""
        return BYTES_IN_HAND / (self._record_bytes or ASSUMED_BYTES_OF_A_ROUTE)

    @property
    def is_full(self) -> bool:
        """Whether there is no slot left."""
        return self.slots == 0

    @property
    def is_hungry(self) -> bool:
        """Whether a claim is worth while at once: see Buffer.is_hungry."""
        return self._buffer.is_hungry

    @property
    def is_nearly_full(self) -> bool:
        """Whether a claim would bring few: see Buffer.is_nearly_full."""
        return self._buffer.is_nearly_full

    def reserve(self, most: int) -> int:
        """Return how many slots may be used beside the routes; they are kept until `admit`, or `free`."""
        slots = self.slots
        slots = min(most, slots - min(LEFT_FOR_ROUTES, slots // 4))
        self._reserved += slots
        return slots

    def free(self, reserved: int) -> None:
        """Give reserved slots back, unused."""
        self._reserved -= reserved

    def measure(self) -> None:
        """Measure the pace of the configs since then, unless that was just now: a few POSTs that end tell little."""
        now = time.monotonic()
        if now - self._measured_at < MEASURED_SECONDS:
            self._buffer.measure(0.0)
            return
        self._buffer.measure(now - self._measured_at)
        self._measured_at = now

    def rooms(self) -> tuple[dict[ConfigId, int], int]:
        """Return how many may be claimed of each config in hand, and of another.

        Where the bytes are what is short, one config takes a part of them only: it could hang, and keep them. Of what a
        claim under way has left it takes half: the claim may bring more of that config.
        """
        rooms, room, slots = self._buffer.rooms(), self._buffer.room, self.slots
        if slots == self._buffer.slots:
            return rooms, room
        share = max(1, slots // (2 if slots == self._buffer.slots - self._reserved else 4))
        return {config_id: min(own, share) for config_id, own in rooms.items()}, min(room, share)

    def claimable(self, rooms: Mapping[ConfigId, int]) -> int:
        """Return how many one claim may bring: see Buffer.claimable."""
        return min(self.slots, self._buffer.claimable(rooms))

    def close(self) -> None:
        """Take nothing in hand from now on: what is admitted is given back."""
        self._closed = True

    async def admit(self, conn: psycopg.AsyncConnection, claimed: Claimed, clock: float, *, reserved: int = 0) -> None:
        """Take leased deliveries in hand and have them sent. `clock`: the monotonic one, just before the claim."""
        try:
            if claimed.deliveries:
                await self._targets.refresh(conn, claimed.deliveries)
        except BaseException as error:
            # Nobody cancels a claim but the end of the daemon.
            is_end = isinstance(error, asyncio.CancelledError)
            self._give_back(claimed, GivenBack.STOPPING if is_end else GivenBack.OUTAGE)
            raise
        finally:
            self.free(reserved)
        if self._closed:
            self._give_back(claimed, GivenBack.STOPPING)
            return
        if not claimed.deliveries or claimed.now is None:
            return
        texts = [(each.data or "", each.expansions or "") for each in claimed.deliveries]
        size = sum(len(data) + len(expansions) for data, expansions in texts) / len(texts)
        known = size if self._record_bytes is None else self._record_bytes
        self._record_bytes = max(1000.0, size, (known + size) / 2)
        start_before = clock + self._wait_in_hand
        # By what the clocks differed in before the claim: the machine may have been suspended during it.
        difference, self._difference = self._difference, time.time() - time.monotonic()
        wall = start_before + min(difference, self._difference)
        self._buffer.put([Held(delivery, claimed.now, clock, start_before, wall) for delivery in claimed.deliveries])
        self._start_senders()
        # PostgreSQL may answer the next statement before the event loop has had a turn: first the POSTs.
        before = time.monotonic()
        await asyncio.sleep(0)
        self._buffer.note_lag(time.monotonic() - before)

    def note(
        self,
        claimed: Claimed,
        *,
        rooms: Mapping[ConfigId, int],
        room: int,
        all_taken: bool = False,
        governed: bool = False,
    ) -> None:
        """Remember what a claim left, or a route; see Buffer.note."""
        config_ids = [each.config_id for each in claimed.deliveries]
        self._buffer.note(config_ids, rooms=rooms, room=room, all_taken=all_taken, governed=governed, full=self.is_full)

    def _give_back(self, claimed: Claimed, why: GivenBack) -> None:
        for delivery in claimed.deliveries:
            self._settler.give_back(delivery, why)
