"""How many captured changes a look routes: what can be leased, some ahead of that, and no more than takes a moment.

No clock, no I/O.
"""

import math

FIRST_ROWS = 10
"""How many rows are routed while nobody knows how many configs want each."""

FORGOTTEN_ROWS = 100
"""After about so many rows that fewer configs want, what a row makes is believed to be less."""

DELIVERIES_AT_ONCE = 5_000
"""How many deliveries one route makes, and little more: all others wait for it. As many as wait in hand at most."""

LONG_SECONDS = 0.5
"""A route that took longer is followed by one of half as many rows: the database may be slow."""

SHORT_SECONDS = 0.2
"""And one that took less by one of twice as many, where that had kept it short. In between it is an eighth more."""

WITHOUT_ANSWER = 8
"""A route without an answer is followed by one of so many times fewer rows: it may have been given up after a minute,
and would be as long the next time."""

NO_LIMIT = 2**31


class FanOut:
    """How many deliveries a change makes, by what the last ones made."""

    def __init__(self) -> None:
        self._of_a_row: float | None = None

    @property
    def is_known(self) -> bool:
        """Whether there were any."""
        return self._of_a_row is not None

    def note(self, rows: int, deliveries: int) -> None:
        """Note what so many rows made."""
        if rows:
            lately = deliveries / rows
            known = lately if self._of_a_row is None else self._of_a_row
            # It rises at once: what comes next may be as much. It does not fall by some single changes.
            self._of_a_row = max(lately, known + (lately - known) * min(1.0, rows / FORGOTTEN_ROWS))

    def rows(self, deliveries: int) -> int:
        """Return how many rows make so many deliveries."""
        if self._of_a_row is None:
            return min(deliveries, FIRST_ROWS)
        return math.ceil(deliveries / max(1.0, self._of_a_row))


class Stride:
    """How many rows the next look takes. `now` is the monotonic clock."""

    def __init__(self) -> None:
        self.fan_out = FanOut()
        self.ahead_at = 0.0
        """When more is routed next than can be leased."""
        self._ahead = self._taken_lately = 0
        self._most = self._asked = NO_LIMIT
        self.is_cut = False
        """Whether the last look was given less than there was room for, to keep it short: the next is not put off."""

    def next(self, now: float, limit: int, *, ahead: int, pause: float) -> int:
        """Return how many rows to route: `limit`, and what is missing to `ahead` of them in each `pause`.

        What is leased counts as well: where those who want the changes take what is made of them, nothing is missing.
        """
        if now >= self.ahead_at:
            self._ahead = max(0, ahead - max(0, self._taken_lately) - limit)
            self.ahead_at, self._taken_lately = now + pause, -self._ahead  # those are of the time before
        rows = self.at_once(limit + self._ahead)
        self._ahead = max(0, min(self._ahead, limit + self._ahead - rows))
        return rows

    def at_once(self, limit: int) -> int:
        """Return how many of so many rows to route in one look."""
        self._asked = min(limit, self._most, self.fan_out.rows(DELIVERIES_AT_ONCE))
        self.is_cut = self._asked < limit
        return self._asked

    def took(self, seconds: float) -> None:
        """Note how long the look took."""
        if seconds > LONG_SECONDS and self._asked > 1:
            self._most = self._asked // 2
        elif seconds <= LONG_SECONDS and self._asked >= self._most:
            more = self._most if seconds < SHORT_SECONDS else max(1, self._most // 8)
            self._most = min(NO_LIMIT, self._most + more)

    def routed(self, rows: int, *, leased: int = 0) -> None:
        """Note how many rows were routed, and how much of what they made was leased."""
        self._taken_lately += max(rows, leased)

    def found_nothing(self) -> None:
        """Note that nobody wanted what was routed: perhaps what is behind it."""
        self.ahead_at, self._taken_lately = 0.0, 0

    def had_no_answer(self) -> None:
        """Note that a look had no answer, or may have had none."""
        self._most = max(1, self._asked // WITHOUT_ANSWER)
