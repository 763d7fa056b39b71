"""Whether a daemon lives and does its work, for /livez, /readyz and /metrics. It asks no database."""

import time

from outbox.daemon.dispatcher import Dispatcher
from outbox.daemon.outage import Outage
from outbox.metrics.reading import Reading, one

LATE_SECONDS = 10.0
"""Beyond the poll interval: how long a turn of the fetch loop may take before the daemon is not ready."""


class Health:
    """Whether the process lives, and whether it does its work.

    `poll_interval` and `late`: seconds; their sum is how long a turn of the fetch loop may take.
    """

    def __init__(
        self, dispatcher: Dispatcher, outage: Outage, *, poll_interval: float, late: float = LATE_SECONDS
    ) -> None:
        self._dispatcher = dispatcher
        self._outage = outage
        self._patience = poll_interval + late
        self.schema_fits = True

    def tell_schema_fits(self, fits: bool) -> None:  # noqa: FBT001 - the one thing that is told
        """Remember whether the database's ledger fits this program."""
        self.schema_fits = fits

    def problems(self) -> list[str]:
        """Return what keeps the daemon from being ready; empty when it is."""
        found = []
        if self._outage.lasts:
            found.append("the database can not be reached")
        elif time.monotonic() - self._dispatcher.turned_at > self._patience:
            found.append("the fetch loop did not turn lately")
        if not self.schema_fits:
            found.append("the schema is not the one that this program knows")
        return found

    def reading(self) -> Reading:
        """Return what /metrics says of this process: its work, and whether the schema is the one for it."""
        return self._dispatcher.reading() | {"outbox_schema_differs": one(not self.schema_fits)}
