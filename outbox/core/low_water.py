"""Up to where nothing is left in the outbox, so that no route looks there again. No clock, no I/O.

What a large transaction captures is in the index before it commits, and what was taken stays there while somebody
holds a snapshot open: whoever looks from the beginning reads through all of it. So a look begins at a mark. It trails,
because transactions commit out of the order of their seq. Whose changes it passes all the same was under way then, and
each look tells who is: when one of these is done, a look below the mark finds what he left there.
"""

import math
from collections import deque
from dataclasses import dataclass

TRAIL_SECONDS = 0.5
"""By which the mark trails what was routed."""

MISSING_SECONDS = 2.0
"""How long the mark does not pass a number that is missing: its transaction may be under way. It may have been rolled
back, too, or routed by another daemon."""

REACH = 10_000
"""How many numbers the mark trails by, and little more, however long it is: a look reads through all that is under way
there."""

LOOK_BELOW_SECONDS = 2.0
"""From one look below the mark to the next, as long as something happens, whoever is known to be under way."""

PAUSE_TIMES = 10
"""A look below the mark is followed by a pause of so many times its length, which grows with what is under way; where
something is known to have been committed there, of its length."""

QUICK_SECONDS = 0.005
"""A look below that takes no longer is made where the routes are, before them; a longer one beside them."""

