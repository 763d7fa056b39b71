"""Settle: records finished tries, many in one statement, and gives back what was not tried."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable

import psycopg
import structlog

from outbox import logs
from outbox.core.model import Attempt, Dead, Delivery
from outbox.core.tally import GivenBack, Statement, Tally
from outbox.daemon.circuits import Circuits
from outbox.daemon.outage import Outage, ReconnectBackoff
from outbox.postgres import queue
from outbox.postgres.pool import TRANSIENT, Link

PAUSE = 0.02
"""Seconds from one settle to the next under load, so that one statement settles many."""

ROWS = 500
"""Finished tries that one statement settles at most."""

LATE = 5.0
"""Seconds after which an unsettled try is late: well before its lease can run out."""

COUNT_AGAIN_SECONDS = 1.0
"""Until what could not be counted of a config's tries is counted again."""

log = structlog.get_logger("outbox")


class Settler:
    """Takes finished tries and untried deliveries from the senders, and writes them down.

    `goal`: so many finished tries are settled without waiting for more. `settled` is told how many were; `freed` is
    called when later changes of their records are due by that; `ring` when there is something else to do: what was
    given back is due, or a change was captured.
    """

    def __init__(
        self,
        link: Link,
        outage: Outage,
        circuits: Circuits,
        *,
        tally: Tally,
        goal: int,
        settled: Callable[[int], None],
        freed: Callable[[], None],
        ring: Callable[[], None],
    ) -> None:
        self._link = link
        self._outage = outage
        self._circuits = circuits
        self._tally = tally
        self._goal = min(ROWS, max(1, goal))
        self._settled = settled
        self._freed = freed
        self._ring = ring
        self._finished: deque[tuple[float, Attempt]] = deque()
        self._returned: deque[tuple[Delivery, float, bool]] = deque()
        self._something = asyncio.Event()
        self._enough = asyncio.Event()
        self._ending = False
        self._count_at = 0.0
        self.died = 0
        """Deliveries that are out of tries, since the start."""

    @property
    def count(self) -> int:
        """How many wait to be written down."""
        return len(self._finished) + len(self._returned)

    @property
    def is_late(self) -> bool:
        """Whether a try waits so long that its lease might run out, and its delivery be claimed and sent again."""
        return self.delay > LATE

    @property
    def delay(self) -> float:
        """For how many seconds the oldest finished try has waited to be written down; 0 when none waits."""
        return time.monotonic() - self._finished[0][0] if self._finished else 0.0

    def add(self, attempt: Attempt) -> None:
        """Take a finished try."""
        self._finished.append((time.monotonic(), attempt))
        self._something.set()
        if len(self._finished) >= self._goal:
            self._enough.set()

    def give_back(self, delivery: Delivery, why: GivenBack, after: float = 0.0) -> None:
        """Take a delivery that was not tried, or whose POST was cut off: it is due again in `after` seconds."""
        self._tally.given_back[why] += 1
        self._returned.append((delivery, after, why is GivenBack.CUT_OFF))
        self._something.set()

    def end(self) -> None:
        """Let `run` return once everything is written down."""
        self._ending = True
        self._something.set()
        self._enough.set()

    async def run(self) -> None:
        """Write down what comes, until `end`. Raises what is no outage."""
        backoff = ReconnectBackoff()
        with contextlib.suppress(*TRANSIENT):
            # Before there is anything to settle: later the POSTs may have taken the last descriptor.
            await self._link.connection()
        while self.count or not self._ending:
            if not self.count and not await self._is_count_due():
                continue
            began = time.monotonic()
            try:
                conn = await self._link.connection()
                batch = await self._settle(conn)
                await self._release(conn)
                await self._note(conn, batch)
            except TRANSIENT as error:
                self._outage.note(error)
                await self._link.drop()
                await backoff.wait()
                continue
            self._outage.ended()
            backoff.restored()
            if len(batch) > 1 and not self._ending:
                await self._gather_until(began + PAUSE)

    async def _gather_until(self, end: float) -> None:
        """Let finished tries gather until `end`, or until there are enough for a statement."""
        self._enough.clear()
        if len(self._finished) < self._goal:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, end - time.monotonic())):
                    await self._enough.wait()

    async def _is_count_due(self) -> bool:
        """Wait for something to do; returns whether it is only to count again what could not be counted."""
        self._something.clear()
        with contextlib.suppress(TimeoutError):
            pause = max(0.0, self._count_at - time.monotonic()) if self._circuits.is_behind else None
            async with asyncio.timeout(pause):
                await self._something.wait()
            return False
        return True

    async def _note(self, conn: psycopg.AsyncConnection, batch: list[Attempt]) -> None:
        """Have counted what a settled batch says of its configs. That it fails keeps nothing from being settled."""
        if not batch and not self._circuits.is_behind:
            return
        now = time.monotonic()
        try:
            if await self._circuits.note(conn, batch):
                self._ring()
        except psycopg.Error as error:
            if conn.closed or not isinstance(error, TRANSIENT):
                raise
            if now >= self._count_at:
                log.warning("circuits.uncounted", error=logs.said(error))
            self._count_at = now + COUNT_AGAIN_SECONDS

    async def _settle(self, conn: psycopg.AsyncConnection) -> list[Attempt]:
        """Settle a batch and return it. What fails stays at the head of the line and is repeated as it was."""
        batch = [self._finished[n][1] for n in range(min(ROWS, len(self._finished)))]
        if not batch:
            return batch
        began = time.monotonic()
        try:
            settled = await queue.settle(conn, batch)
        except psycopg.DataError as error:
            # No subscriber's answer may keep the outcomes from being written down.
            log.warning("answers.dropped", count=len(batch), error=logs.said(error))
            settled = await queue.settle(conn, [each._replace(answer=b"") for each in batch])
        self._tally.took(Statement.SETTLE, time.monotonic() - began)
        for _ in batch:
            self._finished.popleft()
        self.died += sum(isinstance(attempt.outcome, Dead) for attempt in batch)
        self._tally.leases_lost += len(settled.lost)
        for each in settled.lost:
            log.warning(
                "lease.lost",
                event_id=each.delivery.webhook_id,
                config_id=each.delivery.config_id,
                attempt=each.delivery.attempt,
            )
        self._settled(len(batch))
        if settled.freed:
            self._freed()
        return batch

    async def _release(self, conn: psycopg.AsyncConnection) -> None:
        """Release what was given back, once.

        Never repeated: the first may have come through, and the number of the try been given out again. What is not
        released falls due when its lease runs out.
        """
        returned, self._returned = self._returned, deque()
        kinds = {(after, begun) for _, after, begun in returned}
        for after, begun in kinds:
            given = [delivery for delivery, *kind in returned if kind == [after, begun]]
            await queue.release(conn, given, after=after, begun=begun)
        if any(after == 0.0 for after, _ in kinds):
            self._ring()
