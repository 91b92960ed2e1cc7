"""How a long-running command runs: on which loop, with a calm garbage collector, and giving memory back."""

from __future__ import annotations

import asyncio
import ctypes
import gc
import os
from collections.abc import Callable, Coroutine
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final

# Container objects made before the collector looks at them (700 by itself; 10,000 take it 2 ms), and how many
# such looks there are before it looks again at all that survived one. It does not look at all there is, which
# up to half a second: what lives long is in no cycle when it ends (tests/integration/test_memory.py).
GC_THRESHOLDS: Final = (10_000, 3, 1_000_000_000)
YOUNG_EVERY_S: Final = 0.02
YOUNG_MAX: Final = 5_000
# Twice a minute, memory that a flood left is given back, in case this much is in use; a server with a few
# hundred subscribers has less, and does nothing.
RELEASE_EVERY_S: Final = 30.0
RELEASE_ABOVE_BYTES: Final = 112 << 20
_STATM: Final = Path("/proc/self/statm")


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def tune_gc() -> None:
    """Let the garbage collector look seldom, never at everything, and never at what is there already.

    What comes later, events, frames and connections, is freed without it: it makes no cycles that last.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def collect_young() -> None:
    """Collect what is young as soon as it is much, until cancelled.

    By itself the collector counts what is made less what is freed. When thousands of connections end while
    thousands come, hundreds of thousands of new objects gather, and one look at them takes 40 ms and more.
    """
    while True:
        await asyncio.sleep(YOUNG_EVERY_S)
        if len(gc.get_objects(generation=0)) > YOUNG_MAX:
            gc.collect(1)


async def release_memory(
    trim: Callable[[], object] | None = None, resident: Callable[[], int] | None = None
) -> None:
    """Give memory back to the system now and then, while much is in use, until cancelled.

    `trim` gives back what the C library holds, in a thread: of 470 MB that takes it 0.2 s. `resident` returns
    the bytes that the process has in memory. By default they are glibc's and Linux's; else this returns.
    """
    trim, resident = trim or malloc_trim(), resident or (resident_bytes if _STATM.exists() else None)
    if trim is None or resident is None:
        return
    while True:
        await asyncio.sleep(RELEASE_EVERY_S)
        if resident() > RELEASE_ABOVE_BYTES:
            await asyncio.to_thread(trim)


def malloc_trim() -> Callable[[], object] | None:
    """Return what makes glibc give back free memory, of which it keeps nearly all; None elsewhere."""
    with suppress(AttributeError, OSError, TypeError):
        trim = ctypes.CDLL(None).malloc_trim
        trim.argtypes, trim.restype = [ctypes.c_size_t], ctypes.c_int
        return partial(trim, 0)
    return None


def resident_bytes() -> int:
    """Return how many bytes of this process are in memory. Linux only."""
    return int(_STATM.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
