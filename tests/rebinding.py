"""A program: posts to a name that moves to a forbidden address, by the system's own resolver; prints what came of it.

It runs as root of a mount and network namespace of its own, whose /etc/resolv.conf names a server of ours.
"""

import asyncio
import ipaddress
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from outbox.core.model import Answer, Failure
from outbox.http.sender import Sender
from tests.nameserver import A, NameServer
from tests.receiver import Receiver

ALLOWED, FORBIDDEN = "127.0.0.1", "127.0.0.2"
NAME = "rebind.example"


def told(result: Answer | Failure) -> Any:  # noqa: ANN401 - JSON
    return result.status if isinstance(result, Answer) else result.kind


async def main() -> dict[str, Any]:
    with NameServer([ALLOWED], [FORBIDDEN], address=("127.0.0.53", 53)) as server, Receiver() as receiver:
        url = receiver.url.replace("127.0.0.1", NAME)
        results = []
        for _ in range(2):
            # Each with no memory of the last: what a look-up after the receiver closed, or a minute later, would be.
            async with Sender(timeout=30, allow_networks=(ipaddress.ip_network(f"{ALLOWED}/32"),)) as sender:
                results.append(told(await sender.post(url, b"", {})))
        hosts = [request.headers["Host"] for request in receiver.requests]
        return {"results": results, "asked": server.asked[A], "hosts": hosts, "port": url.rpartition(":")[2]}


if __name__ == "__main__":
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, text in (("resolv.conf", "nameserver 127.0.0.53\n"), ("nsswitch.conf", "hosts: dns\n")):
            mine = Path(folder) / name
            mine.write_text(text)
            subprocess.run(["mount", "--bind", str(mine), f"/etc/{name}"], check=True)
        json.dump(asyncio.run(main()), sys.stdout)
        for name in ("resolv.conf", "nsswitch.conf"):
            subprocess.run(["umount", f"/etc/{name}"], check=True)
