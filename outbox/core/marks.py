"""Up to where nothing is left to find, so that route and claim do not look there again. No clock, no I/O.

While somebody holds a snapshot open, all that was taken or delivered stays in the indexes, below what is still wanted.
Marks trail, because transactions commit out of the order of their seq and due_at, and they are forgotten soon: what a
mark hides is found a little later.
"""

from collections import Counter, deque
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from uuid import UUID

LAG = 0.5
"""Seconds by which marks trail."""

LIFE = 2.0
"""Seconds after which a look forgets them."""

MISSING_SECONDS = 2.0
"""How long the mark does not pass a number that is missing: its transaction may be under way. It may have been rolled
back, too, or routed by another daemon."""

_NEVER = datetime.min.replace(tzinfo=UTC)


class Marks:
    """The outbox's low-water mark, by seq, and one for each config, by due_at. `now` is the monotonic clock."""

    def __init__(self) -> None:
        self.since: dict[UUID, datetime] = {}
        """From when on something can be due, for each config that has a mark."""
        self._low = 0
        self._tops: deque[tuple[float, int]] = deque()
        self._missing: deque[tuple[float, int]] = deque()
        self.latest = _NEVER
        """A claim that begins now sees all that was due before this time: the last route's, less LAG."""
        self._forget_at = 0.0

    def __bool__(self) -> bool:
        """Tell whether anything may be hidden."""
        return bool(self._low or self._tops or self.since)

    def low(self, now: float) -> int:
        """Return the seq up to which nothing is left, or missing; forget all marks when it is time to."""
        if now >= self._forget_at:
            self.forget()
            self._forget_at = now + LIFE
        while self._tops and self._tops[0][0] < now - LAG:
            self._low = max(self._low, self._tops.popleft()[1])
        while self._missing and self._missing[0][0] < now - MISSING_SECONDS:
            self._missing.popleft()
        return min(self._low, self._missing[0][1]) if self._missing else self._low

    def missing(self, now: float, after: int) -> None:
        """Note that a number after this seq is missing, and nothing up to it."""
        self._missing.append((now, after))

    def routed(self, now: float, *, at: datetime | None, top: int | None) -> None:
        """Note a route at the database's time `at`; `top`: the highest seq that it took."""
        if at is not None:
            self.latest = at - timedelta(seconds=LAG)
        if top is not None:
            self._tops.append((now, top))

    def claimed(
        self,
        config_ids: Sequence[UUID],
        reached: Mapping[UUID, datetime],
        *,
        after: UUID,
        rooms: Mapping[UUID, int],
        room: int,
        to_the_last: bool,
        latest: datetime,
    ) -> None:
        """Note a claim that walked the configs `after` one, or `to_the_last`; `config_ids`: one for each delivery.

        `latest` is that of the moment when the claim began: there may have been a route since, and it did not see that.
        A config whose room was filled has nothing due before what it `reached`; one that got less has nothing due
        before `latest`.
        """
        taken = Counter(config_ids)
        for config_id in rooms.keys() | taken.keys():
            mark = reached.get(config_id)
            if taken[config_id] < rooms.get(config_id, room) and after < config_id:
                was_looked_at = to_the_last or config_id < max(taken)
                mark = latest if was_looked_at else mark
            if mark is not None:
                self.since[config_id] = min(mark, latest)

    def forget(self) -> None:
        """Look at everything again."""
        self._tops.clear()
        self._low = 0
        self.since.clear()
