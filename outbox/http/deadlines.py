"""When the POSTs under way must be over. One timer for all: one for each would cost a twentieth of a whole POST."""

import asyncio
import math

from outbox.http.connection import Connection


class Deadlines:
    """Times exchanges out. `timeout`: what their deadline was, in seconds; for people."""

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout
        self._ends: dict[Connection, float] = {}
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.Handle | None = None
        self._timer_at = math.inf

    def begin(self, connection: Connection, end: float) -> None:
        """Time the connection's exchange out at `end` by the loop's clock, unless it is over before."""
        self._ends[connection] = end
        if end < self._timer_at:
            self._set_timer(end)

    def over(self, connection: Connection) -> None:
        """Forget the connection's exchange."""
        self._ends.pop(connection, None)

    def close(self) -> None:
        """Time nothing out any more."""
        self._ends.clear()
        if self._timer is not None:
            self._timer.cancel()

    def _set_timer(self, at: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(at, self._time_out), at

    def _time_out(self) -> None:
        now, self._timer, self._timer_at = self._loop.time(), None, math.inf
        for connection in [connection for connection, end in self._ends.items() if end <= now]:
            del self._ends[connection]
            connection.time_out(self._timeout)
        if self._ends:
            self._set_timer(min(self._ends.values()))