MANY_UNSEEN = 2_000
"""Where the mark has passed more numbers that no look has seen, a look below may take longer."""


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Which transactions a look did not see: those that were `under_way`, and all from the id `end` on."""

    end: int
    under_way: frozenset[int]


class LowWater:
    """The outbox's low-water mark, by seq. `now` is the monotonic clock."""

    def __init__(self) -> None:
        self._low = 0
        self._tops: deque[tuple[float, int, Snapshot]] = deque()
        self._missing: deque[tuple[float, int]] = deque()
        self._under_way = self._passed = frozenset[int]()
        self._looked_at = -math.inf
        self._pause_ends = self._short_pause_ends = -math.inf
        self._top = self._unseen = 0
        self._was_quick = True
        self._latest: Snapshot | None = None
        """The last look's. Not one's that took nothing and left something to others: it completes no transaction."""
        self._is_looking_below = False
        self.keeps_order = False
        """Whether `hidden` is asked for, and so each look is to tell what it left to other daemons."""
        self.is_asked = False
        """Whether a look below is to be made as soon as it may."""
        self.is_in_doubt = False
        """Whether something happened since the last look below the mark."""

    @property
    def is_quick(self) -> bool:
        """Whether a look below will take no longer than a route may wait for it, as far as one can tell."""
        return self._was_quick and self._unseen <= MANY_UNSEEN

    def low(self, now: float) -> int:
        """Return the seq up to which nothing is left, but for what is found by looking below."""
        while self._tops and self._tops[0][0] + TRAIL_SECONDS <= now and self._may_rise:
            self._rise()
        while self._missing and self._missing[0][0] + MISSING_SECONDS <= now:
            self._missing.popleft()
        return min(self._low, self._missing[0][1]) if self._missing else self._low

    def hidden(self, now: float) -> tuple[int, frozenset[int]]:
        """Return up to where nothing can be, unless one of these transactions is over; 0 where nobody knows."""
        low = self.low(now)
        is_known = self.keeps_order and not self.is_asked and not self._is_looking_below
        return (low, self._passed) if is_known else (0, frozenset())

    def keep_order(self, now: float, *, wanted: bool) -> None:
        """Have each look tell what it left to others, or not: to know it, a look reads all that it takes once more."""
        if wanted and not self.keeps_order:
            self._tops.clear()
            self.ask(now, at_once=True)
        self.keeps_order = wanted

    @property
    def _may_rise(self) -> bool:
        """Whether the next top is of an earlier look: a snapshot does not list who began when others were not done."""
        return self._tops[0][2] is not self._latest

    def _rise(self) -> None:
        """Pass what one look came to, and whoever was under way then and still is."""
        _, top, then = self._tops.popleft()
        self._low = max(self._low, top)
        self._passed |= {each for each in self._under_way if each in then.under_way or each >= then.end}

    def looked(
        self,
        now: float,
        top: int | None,
        snapshot: Snapshot,
        *,
        low: int,
        to_the_end: bool,
        rows: int = 1,
        left_to_others: int | None = None,
    ) -> None:
        """Note a look above `low`, the mark when it began: the highest seq that it took, if any, and what it saw.

        `rows`: how many it took. `left_to_others`: the lowest seq that is there and which it could not take.
        """
        if not self._passed <= snapshot.under_way:
            self.ask(now, soon=True)
        self._passed &= snapshot.under_way
        self._under_way = snapshot.under_way
        if rows or top is None:
            self._latest = snapshot
        if left_to_others is not None:
            # It may stay there, and what is above it is not all that is left.
            top = left_to_others - 1 if top is None else min(top, left_to_others - 1)
        if top is None:
            return
        self.is_in_doubt = True
        self.low(now)
        if low > self._low:  # it went back meanwhile, not for a missing number: what is above that was not looked at
            return
        self._unseen += max(0, top - self._top - rows)
        self._top = max(self._top, top)
        if not to_the_end or left_to_others is not None:
            self._lower(top)
        if self._looked_at == -math.inf:
            self._looked_at = now  # nothing was hidden before
        if rows:
            self._note_top(now, top, snapshot, low)

    def _lower(self, top: int) -> None:
        """Forget what came further: what is left above `top` was not seen by that look, but by this one."""
        self._low = min(self._low, top)  # it may be higher where a missing number keeps the mark below
        while self._tops and self._tops[-1][1] > top:
            self._tops.pop()

    def _note_top(self, now: float, top: int, snapshot: Snapshot, low: int) -> None:
        while self._tops and self._tops[0][1] <= top - REACH and self._may_rise:
            self._rise()
        while self._missing and self._missing[0][1] < top - REACH:
            self._missing.popleft()
        before = self._tops[-1][1] if self._tops else low
        if before < top - REACH:
            self._tops.append((now, top - REACH, snapshot))
        if before < top:
            self._tops.append((now, top, snapshot))

    def missing(self, now: float, after: int) -> None:
        """Note that a number after this seq is missing, and nothing up to it."""
        self._missing.append((now, after))

    def rang(self) -> None:
        """Note that somebody committed, or may have: perhaps what the mark hides."""
        self.is_in_doubt = True

    def ask(self, now: float, *, soon: bool = False, at_once: bool = False) -> None:
        """Have a look below the mark made when the pause after the last one is over, a short one if `soon`, or none."""
        self.low(now)
        self.is_asked = self.is_in_doubt = self._low > 0  # else each look sees everything; a missing number hides less
        if soon:
            self._pause_ends = min(self._pause_ends, self._short_pause_ends)
        if at_once:
            self._pause_ends = -math.inf

    def is_due(self, now: float) -> bool:
        """Whether to look below the mark."""
        is_wanted = self.is_asked or now >= self._looked_at + LOOK_BELOW_SECONDS
        return is_wanted and now >= self._pause_ends and self.low(now) > 0

    def next_look(self, now: float) -> float:
        """Return when to look below though nothing else is to be done; infinite when not."""
        if not (self.is_asked or self.is_in_doubt) or not (self._low or self._tops):
            return math.inf
        wanted = -math.inf if self.is_asked else self._looked_at + LOOK_BELOW_SECONDS
        wanted = max(wanted, self._pause_ends)
        return wanted if wanted > now or self.is_due(now) else now + TRAIL_SECONDS  # the mark has yet to rise

    def begin_look_below(self, now: float) -> int:
        """Note that a look below begins; return the seq up to which.

        No lower where a missing number keeps the mark down: when that is given up, the mark is where it was.
        """
        self._looked_at = now
        self._is_looking_below = True
        self.low(now)
        self.is_asked, self.is_in_doubt = False, bool(self._tops or self._missing)  # it says nothing of what is above
        return self._low

    def looked_below(self, now: float, lowest: int | None) -> None:
        """Note what it found: the lowest seq below the mark, if any. The mark goes back before it."""
        spent = now - self._looked_at
        self._was_quick, self._unseen = spent <= QUICK_SECONDS, 0
        self._is_looking_below = False
        self._pause_ends, self._short_pause_ends = now + PAUSE_TIMES * spent, now + spent
        if lowest is not None:
            self._low = lowest - 1
            self._tops.clear()
            self._missing.clear()
            self.is_asked &= self._low > 0
