"""The terminal as a screen of our own: another page, no cursor, keys as they are pressed; and all as it was, after.

What is drawn, and what a key means, stands elsewhere.
"""

import contextlib
import os
import termios
from types import TracebackType
from typing import Any, Self

_ENTER = b"\x1b[?1049h\x1b[?25l\x1b[2J"
_LEAVE = b"\x1b[0m\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST_OF_SCREEN = "\x1b[H", "\x1b[K", "\x1b[J"

_LOCAL_FLAGS, _CONTROL_CHARACTERS = 3, 6


class Terminal:
    """Use it as a context manager. Ctrl-C and Ctrl-Z still are signals; who handles them calls `leave` and `enter`."""

    def __init__(self, keyboard: int, screen: int) -> None:
        self._keyboard = keyboard
        self._screen = screen
        self._before: list[Any] | None = None

    def __enter__(self) -> Self:
        self.enter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave()

    def enter(self) -> None:
        """Take the terminal, once more too: a shell that stopped us has changed it."""
        found = termios.tcgetattr(self._keyboard)
        if self._before is None:
            self._before = list(found)
            self._before[_CONTROL_CHARACTERS] = list(found[_CONTROL_CHARACTERS])
        found[_LOCAL_FLAGS] &= ~(termios.ICANON | termios.ECHO)
        found[_CONTROL_CHARACTERS][termios.VMIN] = 1
        found[_CONTROL_CHARACTERS][termios.VTIME] = 0
        termios.tcsetattr(self._keyboard, termios.TCSANOW, found)
        self._write(_ENTER)

    def leave(self) -> None:
        """Give the terminal back as it was. What was typed ahead is not for the shell. Harmless when it is back."""
        before, self._before = self._before, None
        if before is None:
            return
        # It may be gone, and then there is nothing to restore.
        with contextlib.suppress(OSError, termios.error):
            self._write(_LEAVE)
        with contextlib.suppress(OSError, termios.error):
            # Not TCSAFLUSH, which waits until all was shown: a terminal that was stopped by Ctrl-S never does.
            termios.tcflush(self._keyboard, termios.TCIFLUSH)
            termios.tcsetattr(self._keyboard, termios.TCSANOW, before)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and lines. What says that it has none has as many as the first ones had."""
        columns, lines = os.get_terminal_size(self._screen)
        return columns or 80, lines or 24

    def draw(self, lines: list[str]) -> None:
        """Show these lines, each shorter than the screen is wide, and nothing else."""
        self._write((_HOME + f"{_REST_OF_LINE}\r\n".join(lines) + _REST_OF_LINE + _REST_OF_SCREEN).encode())

    def read(self) -> bytes:
        """Return what was typed; empty when the terminal is gone."""
        try:
            return os.read(self._keyboard, 1024)
        except OSError:
            return b""

    def _write(self, data: bytes) -> None:
        while data:
            data = data[os.write(self._screen, data) :]
