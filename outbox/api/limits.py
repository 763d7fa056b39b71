"""How often somebody may ask: token buckets in memory, one for each user or address. The clock is an argument."""

from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

_MANY = 10_000


class Buckets(Generic[K]):
    """A bucket for each key: it holds `burst` tokens and gains `rate` a second."""

    def __init__(self, *, rate: float, burst: float) -> None:
        self._rate = rate
        self._burst = burst
        self._left: dict[K, tuple[float, float]] = {}

    def take(self, key: K, now: float) -> float:
        """Take a token and return 0, or return the seconds until there is one. `now` is monotonic seconds."""
        left, since = self._left.get(key, (self._burst, now))
        left = min(self._burst, left + (now - since) * self._rate)
        wait = 0.0 if left >= 1 else (1 - left) / self._rate
        if not wait:
            left -= 1
        if key not in self._left and len(self._left) >= _MANY:
            self._forget(now)
        self._left[key] = (left, now)
        return wait

    def _forget(self, now: float) -> None:
        """Drop the full ones, which say nothing; when none is, all: memory is bounded, come who may."""
        self._left = {
            key: (left, since)
            for key, (left, since) in self._left.items()
            if left + (now - since) * self._rate < self._burst
        }
        if len(self._left) >= _MANY:
            self._left.clear()
