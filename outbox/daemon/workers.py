"""`--workers N`: a process for each, started alike, told of signals, and ended together."""

import asyncio
import itertools
import os
import signal
import socket
import subprocess
import sys
import time

import structlog

from outbox import signals
from outbox.settings import variable

WITH_PARENT = "--with-parent"
"""The flag that tells a worker that it is one."""

REPORT_TO = "--report-to"
"""The flag that tells a worker the socket on which its readings are heard."""

REPORTS_FROM = "--reports-from"
"""The flag that tells the listening worker the sockets of the others, with commas between them."""

_LOOK_EVERY = 0.1
"""Seconds."""

log = structlog.get_logger("outbox")


def run_workers(count: int, *, listens: bool) -> int:
    """Run this very command `count` times, each as one worker, until all end; returns the worst exit code.

    Signals go on to all. A worker that fails ends the others: whoever watches this process starts it anew.
    `listens`: the first has an address to listen at, and tells there of the others too.
    """
    environment = os.environ | {variable("workers"): "1"}
    arguments = [sys.executable, "-m", "outbox", *_without("--workers", sys.argv[1:]), WITH_PARENT]
    received: list[int] = []
    for signum in signals.ending():
        signal.signal(signum, lambda each, _frame: received.append(each))
    children: list[subprocess.Popen[bytes]] = []
    pairs = [socket.socketpair() for _ in range(count - 1 if listens else 0)]
    for number in range(count):
        # Only the first listens: they share one address.
        own = environment if number == 0 else {k: v for k, v in environment.items() if k != variable("listen")}
        command = arguments if number == 0 else _without("--listen", arguments)
        sockets: list[int] = []
        if pairs and number == 0:
            sockets = [hearing.fileno() for hearing, _ in pairs]
            command = [*command, REPORTS_FROM, ",".join(map(str, sockets))]
        elif pairs:
            sockets = [pairs[number - 1][1].fileno()]
            command = [*command, REPORT_TO, str(sockets[0])]
        # A worker ends when this end of its pipe goes, however that happens.
        children.append(subprocess.Popen(command, env=own, stdin=subprocess.PIPE, pass_fds=sockets))  # noqa: S603 - ourselves
    for each in itertools.chain.from_iterable(pairs):
        each.close()  # the workers have them
    log.info("workers.started", pids=[child.pid for child in children])
    told = False
    while any(child.poll() is None for child in children):
        failed = any(child.returncode for child in children)
        if (received or failed) and not told:
            told = True
            for child in children:
                if child.poll() is None:
                    child.send_signal(signal.SIGTERM)
        time.sleep(_LOOK_EVERY)
    return max(abs(child.wait()) for child in children)


def end_with_parent(stop: asyncio.Event) -> None:
    """Set `stop` when the process that started this worker has gone: its end of our stdin is closed then."""
    loop = asyncio.get_running_loop()

    def look() -> None:
        if not os.read(sys.stdin.fileno(), 1):
            loop.remove_reader(sys.stdin.fileno())
            stop.set()

    loop.add_reader(sys.stdin.fileno(), look)


def _without(flag: str, arguments: list[str]) -> list[str]:
    kept = []
    skip = False
    for each in arguments:
        if skip:
            skip = False
        elif each == flag:
            skip = True
        elif not each.startswith(f"{flag}="):
            kept.append(each)
    return kept
