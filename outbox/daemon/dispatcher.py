"""The loop of four verbs: route and claim (fetch), send, settle. It connects decisions to I/O and makes none itself.

Three kinds of tasks: one that fetches, some that send, one that settles. They share the buffer and a list of finished
tries, and each has its own database connection, so that none waits for another.
"""

import asyncio
import contextlib
import datetime as dt
import math
import time
from collections import deque
from dataclasses import dataclass
from uuid import UUID

import psycopg
import structlog

from outbox import __version__
from outbox.core import postback
from outbox.core.buffer import Buffer
from outbox.core.model import Answer, Attempt, Dead, Delivery, Failure, FailureKind, Retry
from outbox.core.outcome import judge
from outbox.daemon.outage import Outage, Patience
from outbox.daemon.targets import Target, Targets
from outbox.http.sender import Sender
from outbox.postgres import queue
from outbox.postgres.pool import TRANSIENT, Link
from outbox.settings import Settings

ROUTE_ROWS = 500
"""Outbox rows that a turn takes at least: the table stays tiny even when there is no slot left to send."""

SETTLE_PAUSE = 0.02
"""Seconds from one settle to the next under load, so that one statement settles many."""

SETTLE_ROWS = 500
"""Finished tries that one statement settles at most."""

UNSETTLED_LIMIT = 5_000
"""Finished tries that wait for a settle at most; beyond it nothing more is fetched."""

LEASE_MARGIN = 10.0
"""Seconds that a lease outlives the latest end of its POST, for the settle."""

LOW_MARK_LAG = 0.5
"""Seconds by which the low-water mark trails, because transactions commit out of the order of their seq."""

LOW_MARK_LIFE = 2.0
"""Seconds after which the low-water mark is forgotten."""

CLAIM_SHARE = 4
"""A claim that found little is not repeated before this many times its duration has passed."""

BYTES_IN_HAND = 16_000_000
"""Bytes of records that are claimed ahead at most, by the mean size of the last ones."""

RECHECK_SECONDS = 1.0
"""How soon a config that was paused or edited is obeyed for what was claimed before."""

LAST_SETTLE_SECONDS = 10.0
"""How long the last settle may take. A database that is away longer gets its deliveries back by their leases."""

HOLD_SECONDS = 60.0
"""How long a delivery is put off that can not be sent for a fault of ours, such as a missing key."""

NO_CONFIG = UUID(int=0)
USER_AGENT = f"outbox/{__version__}"

log = structlog.get_logger("outbox")


@dataclass(slots=True)
class _Lease:
    """When a batch was claimed, by both clocks, and until when its POSTs may begin."""

    now: dt.datetime
    clock: float
    start_before: float


