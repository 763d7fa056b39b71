"""A server of the tests in a thread with a loop of its own, while a context is open."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor

Started = Future[Callable[[], None]]
"""Given, once it serves, what stops it."""


@contextlib.contextmanager
def serving(name: str, serve: Callable[[Started], Coroutine[None, None, None]]) -> Iterator[None]:
    """Serve in a thread of this name; what went wrong there is raised at the end."""
    started: Started = Future()
    with ThreadPoolExecutor(1, name) as thread:
        served = thread.submit(lambda: asyncio.run(serve(started)))
        stop = started.result()
        try:
            yield
        finally:
            stop()
            served.result()
