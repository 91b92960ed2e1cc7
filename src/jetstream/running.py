"""How a long-running command runs: on which loop, and with a calm garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, Final

# Container objects made before the collector looks at them (700 by itself; 10,000 take it 2 ms), and how many
# such looks there are before it looks again at all that survived one, and at all there is (half a second).
GC_THRESHOLDS: Final = (10_000, 3, 1_000)
YOUNG_EVERY_S: Final = 0.02
YOUNG_MAX: Final = 5_000


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def calm_collector() -> None:
    """Let the garbage collector look seldom, hardly ever at everything, and never at what is there already.

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
