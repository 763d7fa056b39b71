"""One timer times out all POSTs, on whichever event loop."""

import asyncio
from collections.abc import Callable

import pytest
import uvloop

from outbox.core.model import Failure, FailureKind
from outbox.http.connection import Connection
from outbox.http.deadlines import Deadlines

LOOPS = [asyncio.new_event_loop, uvloop.new_event_loop]


async def never_answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()
    writer.close()


async def time_out(ends: list[float]) -> list[Failure]:
    """Time out exchanges with a server that does not answer; their ends are so many seconds away."""
    server = await asyncio.start_server(never_answer, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()
    loop, deadlines = asyncio.get_running_loop(), Deadlines(15)
    connections = [(await loop.create_connection(Connection, *address[:2]))[1] for _ in ends]
    results = []
    try:
        for connection, end in zip(connections, ends, strict=True):
            deadlines.begin(connection, loop.time() + end)
            results.append(connection.exchange(b"POST / HTTP/1.1\r\nContent-Length: 0\r\n\r\n", b""))
        async with asyncio.timeout(10):
            failures = await asyncio.gather(*results)
    finally:
        deadlines.close()
        for connection in connections:
            connection.close()
        server.close()
        await server.wait_closed()
        await asyncio.sleep(0.05)  # the server's ends are closed some turns of the loop later
    return [each for each in failures if isinstance(each, Failure)]


@pytest.mark.parametrize("new_event_loop", LOOPS, ids=["asyncio", "uvloop"])
@pytest.mark.parametrize("ends", [(0.2, 0.1, 0.3), (0.0, 0.1), (-1.0, 0.1, 0.0)], ids=["later", "now", "over"])
def test_each_is_timed_out_however_near_its_end_is(
    new_event_loop: Callable[[], asyncio.AbstractEventLoop], ends: list[float]
) -> None:
    """Also while the timer is due at once, which for uvloop is no timer."""
    with asyncio.Runner(loop_factory=new_event_loop) as runner:
        failures = runner.run(time_out(list(ends)))
    assert [each.kind for each in failures] == [FailureKind.TIMEOUT] * len(ends)
