"""How a long-running command runs: on which loop, and with a calm garbage collector."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Coroutine
from typing import Any, Final

GC_THRESHOLD: Final = 50_000  # container objects made before the collector looks: 700 by itself


def run(main: Coroutine[Any, Any, None]) -> None:
    """Run a coroutine to its end, on uvloop where there is one."""
    try:
        import uvloop  # noqa: PLC0415 - not on every platform
    except ImportError:
        asyncio.run(main)
    else:
        uvloop.run(main)


def calm_collector() -> None:
    """Let the garbage collector look seldom, and never at what is there already: 5 to 7 % of the time.

    What comes later, events and frames, is tuples of bytes, and makes no cycles.
    """
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD)