class Dispatcher:
    """One daemon's loop. `run` returns once `stop` was called and everything in hand was settled or given back."""

    def __init__(self, settings: Settings, sender: Sender, targets: Targets, outage: Outage) -> None:
        self._settings = settings
        self._sender = sender
        self._targets = targets
        self._outage = outage
        self._fetch_link = Link(settings.dsn or "", "fetch")
        self._settle_link = Link(settings.dsn or "", "settle")
        self._buffer = Buffer(concurrency=settings.concurrency, per_config=settings.max_in_flight_per_config)
        self._leases: dict[tuple[UUID, UUID], _Lease] = {}
        self._finished: deque[Attempt] = deque()
        self._returned: deque[tuple[Delivery, float]] = deque()
        self._senders: set[asyncio.Task[None]] = set()
        self._wake = asyncio.Event()
        self._settle_wake = asyncio.Event()
        self._settle_now = asyncio.Event()
        self._settle_goal = min(SETTLE_ROWS, max(1, settings.concurrency // 2))
        self._stopping = False
        self._sending_ended = False
        self._wait_in_hand = max(5.0, settings.request_timeout)
        self._lease_seconds = self._wait_in_hand + settings.request_timeout + LEASE_MARGIN
        self._marks: deque[tuple[float, int]] = deque()
        self._low = 0
        self._forget_low_at = 0.0
        self._rooms_at = time.monotonic()
        self._claim_cursor = NO_CONFIG
        self._claim_not_before = 0.0
        self._claim_skipped = False
        self._recheck_at = 0.0
        self._record_bytes = 1000.0
        self.died = 0
        self.turned_at = -math.inf
        """When the fetch loop last completed a turn, on the monotonic clock."""

    def wake(self) -> None:
        """Look for work now."""
        self._wake.set()

    def stop(self) -> None:
        """Claim nothing more; let `run` end once what is in hand is settled or given back."""
        self._stopping = True
        self.wake()

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until `stop` is called or, with `until_empty`, until nothing is due. Raises what is no outage."""
        settling = asyncio.create_task(self._settle_loop())
        fetching = asyncio.create_task(self._fetch_loop(until_empty=until_empty))
        try:
            done, _ = await asyncio.wait({settling, fetching}, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
            await self._drain(settling)
        finally:
            for task in (fetching, settling, *self._senders):
                task.cancel()
            await asyncio.gather(fetching, settling, *self._senders, return_exceptions=True)
            await self._fetch_link.drop()
            await self._settle_link.drop()

    # Fetch: route and claim.

    async def _fetch_loop(self, *, until_empty: bool) -> None:
        patience = Patience()
        while not self._stopping:
            self._wake.clear()
            if len(self._finished) > UNSETTLED_LIMIT:
                await self._rest(0.1)
                continue
            try:
                conn = await self._fetch_link.connection()
                found = await self._turn(conn)
                if not found and not self._in_hand:
                    found = await self._look_once_more(conn)
                    if until_empty and not found and not self._in_hand:
                        return
            except TRANSIENT as error:
                self._outage.began(error)
                await self._fetch_link.drop()
                await patience.wait()
                continue
            self._outage.ended()
            patience.restored()
            self.turned_at = time.monotonic()
            if not found:
                await self._rest(self._settings.poll_interval)

    async def _turn(self, conn: psycopg.AsyncConnection) -> bool:
        """Route, then claim; returns whether to look again at once."""
        now = time.monotonic()
        rooms, room, slots = self._buffer.rooms(now - self._rooms_at), self._buffer.room, self._slots()
        self._rooms_at = now
        limit = max(ROUTE_ROWS, slots)
        routed = await queue.route(
            conn, low=self._low_mark(now), rows=limit, slots=slots, room=room, rooms=rooms, lease=self._lease_seconds
        )
        if routed.top is not None:
            self._marks.append((now, routed.top))
        await self._admit(conn, routed, now)
        self._buffer.note(routed.deliveries, rooms=rooms, room=room, all_taken=False)
        claimed = await self._claim(conn)
        if now >= self._recheck_at:
            self._recheck_at = now + RECHECK_SECONDS
            await self._targets.reload(conn, self._buffer.config_ids)
        return routed.rows == limit or claimed > 0

    async def _claim(self, conn: psycopg.AsyncConnection) -> int:
        now = time.monotonic()
        rooms, room, slots = self._buffer.rooms(0.0), self._buffer.room, self._slots()
        self._claim_skipped = slots == 0 or now < self._claim_not_before
        if self._claim_skipped:
            return 0
        found = await queue.claim(
            conn, after=self._claim_cursor, slots=slots, room=room, rooms=rooms, lease=self._lease_seconds
        )
        await self._admit(conn, found, now)
        from_the_first = self._claim_cursor == NO_CONFIG
        all_taken = len(found.deliveries) < slots
        self._claim_cursor = NO_CONFIG if all_taken else found.deliveries[-1].config_id
        self._buffer.note(found.deliveries, rooms=rooms, room=room, all_taken=all_taken and from_the_first)
        if all_taken:
            spent = time.monotonic() - now
            self._claim_not_before = now + min(spent * CLAIM_SHARE, self._settings.poll_interval)
        # A round that began in the middle goes on from the first config.
        return len(found.deliveries) + (all_taken and not from_the_first)

    async def _look_once_more(self, conn: psycopg.AsyncConnection) -> bool:
        """Before sleeping: raise the doorbell, and look at what came before it was up, or committed out of order."""
        had_mark = bool(self._marks)
        self._forget_low_mark()
        self._claim_not_before = 0.0
        if await queue.raise_doorbell(conn) or had_mark or self._claim_skipped:
            return await self._turn(conn)
        return False

    async def _admit(self, conn: psycopg.AsyncConnection, claimed: queue.Claimed, clock: float) -> None:
        """Take leased deliveries in hand and have them sent."""
        if not claimed.deliveries or claimed.now is None:
            return
        lease = _Lease(claimed.now, clock, clock + self._wait_in_hand)
        for delivery in claimed.deliveries:
            self._leases[delivery.event_id, delivery.config_id] = lease
        sizes = [len(delivery.data or "") for delivery in claimed.deliveries]
        self._record_bytes += 0.5 * (max(1000.0, sum(sizes) / len(sizes)) - self._record_bytes)
        self._buffer.put(claimed.deliveries)
        await self._targets.refresh(conn, claimed.deliveries)
        self._start_senders(len(claimed.deliveries))

    def _slots(self) -> int:
        """How many deliveries may be claimed now."""
        by_size = max(1, int(BYTES_IN_HAND / self._record_bytes) - self._in_hand)
        return min(self._buffer.slots, by_size)

    @property
    def _in_hand(self) -> int:
        """What is not done yet: waiting, being sent, being settled."""
        return self._buffer.waiting + self._buffer.in_flight + len(self._finished) + len(self._returned)

    def _low_mark(self, now: float) -> int:
        if now >= self._forget_low_at:
            self._forget_low_mark()
            self._forget_low_at = now + LOW_MARK_LIFE
        while self._marks and self._marks[0][0] < now - LOW_MARK_LAG:
            self._low = max(self._low, self._marks.popleft()[1])
        return self._low

    def _forget_low_mark(self) -> None:
        self._marks.clear()
        self._low = 0

    async def _rest(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._wake.wait()

    # Send.

    def _start_senders(self, most: int) -> None:
        for _ in range(min(most, self._settings.concurrency - len(self._senders))):
            task = asyncio.create_task(self._send_loop())
            self._senders.add(task)
            task.add_done_callback(self._sender_ended)

    def _sender_ended(self, task: asyncio.Task[None]) -> None:
        self._senders.discard(task)
        if not task.cancelled() and (error := task.exception()):
            # A bug: what this sender had in hand falls due again when its lease runs out.
            log.error("sender.failed", exc_info=error)

    async def _send_loop(self) -> None:
        while delivery := self._buffer.take():
            lease = self._leases.pop((delivery.event_id, delivery.config_id))
            timed_out = False
            try:
                timed_out = await self._try(delivery, lease)
            except asyncio.CancelledError:
                self._give_back(delivery)
                raise
            finally:
                if self._buffer.finished(delivery.config_id, timed_out=timed_out):
                    self._wake.set()

    async def _try(self, delivery: Delivery, lease: _Lease) -> bool:
        """Make one try, or give the delivery back; returns whether the subscriber let the deadline pass."""
        target = self._targets.get(delivery.config_id)
        started = time.monotonic()
        if target is None or not target.sends or started > lease.start_before:
            self._give_back(delivery)
            return False
        if target.fault:
            self._give_back(delivery, HOLD_SECONDS)
            return False
        result = await self._post(delivery, target, lease, started)
        self._conclude(delivery, target, lease, started, result)
        return isinstance(result, Failure) and result.kind is FailureKind.TIMEOUT

    async def _post(self, delivery: Delivery, target: Target, lease: _Lease, started: float) -> Answer | Failure:
        if delivery.type is None or delivery.resource is None or delivery.data is None:
            return Failure(FailureKind.MISSING, "the event is no longer kept: its retention is over")
        body = postback.form_body(delivery.type, delivery.resource, delivery.attempt, delivery.data)
        timestamp = lease.now.timestamp() + started - lease.clock
        headers = postback.headers(
            delivery.event_id, timestamp=int(timestamp), user_agent=USER_AGENT, authorization=target.authorization
        )
        return await self._sender.post(target.config.url, body, headers)

    def _conclude(
        self, delivery: Delivery, target: Target, lease: _Lease, started: float, result: Answer | Failure
    ) -> None:
        """Judge, log and hand over to the settle."""
        duration = time.monotonic() - started
        outcome = judge(
            result,
            tries=delivery.attempt - delivery.attempts_uncounted,
            number_of_attempts=target.config.number_of_attempts,
            attempt_interval=target.config.attempt_interval,
        )
        at = lease.now + dt.timedelta(seconds=started - lease.clock)
        answer = result.body if isinstance(result, Answer) else b""
        attempt = Attempt(delivery, outcome, result.status, answer, round(duration * 1000), at)
        _log_attempt(attempt)
        self._finished.append(attempt)
        self._buffer.unsettled += 1
        self._settle_wake.set()
        if len(self._finished) >= self._settle_goal:
            self._settle_now.set()

    def _give_back(self, delivery: Delivery, after: float = 0.0) -> None:
        self._returned.append((delivery, after))
        self._settle_wake.set()

    # Settle.

    async def _settle_loop(self) -> None:
        patience = Patience()
        while not (self._sending_ended and not self._finished and not self._returned):
            if not self._finished and not self._returned:
                self._settle_wake.clear()
                await self._settle_wake.wait()
                continue
            began = time.monotonic()
            try:
                await self._settle_some(await self._settle_link.connection())
            except TRANSIENT as error:
                self._outage.began(error)
                await self._settle_link.drop()
                await patience.wait()
                continue
            self._outage.ended()
            patience.restored()
            if len(self._finished) < self._settle_goal and not self._stopping and self._buffer.in_flight > 1:
                await self._gather_until(began + SETTLE_PAUSE)

    async def _gather_until(self, end: float) -> None:
        """Let finished tries gather until `end`, or until there are enough for a statement."""
        self._settle_now.clear()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, end - time.monotonic())):
                await self._settle_now.wait()

    async def _settle_some(self, conn: psycopg.AsyncConnection) -> None:
        """Settle and release a batch. What fails stays at the head of the line and is repeated as it was."""
        if self._finished:
            batch = [self._finished[n] for n in range(min(SETTLE_ROWS, len(self._finished)))]
            lost = await queue.settle(conn, batch)
            for _ in batch:
                self._finished.popleft()
            self._buffer.unsettled -= len(batch)
            self._start_senders(min(len(batch), self._buffer.waiting))
            self.died += sum(isinstance(attempt.outcome, Dead) for attempt in batch)
            for each in lost:
                log.warning(
                    "lease.lost",
                    event_id=str(each.delivery.event_id),
                    config_id=str(each.delivery.config_id),
                    attempt=each.delivery.attempt,
                )
        if self._returned:
            returned = list(self._returned)
            for after in {after for _, after in returned}:
                await queue.release(conn, [each for each, wait in returned if wait == after], after=after)
            for _ in returned:
                self._returned.popleft()
        if not self._in_hand:
            self.wake()

    async def _drain(self, settling: asyncio.Task[None]) -> None:
        """Give back what waits, let what is in flight finish or give it back, and settle all of it."""
        began = time.monotonic()
        for delivery in self._buffer.withdraw():
            self._leases.pop((delivery.event_id, delivery.config_id), None)
            self._give_back(delivery)
        if self._senders:
            await asyncio.wait(self._senders, timeout=self._settings.drain_timeout)
        cut_off = list(self._senders)
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*cut_off, return_exceptions=True)
        self._sending_ended = True
        self._settle_wake.set()
        self._settle_now.set()
        await asyncio.wait({settling}, timeout=LAST_SETTLE_SECONDS)
        if settling.done():
            settling.result()
        log.info(
            "daemon.drained",
            cut_off=len(cut_off),
            unsettled=len(self._finished) + len(self._returned),
            duration_ms=round((time.monotonic() - began) * 1000),
        )


def _log_attempt(attempt: Attempt) -> None:
    delivery = attempt.delivery
    log.info(
        "delivery.attempted",
        event_id=str(delivery.event_id),
        config_id=str(delivery.config_id),
        attempt=delivery.attempt,
        status=attempt.status,
        duration_ms=attempt.duration_ms,
        outcome=attempt.outcome.name,
        **({"due_in_s": attempt.outcome.after} if isinstance(attempt.outcome, Retry) else {}),
        **({} if attempt.outcome.reason is None else {"error": attempt.outcome.reason}),
    )
