"""The machine on which figures were measured, and how fast it was at that time."""

from __future__ import annotations

import os
import platform
import sqlite3
import subprocess
import time
from importlib.metadata import version
from pathlib import Path
from typing import Final

import libipld
from benches.frames import recorded

from jetstream.simulator import recording

LIBRARIES: Final = ("aiohttp", "cbor2", "libipld", "orjson", "picows", "uvloop", "zstandard")
FRAME_BYTES: Final = range(4_500, 5_500)  # of a typical commit
_CONGESTION: Final = Path("/proc/sys/net/ipv4/tcp_congestion_control")
_DECODES: Final = 50_000


def describe() -> dict[str, str]:
    """Return facts about the machine and the versions of software, by name."""
    facts = {
        "processor": f"{_processor()}, {len(os.sched_getaffinity(0))} cores",
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "TCP": _CONGESTION.read_text().strip() if _CONGESTION.exists() else "unknown",
        "Python": platform.python_version(),
        "SQLite": sqlite3.sqlite_version,
        "commit": _commit(),
    }
    return facts | {name: version(name) for name in LIBRARIES}


def decode_us() -> float:
    """Return how long it takes at present to decode the CBOR of one commit frame.

    It is 1 µs on an idle machine of 2024, and more if other guests of the same host use the cores. In a
    virtual machine there is no other way to see that.
    """
    frame = next(frame for frame in recording.read(recorded()) if len(frame) in FRAME_BYTES)
    began = time.perf_counter()
    for _ in range(_DECODES):
        libipld.decode_dag_cbor_multi(frame)
    return (time.perf_counter() - began) / _DECODES * 1e6


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
