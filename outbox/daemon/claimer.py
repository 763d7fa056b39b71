"""Claim: takes what is due, fair over the configs, on a connection of its own, so that no route waits for it."""

import math
import time
from datetime import datetime

import psycopg

from outbox.core.marks import Marks
from outbox.core.model import NO_CONFIG
from outbox.core.tally import Statement, Tally
from outbox.daemon.intake import Intake
from outbox.daemon.rest import Rest
from outbox.postgres import queue
from outbox.postgres.pool import Link

GATHER_TIMES = 4
"""See Rest. What a claim finds is what no route could lease: it has waited already."""


class Claimer:
    """The common claim; for governed configs see GovernedClaimer."""

    def __init__(self, link: Link, intake: Intake, *, tally: Tally, poll_interval: float) -> None:
        self._link = link
        self._intake = intake
        self._marks = Marks()
        self._tally = tally
        self._rest = Rest(GATHER_TIMES, most=poll_interval)
        self._cursor = NO_CONFIG
        self._is_behind = True
        """Whether something may be due: the last claim stopped before the last config, or something woke us since."""
        self._is_flooded = False

    @property
    def is_owed(self) -> bool:
        """Whether something may be due that was not looked at."""
        return self._is_behind or self._rest.has_unseen

    @property
    def next_look(self) -> float:
        """When to look though nothing rings, on the monotonic clock."""
        return self._rest.ends if self.is_owed else math.inf

    def look_at_once(self) -> None:
        """Let the next claim not be put off."""
        self._rest.end()

    def note_woken(self) -> None:
        """Note that something woke the loop: it may be due."""
        self._is_behind = True

    def note_flood(self, *, lasts: bool) -> None:
        """Note whether more is captured for those that are in hand than they can take: what they want, routes bring."""
        self._is_flooded = lasts

    def note_unseen(self) -> None:
        """Note that a route left something due, which no claim has seen."""
        self._rest.has_unseen = True

    def note_route(self, at: datetime) -> None:
        """Note that there was a route, at this time of the database."""
        self._marks.routed(at)

    @property
    def is_hiding(self) -> bool:
        """Whether the next claim does not look at everything."""
        return bool(self._marks.since)

    def look_at_everything(self) -> None:
        """Let the next claim do so."""
        self._marks.forget()

    @property
    def is_possible(self) -> bool:
        """Whether there is a slot, and no pause, unless much is wanted."""
        is_urgent = self._intake.is_hungry and not self._is_flooded
        return not self._intake.is_full and (is_urgent or time.monotonic() >= self._rest.ends)

    async def connect(self) -> psycopg.AsyncConnection:
        """Return the connection, opened if need be: before there is a claim that routes run beside."""
        return await self._link.connection()

    async def drop(self) -> None:
        """Close the connection."""
        await self._link.drop()

    async def claim(self) -> None:
        """Claim what is due: onward from who was served last, and then, where slots are left, from the first."""
        in_the_middle = self._cursor != NO_CONFIG
        self._rest.claim_begins()
        number, to_the_last = await self._claim_onward()
        if to_the_last and in_the_middle:
            more, to_the_last = (0, False) if self._intake.is_full else await self._claim_onward()
            number += more
        self._is_behind = not to_the_last
        if to_the_last:
            self._rest.claimed_all(found=number > 0)
        elif self._intake.is_nearly_full:
            self._rest.wait_for_room()

    async def _claim_onward(self) -> tuple[int, bool]:
        """Claim from the config after the cursor on; returns how many, and whether it came to the last config.

        Who got all that he had room for asks again when he has done a part of it: not at once, for the few that were
        done meanwhile.
        """
        conn = await self.connect()
        now, (rooms, room) = time.monotonic(), self._intake.rooms()
        most = self._intake.claimable(rooms)
        slots = self._intake.reserve(max(1, most // 4) if self._is_flooded else most)
        if slots == 0:  # a route has taken them meanwhile
            return 0, False
        self._marks.renew(now)
        latest = self._marks.latest
        try:
            found = await queue.claim(
                conn, after=self._cursor, slots=slots, room=room, rooms=rooms, lease=self._intake.lease,
                since=self._marks.since,
            )  # fmt: skip
        except BaseException:
            self._intake.free(slots)
            raise
        self._tally.took(Statement.CLAIM, time.monotonic() - now)
        self._tally.claimed += len(found.deliveries)
        await self._intake.admit(conn, found, now, reserved=slots)
        config_ids = [each.config_id for each in found.deliveries]
        from_the_first = self._cursor == NO_CONFIG
        to_the_last = len(config_ids) < slots
        self._marks.claimed(
            config_ids, found.reached, after=self._cursor, rooms=rooms, room=room, to_the_last=to_the_last,
            latest=latest,
        )  # fmt: skip
        self._cursor = NO_CONFIG if to_the_last else max(config_ids)
        all_taken = to_the_last and from_the_first and not self._rest.has_unseen and not self._is_flooded
        self._intake.note(found, rooms=rooms, room=room, all_taken=all_taken)
        return len(config_ids), to_the_last
