"""A real terminal for a command: a pseudo-terminal that is its controlling one, typed at and read by the test."""

import contextlib
import fcntl
import os
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable, Iterator

# Whoever is the session's leader and has none makes it the controlling terminal: then Ctrl-C and Ctrl-Z are signals.
_LAUNCH = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
    "os.execv(sys.executable, [sys.executable, '-m', 'outbox', *sys.argv[1:]])"
)
_CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_HOME, _END = "\x1b[H", "\x1b[J"

LEFT = "\x1b[?25h\x1b[?1049l"
"""The cursor is back, and the page that was there before."""


class Screen:
    """What a command that runs in a terminal of its own has shown."""

    def __init__(self, process: subprocess.Popen[bytes], master: int, slave: int) -> None:
        self.process = process
        self._master = master
        self._slave = slave
        self._before = termios.tcgetattr(slave)
        self.output = ""

    def is_restored(self) -> bool:
        """Whether the terminal is as it was before the command."""
        self.read()
        modes = termios.tcgetattr(self._slave) == self._before
        return modes and self.output.rindex("\x1b[?1049l") > self.output.rindex("\x1b[?1049h")

    def type(self, keys: bytes) -> None:
        """Press keys."""
        os.write(self._master, keys)

    def resize(self, columns: int, lines: int) -> None:
        """Let the window have another size."""
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))

    def read(self, seconds: float = 0.0) -> None:
        """Take what was shown, after waiting for it for some seconds at most."""
        while select.select([self._master], [], [], seconds)[0]:
            try:
                self.output += os.read(self._master, 65_536).decode("utf-8", "replace")
            except OSError:
                return
            seconds = 0.0

    @property
    def lines(self) -> list[str]:
        """The lines that were drawn last, and to their end, without colours."""
        end = max(0, self.output.rfind(_END))
        return [
            _CONTROL.sub("", line)
            for line in self.output[max(0, self.output.rfind(_HOME, 0, end)) : end].replace("\r", "").split("\n")
        ]

    @property
    def text(self) -> str:
        """All that is to be seen."""
        return "\n".join(self.lines)

    def wait_for(self, holds: Callable[[str], object], *, within: float = 30.0) -> str:
        """Wait until what is seen is so, and return it; AssertionError when it never is."""
        deadline = time.monotonic() + within
        while not holds(self.text):
            assert time.monotonic() < deadline, self.output[-4000:]
            assert self.process.poll() is None, self.output[-4000:]
            self.read(0.1)
        return self.text

    def ended(self) -> int:
        """Wait for the exit code, with all that was shown read."""
        deadline = time.monotonic() + 30
        while self.process.poll() is None:
            assert time.monotonic() < deadline, self.output[-4000:]
            self.read(0.1)
        self.read()
        return int(self.process.returncode)

    def hang_up(self) -> None:
        """Close the window."""
        os.close(self._slave)
        os.close(self._master)
        self._master = self._slave = -1

    def close(self) -> None:
        """End what is left."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        if self._master >= 0:
            self.hang_up()


@contextlib.contextmanager
def terminal(dsn: str, *arguments: str, columns: int = 160, lines: int = 24, **environment: str) -> Iterator[Screen]:
    """Run `outbox` in a terminal of this size."""
    master, slave = os.openpty()
    fcntl.ioctl(master, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", _LAUNCH, *arguments],
        env=inherited | {"OUTBOX_DSN": dsn, "TERM": "xterm-256color"} | environment,
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    screen = Screen(process, master, slave)
    try:
        yield screen
    finally:
        screen.close()
