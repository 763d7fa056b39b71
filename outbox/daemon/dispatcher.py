"""The loop of four verbs: route and claim (fetcher), send (senders), settle (settler). It only connects them.

They share what is in hand, and each side has its own database connection, so that none waits for another.
"""

import asyncio
import time
from typing import TYPE_CHECKING

import structlog

from outbox.core.buffer import Buffer
from outbox.core.tally import GivenBack, Tally
from outbox.daemon.circuits import Circuits
from outbox.daemon.fetcher import Fetcher
from outbox.daemon.outage import Outage
from outbox.daemon.senders import Senders
from outbox.daemon.settler import Settler
from outbox.daemon.targets import Targets
from outbox.http.sender import Sender
from outbox.metrics.reading import Reading, of_tally, one
from outbox.postgres.pool import ANSWER_SECONDS, Link
from outbox.settings import Settings

if TYPE_CHECKING:
    from outbox.tracing import Tracing

LAST_FETCH_SECONDS = 2.0
"""How long a turn that is under way may take at the end. What it had claimed comes back by its lease."""

LAST_SETTLE_SECONDS = 10.0
"""How long the last settle may take. A database that is away longer gets its deliveries back by their leases."""

log = structlog.get_logger("outbox")


class Dispatcher:
    """One daemon's work. `run` returns once `stop` was called and everything in hand was settled or given back."""

    def __init__(
        self, settings: Settings, sender: Sender, targets: Targets, outage: Outage, tracing: "Tracing | None" = None
    ) -> None:
        self._drain_timeout = settings.drain_timeout
        fetching, claiming, settling = self._links = [
            Link(settings.dsn or "", name, pooling=settings.pooling, deadline=ANSWER_SECONDS)
            for name in ("fetch", "claim", "settle")
        ]
        self._stopped = asyncio.Event()
        self._wake = asyncio.Event()
        self._buffer = Buffer(concurrency=settings.concurrency, per_config=settings.max_in_flight_per_config)
        circuits = Circuits(disable_after=settings.disable_after)
        self._concurrency = settings.concurrency
        self._outage = outage
        self._tally = Tally()
        self._made_at = time.monotonic()
        self._settler = Settler(
            settling,
            outage,
            circuits,
            tally=self._tally,
            goal=settings.concurrency // 4,
            settled=self._note_settled,
            freed=self._note_freed,
            ring=self.ring,
        )
        self._senders = Senders(
            sender,
            targets,
            self._buffer,
            self._settler,
            tally=self._tally,
            tracing=tracing,
            concurrency=settings.concurrency,
            wake=self._wake,
        )
        self._fetcher = Fetcher(
            fetching,
            claiming,
            targets,
            self._buffer,
            self._settler,
            outage=outage,
            circuits=circuits,
            tally=self._tally,
            wake=self._wake,
            start_senders=self._senders.start,
            poll_interval=settings.poll_interval,
            request_timeout=settings.request_timeout,
        )

    @property
    def died(self) -> int:
        """How many deliveries ran out of tries, since the start."""
        return self._settler.died

    @property
    def turned_at(self) -> float:
        """When the fetch loop last completed a turn, on the monotonic clock."""
        return self._fetcher.turned_at

    def reading(self) -> Reading:
        """Return what /metrics says of this process."""
        return of_tally(self._tally) | {
            "outbox_workers": one(1),
            "outbox_concurrency": one(self._concurrency),
            "outbox_in_flight": {name: [float(count)] for name, count in self._buffer.in_flight_by_standing.items()},
            "outbox_waiting": one(self._buffer.waiting),
            "outbox_unsettled": one(self._buffer.unsettled),
            "outbox_settle_delay_seconds": one(self._settler.delay),
            "outbox_limited_configs": one(self._buffer.limited),
            "outbox_timed_out_configs": one(self._buffer.timed_out),
            "outbox_flooded_configs": one(self._fetcher.flooded),
            "outbox_turn_age_seconds": one(time.monotonic() - max(self._fetcher.turned_at, self._made_at)),
            "outbox_outage": one(self._outage.lasts),
            "outbox_outages_total": one(self._outage.count),
        }

    def ring(self) -> None:
        """Look for work now: the doorbell rang."""
        self._fetcher.ring()

    def stop(self) -> None:
        """Claim nothing more; let `run` end once what is in hand is settled or given back."""
        self._fetcher.stop()
        self._stopped.set()

    async def run(self, *, until_empty: bool = False) -> None:
        """Work until `stop` is called or, with `until_empty`, until nothing is due. Raises what is no outage."""
        settling = asyncio.create_task(self._settler.run())
        fetching = asyncio.create_task(self._fetcher.run(until_empty=until_empty))
        stopping = asyncio.create_task(self._stopped.wait())
        try:
            await asyncio.wait({settling, fetching, stopping}, return_when=asyncio.FIRST_COMPLETED)
            if not settling.done():
                await asyncio.wait({fetching}, timeout=LAST_FETCH_SECONDS)
                fetching.cancel()
                await self._drain(settling)
            for ended in (settling, fetching):
                if ended.done() and not ended.cancelled():
                    ended.result()
        finally:
            fetching.cancel()
            settling.cancel()
            stopping.cancel()
            await asyncio.gather(fetching, settling, stopping, return_exceptions=True)
            await self._senders.finish(0.0)
            for link in self._links:
                await link.drop()

    async def _drain(self, settling: "asyncio.Task[None]") -> None:
        """Give back what waits, let what is in flight finish or give it back, and settle all of it."""
        began = time.monotonic()
        for held in self._buffer.withdraw():
            self._settler.give_back(held.delivery, GivenBack.STOPPING)
        cut_off = await self._senders.finish(self._drain_timeout)
        self._settler.end()
        await asyncio.wait({settling}, timeout=LAST_SETTLE_SECONDS)
        log.info(
            "daemon.drained",
            cut_off=cut_off,
            unsettled=self._settler.count,
            duration_ms=round((time.monotonic() - began) * 1000),
        )

    def _note_settled(self, count: int) -> None:
        self._buffer.unsettled -= count
        self._senders.start()
        self._fetcher.note_settled()

    def _note_freed(self) -> None:
        self._fetcher.note_freed()
