"""Turns: which config starts its next POST. Fair over the configs, as far as their standing lets them have slots.

No clock, no I/O.
"""

import heapq
from collections import deque

from outbox.core.lane import Lane
from outbox.core.slots import QUICK, TIMED_OUT, Slots, Standing


class Turns:
    """The queue for the slots. `clock` is the buffer's, in seconds."""

    def __init__(self, concurrency: int) -> None:
        self._concurrency = concurrency
        self._slots = Slots(concurrency)
        self._common: deque[Lane] = deque()
        self._late: list[tuple[int, Lane]] = []
        """A heap of those that timed out, by their last start."""
        self._crowded: list[deque[Lane]] = [deque() for _ in Standing]
        """Those that had their turn and could not start, by their standing."""
        self._crowd = 0
        """How many they are."""
        self._started = 0
        self.in_flight = 0

    def queue(self, lane: Lane) -> None:
        """Let the lane have its turn, if something of it waits."""
        if not lane.waiting or lane.queued:
            return
        lane.queued = True
        if lane.standing is TIMED_OUT:
            heapq.heappush(self._late, (lane.started, lane))
        else:
            self._common.append(lane)

    def queue_crowded(self, most: int) -> None:
        """Let so many of the crowded of each standing have their turn, as far as there are slots."""
        for standing in Standing:
            crowded, left = self._crowded[standing], min(most, self._free(standing))
            while crowded and left > 0:
                lane = crowded.popleft()
                lane.crowded = False
                self._crowd -= 1
                if lane.waiting and not lane.queued:
                    self.queue(lane)
                    left -= 1

    def start(self, clock: float) -> Lane | None:
        """Return the lane whose next is in flight from now on; None while none may start."""
        if self._late and self._slots.lacks(TIMED_OUT) and (lane := self._start_late(clock)):
            return lane
        while self._common:
            lane = self._common.popleft()
            lane.queued = False
            if lane.standing is TIMED_OUT:
                self.queue(lane)
            elif self._may_start(lane, clock):
                return lane
        return self._start_late(clock) if self._late else None

    def _start_late(self, clock: float) -> Lane | None:
        while self._late and self._slots.free(TIMED_OUT) > 0:
            lane = heapq.heappop(self._late)[1]
            lane.queued = False
            if self._may_start(lane, clock):
                return lane
        return None

    def _may_start(self, lane: Lane, clock: float) -> bool:
        """Whether a lane that has its turn may start one, which is counted then; else it is crowded, if it wants to."""
        if not lane.waiting or lane.is_full:
            return False
        is_quick = lane.standing is QUICK
        free = self._concurrency - self.in_flight if is_quick else self._free(lane.standing)
        if lane.in_flight >= free or (lane.in_flight and lane.is_silent(clock)):
            if not lane.crowded:
                lane.crowded = True
                self._crowded[lane.standing].append(lane)
                self._crowd += 1
            return False
        if not is_quick:
            self._slots.count(lane.standing, 1)
        if not lane.in_flight:
            lane.silent_since = clock
        lane.in_flight += 1
        lane.started = self._started = self._started + 1
        self.in_flight += 1
        return True

    def end(self, lane: Lane) -> None:
        """Count one less in flight."""
        lane.in_flight -= 1
        self.in_flight -= 1
        if lane.standing is not QUICK:
            self._slots.count(lane.standing, -1)

    def follow(self, lane: Lane) -> None:
        """Let the lane have its turn again after an end, and those that wait for a slot."""
        self.queue(lane)
        if self._crowd:
            self.queue_crowded(1)

    def place(self, lane: Lane, standing: Standing) -> None:
        """Note how a lane stands now. Who timed out has turns of its own, who is answered the common ones."""
        before, lane.standing = lane.standing, standing
        if before is not QUICK:
            self._slots.count(before, -lane.in_flight)
        if standing is not QUICK:
            self._slots.count(standing, lane.in_flight)
        if before is TIMED_OUT and lane.queued:
            others = [each for each in self._late if each[1] is not lane]
            if len(others) < len(self._late):
                heapq.heapify(others)
                self._late = others
                lane.queued = False
                self.queue(lane)

    def taken(self, standing: Standing) -> int:
        """Return how many are in flight of the configs that stand so."""
        return self._slots.taken(standing, of=self.in_flight)

    def note_others(self, *, some: bool) -> None:
        """Note whether there are any, or were lately, who are not slow and did not time out."""
        self._slots.has_others = some

    def startable(self, most: int, clock: float) -> int:
        """Return how many could start now, `most` at the most."""
        free = [self._free(standing) for standing in Standing]
        count = max(0, min(most, free[TIMED_OUT], len(self._late)))
        free[TIMED_OUT] -= count
        for lane in self._common:
            if count >= most:
                break
            if not lane.is_silent(clock):
                number = max(0, min(lane.startable, free[lane.standing]))
                free[lane.standing] -= number
                count += number
        return min(count, most)

    def _free(self, standing: Standing) -> int:
        free = self._concurrency - self.in_flight
        return free if standing is QUICK else min(free, self._slots.free(standing))
