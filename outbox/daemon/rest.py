"""Rest: when a claim is worth while again, after one that saw all there was, or left next to no room."""

import time

NOTHING_DUE_SECONDS = 0.1
"""Where it found nothing, it is repeated after so many seconds, unless something is known to have fallen due since."""

NEARLY_FULL_SECONDS = 0.06
"""Where a claim left next to no room, it is repeated after so many seconds, or when there is room for many: each of
a few costs the database more."""


class Rest:
    """The pause from one claim to the next, so that what comes in dribbles gathers.

    After one that saw all it ends when `times` the claim's duration have passed since that began: with 1 there is none.
    `most`: seconds.
    """

    def __init__(self, times: int, *, most: float) -> None:
        self._times = times
        self._most = most
        self._began = 0.0
        self._gathers_until = 0.0
        self._rests_until = 0.0
        self.has_unseen = False
        """Whether something was left due since the last claim began, which does not see it."""

    @property
    def ends(self) -> float:
        """When, on the monotonic clock."""
        return self._gathers_until if self.has_unseen else self._rests_until

    def put_off(self, moment: float) -> float:
        """Return when to look at what falls due at some moment: no sooner than where nothing was found."""
        return max(moment, self.ends, self._began + min(NOTHING_DUE_SECONDS, self._most))

    def end(self) -> None:
        """Let the next claim not be put off."""
        self._gathers_until = self._rests_until = 0.0

    def claim_begins(self) -> None:
        """Note that one begins: what a former one found says nothing of it."""
        self.end()
        self.has_unseen = False
        self._began = time.monotonic()

    def wait_for_room(self) -> None:
        """Begin the pause after a claim that left next to no room."""
        self._gathers_until = self._rests_until = self._began + min(NEARLY_FULL_SECONDS, self._most)

    def claimed_all(self, *, found: bool) -> None:
        """Begin the pause after a claim that came to the last of the configs, and whether it found anything."""
        spent = time.monotonic() - self._began
        self._gathers_until = self._rests_until = self._began + min(spent * self._times, self._most)
        if not found:
            self._rests_until = self.put_off(self._gathers_until)
