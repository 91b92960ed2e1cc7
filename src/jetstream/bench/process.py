"""What a process has used: CPU time and memory, out of /proc (Linux)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

_TICKS: Final = os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the CPU seconds that a process has used, in user and system mode, to a hundredth.

    Raises OSError when it is gone.
    """
    # The name, in parentheses, may hold anything, spaces and parentheses too.
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / _TICKS


def waited_s(pid: int) -> float:
    """Return the seconds that a process's threads stood ready while others had the cores.

    Raises OSError when it is gone.
    """
    waited = [thread.read_text().split()[1] for thread in Path(f"/proc/{pid}/task").glob("*/schedstat")]
    return sum(map(int, waited)) / 1e9


def memory_bytes(pid: int, field: str = "VmRSS") -> int:
    """Return the resident memory of a process; `VmHWM` is the most it ever was. Raises OSError."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024
    return 0
