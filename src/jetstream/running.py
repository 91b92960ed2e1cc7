"""How a long-running command runs: on which loop, and with a calm garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, Final

# Container objects made before the collector looks at them (700 by itself; 10,000 take it 2 ms), and how many
# such looks there are before it looks again at all that survived one, and at all there is (half a second).
GC_THRESHOLDS: Final = (10_000, 3, 1_000)


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
