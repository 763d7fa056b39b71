"""Slots: how many POSTs may be in flight, by what is known of their configs; who is slow leaves some to who is quick.

No clock, no I/O.
"""

from enum import IntEnum

LEAST_SHARE = 16
"""This part of the slots is there for each standing, whatever the others have."""

FEW_SLOTS = 8
"""From so many slots on each standing has at least one; with fewer, those that are not quick may have none."""


class Standing(IntEnum):
    """What a config's last POST says of it. Who stands higher has more slots."""

    TIMED_OUT = 0
    """It was not answered in time."""
    SLOW = 1
    """It was answered, but late, or another one has been waiting for long."""
    UNKNOWN = 2
    """There was none lately."""
    QUICK = 3
    """It was answered soon."""


# Asked for with each POST: a member of an enum is found by a slow way.
TIMED_OUT, SLOW, UNKNOWN, QUICK = Standing


class Slots:
    """Shares the slots out. It counts the POSTs in flight of all who are not known to be quick.

    Who timed out may have a quarter of the slots, together with who is slow a half, and together with who is unknown
    three quarters. So whatever happens to however many of them, those that are known to be quick have the rest. Where
    there are none but slow ones, they may have three quarters, too.
    """

    def __init__(self, concurrency: int) -> None:
        self._most = [-(-concurrency * (standing + 1) // len(Standing)) for standing in Standing]
        self._most[:-1] = [min(most, max(1, concurrency - 1)) for most in self._most[:-1]]
        self._least = max(concurrency // LEAST_SHARE, int(concurrency >= FEW_SLOTS))
        self._taken = [0] * len(Standing)
        self.has_others = True
        """Whether there are any, or were lately, who are not slow and did not time out."""

    def count(self, standing: Standing, change: int) -> None:
        """Count so many more in flight, or less."""
        self._taken[standing] += change

    def taken(self, standing: Standing, *, of: int) -> int:
        """Return how many are in flight of the configs of this standing, `of` so many in all."""
        return of - sum(self._taken) if standing is QUICK else self._taken[standing]

    def free(self, standing: Standing) -> int:
        """Return how many more may start of the configs of this standing; not positive for none."""
        taken = sum(self._taken[:standing])
        free = self._most[-1]
        for each in range(standing, QUICK):
            taken += self._taken[each]
            most = each if self.has_others or each != SLOW else UNKNOWN
            free = min(free, self._most[most] - taken)
        return max(free, self._least - self._taken[standing])

    def lacks(self, standing: Standing) -> bool:
        """Whether the configs of this standing have less than is there for them in any case, or none."""
        return self._taken[standing] < max(1, self._least)
