"""`--workers N`: a process for each, started alike, told of signals, and ended together."""

import os
import signal
import subprocess
import sys
import time

import structlog

from outbox.settings import variable

_LOOK_EVERY = 0.1
"""Seconds."""

log = structlog.get_logger("outbox")


def run_workers(count: int) -> int:
    """Run this very command `count` times, each as one worker, until all end; returns the worst exit code.

    Signals go on to all. A worker that fails ends the others: whoever watches this process starts it anew.
    """
    environment = os.environ | {variable("workers"): "1"}
    arguments = [sys.executable, "-m", "outbox", *_without_workers(sys.argv[1:])]
    received: list[int] = []
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, lambda each, _frame: received.append(each))
    children: list[subprocess.Popen[bytes]] = []
    for number in range(count):
        # Only the first listens: they share one address.
        own = environment if number == 0 else {k: v for k, v in environment.items() if k != variable("listen")}
        children.append(subprocess.Popen(arguments if number == 0 else _without("--listen", arguments), env=own))  # noqa: S603 - ourselves
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


def _without_workers(arguments: list[str]) -> list[str]:
    return _without("--workers", arguments)


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
