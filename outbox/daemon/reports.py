"""How one scrape tells of all workers: each writes its reading to the one that listens, once a second, on a socket.

The last reading of each is what is told: nobody waits for a worker that is busy, and none is asked.
"""

import asyncio
import json
import os
import socket
import time
from collections.abc import Callable, Sequence

from outbox.metrics.reading import Reading, Readings, one

EVERY = 1.0
"""Seconds from one reading to the next."""

SILENT = 5.0
"""Seconds without a reading after which a worker is not counted as one that is told of."""


async def report(fd: int, read: Callable[[], Reading]) -> None:
    """Write readings to this socket, for ever, or until nobody hears them."""
    _, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
    try:
        while True:
            writer.write(json.dumps([os.getpid(), read()]).encode() + b"\n")
            await writer.drain()
            await asyncio.sleep(EVERY)
    except OSError:
        pass  # the listening worker has gone, and the parent ends this one too
    finally:
        writer.close()


class Reports:
    """What the other workers said last. `fds`: a socket from each."""

    def __init__(self, fds: Sequence[int]) -> None:
        self._fds = fds
        self._last: dict[int, tuple[float, Reading]] = {}

    async def hear(self) -> None:
        """Take what they say, until all have ended."""
        await asyncio.gather(*(self._hear(fd) for fd in self._fds))

    def with_own(self, own: Reading) -> Readings:
        """Return the readings of all workers by pid, this one first.

        One that has gone silent keeps its counts, so that no sum falls, and is no longer counted as a worker.
        """
        silent_since = time.monotonic() - SILENT
        others = {
            pid: reading | {"outbox_workers": one(at > silent_since)}
            for pid, (at, reading) in sorted(self._last.items())
        }
        return {os.getpid(): own} | others

    async def _hear(self, fd: int) -> None:
        reader, writer = await asyncio.open_unix_connection(sock=socket.socket(fileno=fd))
        try:
            while (line := await reader.readline()).endswith(b"\n"):
                pid, reading = json.loads(line)
                self._last[pid] = (time.monotonic(), reading)
        except OSError:
            pass  # it has ended
        finally:
            writer.close()
