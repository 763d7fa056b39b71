"""Fetch: routes what was captured and has claimed what is due, as far as there is room in hand; sleeps in between."""

import asyncio
import math
import time
from collections.abc import Callable

import psycopg

from outbox.core.buffer import Buffer
from outbox.core.low_water import LowWater
from outbox.core.tally import GivenBack, Tally
from outbox.daemon.circuits import Circuits
from outbox.daemon.claimer import Claimer
from outbox.daemon.doorbell import Doorbell
from outbox.daemon.governed_claimer import GovernedClaimer
from outbox.daemon.intake import Intake
from outbox.daemon.outage import Outage, ReconnectBackoff
from outbox.daemon.router import Router
from outbox.daemon.settler import Settler
from outbox.daemon.targets import Targets
from outbox.postgres.pool import TRANSIENT, Link

RECHECK_SECONDS = 1.0
"""How soon a config that was paused or edited is obeyed for what was claimed before."""

LATE_PAUSE = 0.1
"""Seconds from one look to the next at a settle that is late."""

LOOK_MEANWHILE_SECONDS = 0.004
"""How often what is being captured is looked for while a claim, or a look behind a flood, is under way."""


class Fetcher:
    """The loop that brings work in. `wake` ends its sleep; `start_senders` is called when something came."""

    def __init__(
        self,
        link: Link,
        claiming_link: Link,
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
        self._wake = wake
        self._start_senders = start_senders
        self._poll_interval = poll_interval
        self._intake = Intake(targets, buffer, settler, start_senders=start_senders, request_timeout=request_timeout)
        self._low_water = LowWater()
        self._claimer = Claimer(claiming_link, self._intake, tally=tally, poll_interval=poll_interval)
        self._doorbell = Doorbell(self._low_water)
        self._governed_claimer = GovernedClaimer(
            self._intake, self._low_water, tally=tally, poll_interval=poll_interval
        )
        self._router = Router(
            self._intake, self._low_water, self._doorbell, self._claimer, self._governed_claimer, tally=tally
        )
        self._recheck_at = -math.inf
        self._looked_with_nothing_in_hand = False
        self._until_empty = False
        self._stopping = False
        self.turned_at = -math.inf
        """When a turn was last completed, on the monotonic clock."""

    @property
    def flooded(self) -> int:
        """For how many configs more is captured than they can take."""
        return self._router.flooded

    def ring(self) -> None:
        """Look for work now: the doorbell rang, and has to be raised again."""
        self._router.let_down_doorbell()
        self._wake.set()

    def note_settled(self) -> None:
        """Look again if that is what one waits for."""
        if self._until_empty and not self._in_hand:
            self._wake.set()

    def note_freed(self) -> None:
        """Look again: a settle has made later changes of its records due."""
        self._governed_claimer.note_unseen()
        self._wake.set()

    def stop(self) -> None:
        """Let `run` return after the turn under way; what that still brings is given back."""
        self._stopping = True
        self._intake.close()
        self._wake.set()

    async def run(self, *, until_empty: bool) -> None:
        """Fetch until `stop` or, with `until_empty`, until nothing is due or in hand. Raises what is no outage."""
        self._until_empty = until_empty
        backoff = ReconnectBackoff()
        while not self._stopping:
            if self._wake.is_set():
                self._wake.clear()
                self._claimer.note_woken()
                self._governed_claimer.note_woken()
            self._looked_with_nothing_in_hand = False
            if self._settler.is_late:
                # What is not written down could be claimed once more: first the settle, then the next claim.
                await self._rest(LATE_PAUSE)
                continue
            try:
                conn = await self._link.connection()
                await self._claimer.connect()
                found = await self._turn(conn) or await self._look_once_more(conn)
            except TRANSIENT as error:
                self._outage.note(error)
                self._doorbell.forget()
                self._low_water.ask(time.monotonic(), at_once=True)  # also where the look below had no answer
                self._router.forget()
                self._targets.doubt()
                await self._link.drop()
                await self._claimer.drop()
                await backoff.wait()
                self._wake.set()  # nobody knows what fell due meanwhile
                continue
            self._outage.ended()
            backoff.restored()
            self.turned_at = time.monotonic()
            if found:
                continue
            is_owed = self._governed_claimer.is_owed or self._router.is_flooded or self._low_water.is_asked
            if not self._until_empty or self._in_hand or is_owed:
                await self._rest(self._until_next_look())
            elif self._looked_with_nothing_in_hand and not self._claimer.is_owed:
                return

    async def _turn(self, conn: psycopg.AsyncConnection) -> bool:
        """Route, then claim; returns whether to look again at once."""
        now = time.monotonic()
        for held in self._buffer.expired(now):
            self._settler.give_back(held.delivery, GivenBack.EXPIRED)
        self._intake.measure()
        if self._recheck_at < 0:  # before anything is in hand: who fails is not to have all slots
            await self._recheck(conn, now)
        if self._router.may_look_below(quickly=True):
            await self._router.look_below(conn)
        more = await self._router.look(conn)
        if now >= self._recheck_at:  # after the route: what was captured just now need not wait for it
            await self._recheck(conn, now)
        more |= await self._governed_claimer.claim(conn)
        may_claim = self._claimer.is_possible
        if may_claim or self._router.may_overtake or self._router.may_look_below(quickly=False):
            more |= await self._look_meanwhile(conn, may_claim=may_claim)
        self._start_senders()
        return more

    async def _recheck(self, conn: psycopg.AsyncConnection, now: float) -> None:
        """Learn what became of the configs since."""
        self._recheck_at = now + RECHECK_SECONDS
        await self._targets.reload(conn, self._buffer.config_ids)
        await self._circuits.refresh(conn)
        self._buffer.note_failing(self._circuits.failing)
        await self._governed_claimer.prepare(conn)

    async def _look_meanwhile(self, conn: psycopg.AsyncConnection, *, may_claim: bool) -> bool:
        """Do what need not be waited for: what is captured meanwhile does not. Returns whether there is more."""
        may_look_below = self._router.may_look_below(quickly=False)
        if not (self._router.is_captured_now or self._router.is_flooded or may_look_below):
            await self._claimer.claim()
            return False
        more = False
        others = asyncio.create_task(self._claim_and_overtake(may_claim=may_claim))
        try:
            while not (await asyncio.wait({others}, timeout=LOOK_MEANWHILE_SECONDS))[0]:
                if self._stopping or self._settler.is_late:
                    continue
                more |= await self._router.look(conn)
                if time.monotonic() >= self._governed_claimer.next_look:
                    more |= await self._governed_claimer.claim(conn)
        except asyncio.CancelledError:
            others.cancel()
            raise
        finally:
            # Also when a route failed: what is being claimed is ours, and must not be left to its lease.
            await asyncio.gather(others, return_exceptions=True)
        return others.result() or more

    async def _claim_and_overtake(self, *, may_claim: bool) -> bool:
        """Claim, overtake, and look below the mark; returns whether to look at once at what is there."""
        if may_claim:
            await self._claimer.claim()
        if self._router.may_overtake:
            await self._router.overtake(await self._claimer.connect())
        if self._router.may_look_below(quickly=False):
            return await self._router.look_below(await self._claimer.connect())
        return False

    async def _look_once_more(self, conn: psycopg.AsyncConnection) -> bool:
        """Before sleeping: raise the doorbell, and look at what came before it was up, or committed out of order."""
        if self._router.is_flooded and self._in_hand:
            return False  # there is more than enough
        again, self._looked_with_nothing_in_hand = False, not self._in_hand
        if self._link.is_pooled:  # nobody hears the doorbell there, and it costs
            self._doorbell.do_without()
        elif not self._doorbell.is_up:
            again = await self._router.raise_doorbell(conn)
        if self._looked_with_nothing_in_hand:
            if self._claimer.is_hiding and (self._until_empty or not self._router.is_captured_now):
                again = True
                self._claimer.look_at_everything()
            if self._until_empty:
                if self._low_water.is_in_doubt:
                    again = True
                    self._low_water.ask(time.monotonic(), at_once=True)
                again = again or self._router.is_put_off or self._claimer.is_owed or self._governed_claimer.is_owed
                self._router.look_at_once()
                self._claimer.look_at_once()
                self._governed_claimer.look_at_once()
        return await self._turn(conn) if again else False

    @property
    def _in_hand(self) -> int:
        """What is not done yet: waiting, being sent, being settled."""
        return self._buffer.in_hand + self._settler.count

    def _until_next_look(self) -> float:
        looks = [self._low_water.next_look(time.monotonic())]
        if self._router.next_look is not None:
            looks.append(self._router.next_look)
        if not self._intake.is_full:
            looks += [self._claimer.next_look, self._governed_claimer.next_look]
        if self._governed_claimer.is_in_doubt:
            looks.append(self._recheck_at)
        return min(self._poll_interval, max(0.0, min(looks, default=math.inf) - time.monotonic()))

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            if seconds >= self._poll_interval:
                self._router.poll()  # perhaps it rang and nobody told us
