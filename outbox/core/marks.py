"""From when on something can be due, so that no claim looks at what was before. No clock, no I/O.

While somebody holds a snapshot open, all that was delivered stays in the index, below what is still wanted. Marks
trail, because transactions commit out of the order of their due_at, and they are forgotten soon: what a mark hides is
found a little later.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from outbox.core.model import ConfigId

LAG = 0.5
"""Seconds by which marks trail."""

LIFE = 2.0
"""Seconds after which a look forgets them."""

_NEVER = datetime.min.replace(tzinfo=UTC)


class Marks:
    """A mark for each config, by due_at. `now` is the monotonic clock."""

    def __init__(self) -> None:
        self.since: dict[ConfigId, datetime] = {}
        """From when on something can be due, for each config that has a mark."""
        self.latest = _NEVER
        """A claim that begins now sees all that was due before this time: the last route's, less LAG."""
        self._forget_at = 0.0

    def renew(self, now: float) -> None:
        """Forget all marks when it is time to."""
        if now >= self._forget_at:
            self.forget()
            self._forget_at = now + LIFE

    def routed(self, at: datetime) -> None:
        """Note a route at this time of the database."""
        self.latest = at - timedelta(seconds=LAG)

    def claimed(
        self,
        config_ids: Sequence[ConfigId],
        reached: Mapping[ConfigId, datetime],
        *,
        after: ConfigId,
        rooms: Mapping[ConfigId, int],
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
        last = max(taken, default=None)
        for config_id in rooms.keys() | taken.keys():
            mark = reached.get(config_id)
            if taken[config_id] < rooms.get(config_id, room) and after < config_id:
                was_looked_at = to_the_last or (last is not None and config_id < last)
                mark = latest if was_looked_at else mark
            if mark is not None:
                self.since[config_id] = min(mark, latest)

    def forget(self) -> None:
        """Look at everything again."""
        self.since.clear()
