"""What the kernel says of the processor time that a process and its children took."""

import os
from pathlib import Path

_TICKS = os.sysconf("SC_CLK_TCK")


def seconds(pid: int) -> float:
    """Return the processor seconds that a process and all its descendants used so far, those that ended included.

    Only the difference of two calls means anything. It never falls: a child that ends moves into its parent's account.
    """
    children: dict[int, list[int]] = {}
    used: dict[int, int] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = path.read_text().rpartition(")")[2].split()
        except (FileNotFoundError, ProcessLookupError):  # it ended just now
            continue
        each = int(path.parent.name)
        children.setdefault(int(fields[1]), []).append(each)
        # utime, stime, and those of the children that ended and were waited for.
        used[each] = sum(map(int, fields[11:15]))
    family, total = [pid], 0
    while family:
        each = family.pop()
        total += used.get(each, 0)
        family += children.get(each, [])
    return total / _TICKS
