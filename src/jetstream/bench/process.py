"""The CPU time and memory of a process, read from /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds of a process, user and system, in steps of 0.01.

    Raises OSError if the process does not exist.
    """
    # The name, in parentheses, may contain anything, also spaces and parentheses.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def waited_s(pid: int) -> float:
    """Return the seconds for which threads of a process were runnable but had no core.

    Raises OSError if the process does not exist.
    """
    waited = [thread.read_text().split()[1] for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, waited)) / 1e9


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return the resident memory of a process; `VmHWM` is its highest value so far. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
