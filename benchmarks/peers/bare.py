"""POSTs prepared bodies and nothing else: `python -m benchmarks.peers.bare own|aiohttp FILE URL IN_FLIGHT`.

`own`: with the transport of `outbox run`, which makes it the ceiling of what that could reach.
"""

import asyncio
import ipaddress
import sys
import time
import uuid
from pathlib import Path

from benchmarks.throughput import bare_loop
from outbox.cli.options import run_async
from outbox.core import postback
from outbox.core.model import Answer
from outbox.http.sender import Sender


async def own_loop(url: str, bodies: list[bytes], in_flight: int) -> None:
    """POST the bodies with our own sender."""
    left = iter(bodies)
    async with Sender(
        timeout=15.0, allow_networks=[ipaddress.ip_network("127.0.0.0/8")], connections=in_flight
    ) as sender:

        async def send() -> None:
            for body in left:
                headers = postback.headers(
                    str(uuid.uuid4()), timestamp=int(time.time()), user_agent="bare", authorization=None, signature=None
                )
                answer = await sender.post(url, body, headers)
                if not isinstance(answer, Answer) or not 200 <= answer.status < 300:
                    raise RuntimeError(f"not delivered: {answer}")

        await asyncio.gather(*(send() for _ in range(in_flight)))


def main(transport: str, file: str, url: str, in_flight: int) -> None:
    """POST the lines of a file, each an id, a space and the body."""
    bodies = [line[37:] for line in Path(file).read_bytes().splitlines()]
    run_async(own_loop(url, bodies, in_flight) if transport == "own" else bare_loop(url, bodies))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
