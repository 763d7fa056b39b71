"""Send: takes deliveries in hand in fair turns, makes one try of each, judges it and hands it to the settler."""

import asyncio
import datetime as dt
import random
import time
from typing import TYPE_CHECKING

import structlog

from outbox import __version__
from outbox.core import postback
from outbox.core.bodies import Bodies
from outbox.core.buffer import Buffer
from outbox.core.lane import Held
from outbox.core.model import Answer, Attempt, Failure, FailureKind, PostbackConfig
from outbox.core.outcome import Backoff, judge
from outbox.core.tally import GivenBack, Tally
from outbox.daemon.attempt_log import AttemptLog
from outbox.daemon.settler import Settler
from outbox.daemon.targets import Target, Targets
from outbox.errors import UnsentError
from outbox.http.sender import Sender

if TYPE_CHECKING:
    from outbox.tracing import Tracing, TrySpan

HOLD_SECONDS = 60.0
"""How long a delivery is put off that can not be sent for a fault of ours, such as a missing key."""

UNSENT_SECONDS = 2.0
"""How long a delivery is put off that could not be sent for want of descriptors, or of the proxy."""

UNSENT_PAUSE = 1.0
"""Seconds that a slot rests after that: what fails at once would else fail for all that is due, again and again."""

UNSENT_LOG_SECONDS = 5.0
"""How often that is told at most."""

USER_AGENT = f"outbox/{__version__}"

log = structlog.get_logger("outbox")


class Senders:
    """As many tasks as there are POSTs in flight; each goes on while there is something to send.

    `wake` is set when a config that may be owed more has done a quarter of what it may have in hand.
    """

    def __init__(
        self,
        sender: Sender,
        targets: Targets,
        buffer: Buffer,
        settler: Settler,
        *,
        tally: Tally,
        tracing: "Tracing | None",
        concurrency: int,
        wake: asyncio.Event,
    ) -> None:
        self._sender = sender
        self._targets = targets
        self._buffer = buffer
        self._settler = settler
        self._tally = tally
        self._tracing = tracing
        self._concurrency = concurrency
        self._wake = wake
        self._tasks: set[asyncio.Task[None]] = set()
        self._sending = 0
        self._unsent = 0
        self._tell_unsent_at = 0.0
        self._attempt_log = AttemptLog()
        self._bodies = Bodies()

    def start(self) -> None:
        """Start a task for each POST that could begin now."""
        for _ in range(min(self._buffer.startable, self._concurrency - self._sending)):
            self._sending += 1
            task = asyncio.create_task(self._send())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def finish(self, within: float) -> int:
        """Wait for what is in flight; what is not done `within` seconds is given back. Returns how many that were."""
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=within)
        cut_off = [task for task in self._tasks if not task.done()]
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*cut_off, return_exceptions=True)
        return len(cut_off)

    async def _send(self) -> None:
        try:
            await self._send_while_possible()
        finally:
            # Not by a callback of the task, which comes a turn of the loop later: the settle of this POST may be
            # answered before, and start no other in its place. Nobody would do it before the next look.
            self._sending -= 1

    async def _send_while_possible(self) -> None:
        while held := self._buffer.take():
            result: Answer | Failure | None = None
            started = time.monotonic()
            try:
                result = await self._try(held, started)
            finally:
                timed_out = None
                if result is not None:
                    timed_out = isinstance(result, Failure) and result.kind is FailureKind.TIMEOUT
                seconds = time.monotonic() - started
                if self._buffer.finished(held.delivery.config_id, timed_out=timed_out, seconds=seconds):
                    self._wake.set()

    async def _try(self, held: Held, started: float) -> Answer | Failure | None:
        """Make one try, or give the delivery back and return None. `started`: the monotonic clock now."""
        target = self._targets.get(held.delivery.config_id)
        if target is None or not target.sends:
            self._settler.give_back(held.delivery, GivenBack.WITHDRAWN)
            return None
        if started > held.start_before or time.time() > held.start_before_wall:
            self._settler.give_back(held.delivery, GivenBack.EXPIRED)
            return None
        if target.fault:
            self._settler.give_back(held.delivery, GivenBack.UNREADABLE, HOLD_SECONDS)
            return None
        span = self._tracing.begin(held.delivery, target.config.url) if self._tracing else None
        try:
            result = await self._post(held, target, started, span)
        except (UnsentError, asyncio.CancelledError) as error:
            if span:
                span.abandon()
            if not isinstance(error, UnsentError):
                self._settler.give_back(held.delivery, GivenBack.CUT_OFF)
                raise
            self._note_unsent(error)
            self._settler.give_back(held.delivery, GivenBack.UNSENT, UNSENT_SECONDS)
            await asyncio.sleep(UNSENT_PAUSE)
            return None
        except Exception:
            # A bug of ours. It uses up a try all the same, or one record could keep the daemon busy for ever.
            log.exception("sender.failed", event_id=held.delivery.webhook_id)
            result = Failure(FailureKind.BROKEN, "an internal error; the daemon's log has it")
        attempt = self._conclude(held, target, started, result)
        if span:
            span.end(attempt, result)
        return result

    async def _post(self, held: Held, target: Target, started: float, span: "TrySpan | None") -> Answer | Failure:
        delivery = held.delivery
        body = self._bodies.of(delivery, target.config.expands)
        if body is None:
            return Failure(FailureKind.MISSING, "the event is no longer kept: its retention is over")
        timestamp = int(held.claimed_at.timestamp() + started - held.clock)
        headers = postback.headers(
            delivery.webhook_id,
            timestamp=timestamp,
            user_agent=USER_AGENT,
            authorization=target.credentials.authorization,
            signature=target.credentials.signature(delivery.webhook_id, timestamp, body),
            traceparent=span.traceparent if span else delivery.traceparent,
        )
        return await self._sender.post(target.config.url, body, headers)

    def _note_unsent(self, error: UnsentError) -> None:
        """Tell the first, and then now and then how many there were."""
        self._unsent += 1
        now = time.monotonic()
        if now >= self._tell_unsent_at:
            self._tell_unsent_at = now + UNSENT_LOG_SECONDS
            log.warning("deliveries.unsent", count=self._unsent, error=str(error))
            self._unsent = 0

    def _conclude(self, held: Held, target: Target, started: float, result: Answer | Failure) -> Attempt:
        """Judge, log, and hand over to the settler."""
        if isinstance(result, Failure) and result.kind is FailureKind.FORBIDDEN:
            log.warning(
                "destination.forbidden",
                event_id=held.delivery.webhook_id,
                config_id=held.delivery.config_id,
                reason=result.message,
                address=result.address,
            )
        duration = time.monotonic() - started
        outcome = judge(
            result,
            tries=held.delivery.attempt - held.delivery.attempts_uncounted,
            number_of_attempts=target.config.number_of_attempts,
            attempt_interval=target.config.attempt_interval,
            backoff=_backoff(target.config),
        )
        attempt = Attempt(
            held.delivery,
            outcome,
            result.status,
            result.body if isinstance(result, Answer) else b"",
            round(duration * 1000),
            held.claimed_at + dt.timedelta(seconds=started - held.clock),
            result.kind if isinstance(result, Failure) else None,
        )
        self._tally.attempted(attempt, result, duration)
        self._buffer.unsettled += 1
        self._settler.add(attempt)
        self._attempt_log.note(attempt)
        return attempt


def _backoff(config: PostbackConfig) -> Backoff | None:
    if config.backoff == "fixed":
        return None
    return Backoff(config.backoff_limit, random.random())  # noqa: S311 - spread, not secrecy
