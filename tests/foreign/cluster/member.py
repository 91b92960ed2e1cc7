"""`jetstream serve` as the soak runs it: a file shifts its clock, and by its limits much happens soon.

The variable `CLOCK_FILE` names a file with the microseconds by which the clock is ahead. It is read again all
the time, so that a test can set the clock of a process that runs.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Final

from cyclopts import App

from jetstream import logging_setup
from jetstream.app import Service
from jetstream.clock import unix_us
from jetstream.limits import AdmissionLimits, KeyLimits, Limits, LogLimits, UpstreamLimits
from jetstream.runtime import end_with_parent, housekeeping, run, stop_on_signals, tune_gc
from jetstream.settings import Settings

_LOOK_S: Final = 0.05
_LIMITS: Final = Limits()
LIMITS: Final = replace(
    _LIMITS,
    # Segments of seconds: sealing, changing tables and erasing all the time.
    log=LogLimits(segment_events=100, tail_events=200, hot_tail_events=500, upkeep_interval_s=0.25),
    # One relay is out for seconds, and what it has lost comes from the other one.
    admission=AdmissionLimits(hold_s=15.0, held_per_repo=1_000),
    # Keys are replaced within seconds.
    keys=KeyLimits(refresh_min_s=0.0, announced_min_s=0.0),
    upstream=UpstreamLimits(backoff_first_s=0.05, backoff_max_s=0.5),
)
app = App()


class ShiftedClock:
    """The time in unix microseconds, with what a file adds to it. `monotonic` gives seconds."""

    def __init__(self, path: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._monotonic = monotonic
        # What the file said last, and when it is read again.
        self._ahead_us = 0
        self._look_at = 0.0

    def __call__(self) -> int:
        """Return the shifted time."""
        now = self._monotonic()
        if now >= self._look_at:
            self._look_at = now + _LOOK_S
            with suppress(OSError, ValueError):
                self._ahead_us = int(self._path.read_text())
        return unix_us() + self._ahead_us


@app.command
def serve(settings: Settings | None = None) -> None:
    """Run a server with the settings of `jetstream serve`."""
    end_with_parent()
    settings = settings or Settings()
    logging_setup.configure(settings.log_level, settings.log_format)
    path = os.environ.get("CLOCK_FILE")
    run(_serve(settings, ShiftedClock(Path(path)) if path else unix_us))


async def _serve(settings: Settings, clock: Callable[[], int]) -> None:
    tune_gc()
    service = Service(settings, LIMITS, clock=clock)
    stop_on_signals(service.stop)
    async with housekeeping(LIMITS.runtime):
        await service.run()


if __name__ == "__main__":
    app()
