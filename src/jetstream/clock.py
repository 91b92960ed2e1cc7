"""The time: the clock on the wall in the unit of a position, and a clock that does not follow its leaps.

    wall    what the machine believes: may be set, wrongly too, at any moment
    elapsed since boot, suspension included: never set
    offset  wall - elapsed: stays as it is, but for drift, until somebody sets the wall clock

`SteadyClock` gives `elapsed` plus the newest offset that it trusts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

# A difference that is larger is a step, and no drift: NTP steps a clock by itself only within seconds of the
# truth.
STEP_US: Final = 60_000_000
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def unix_us() -> int:
    """Return the time in unix microseconds."""
    return time.time_ns() // 1000


def elapsed_us() -> int:
    """Return the microseconds since boot, those in which the machine was suspended included."""
    return time.clock_gettime_ns(_ELAPSED) // 1000


def boot_id(path: Path = _BOOT_ID) -> str:
    """Return which boot of the machine this is; `unknown` where the system does not say."""
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"


class SteadyClock:
    """The wall clock, but for steps ahead that do not last.

    A step ahead of more than `STEP_US` is ignored until it has lasted for `settle_us`; meanwhile the time
    goes on as it did. All that lies within a minute of the trusted offset is followed at once, and so is each
    step back. A step back that is undone within `settle_us` is no step ahead.

    `wall` and `elapsed` give microseconds. A step that begins and ends between two calls is not seen.
    """

    def __init__(
        self,
        settle_us: int,
        wall: Callable[[], int] = unix_us,
        elapsed: Callable[[], int] = elapsed_us,
    ) -> None:
        self._settle_us = settle_us
        self._wall = wall
        self._elapsed = elapsed
        # By how far the wall clock is ahead of the time given, while a step is ignored; else 0.
        self.ignored_us = 0
        self._trust(wall() - elapsed(), elapsed())

    def resume(self, offset_us: int) -> None:
        """Trust the offset that an earlier process of the same boot trusted last."""
        self._trust(offset_us, self._elapsed())

    def _trust(self, offset: int, elapsed: int) -> None:
        self._trusted = self._given = offset  # has lasted; what the last call answered with
        self._former, self._former_until = (
            offset,
            elapsed,
        )  # trusted before a step back, and until when it may return
        self._observe(offset, elapsed)

    def _observe(self, offset: int, elapsed: int) -> None:
        self._lowest, self._since = offset, elapsed  # the lowest offset seen since then: so much has lasted

    def __call__(self) -> int:
        """Return the time in unix microseconds."""
        elapsed = self._elapsed()
        offset = self._wall() - elapsed
        self._given = self._followed(offset, elapsed)
        self.ignored_us = max(0, offset - self._given)
        return elapsed + self._given

    def _followed(self, offset: int, elapsed: int) -> int:
        """Return the offset to answer with, which is the one given or the last one."""
        if offset <= self._trusted:
            self._step_back(offset, elapsed)
            return offset
        if offset > self._limit(elapsed) and not self.ignored_us:
            self._observe(offset, elapsed)
        self._lowest = min(self._lowest, offset)
        if elapsed - self._since >= self._settle_us:
            self._trusted = self._lowest
            self._observe(offset, elapsed)
        return offset if offset <= self._limit(elapsed) else self._given

    def _step_back(self, offset: int, elapsed: int) -> None:
        if offset < self._trusted - STEP_US and elapsed >= self._former_until:
            self._former, self._former_until = self._trusted, elapsed + self._settle_us
        self._trusted = offset
        self._observe(offset, elapsed)

    def _limit(self, elapsed: int) -> int:
        """Return the highest offset that is followed at once."""
        former = self._former if elapsed < self._former_until else self._trusted
        return max(self._trusted, former) + STEP_US


def clock_reason(tip_us: int, now_us: int, ignored_us: int, settle_s: float) -> str | None:
    """Say in a sentence what is wrong with the clock, or with the newest position by it; None: nothing.

    `ignored_us` is `SteadyClock.ignored_us`.
    """
    if ignored_us:
        return (
            f"the clock has stepped ahead by {_seconds(ignored_us)}: this is ignored until it has lasted for"
            f" {settle_s:g} s (--clock-settle); set the clock right"
        )
    if tip_us - now_us > STEP_US:
        return (
            f"the newest event, of {iso(tip_us)}, is {_seconds(tip_us - now_us)} ahead of the clock:"
            f" a cursor by the clock replays too much until the clock has caught up; set the clock right"
            f" if it is wrong, else stop the server and run `jetstream log rebase-time`"
        )
    return None


def iso(time_us: int) -> str:
    """Return a time as a date that a person can read; as a number beyond the year 9999."""
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return str(time_us)


def _seconds(us: int) -> str:
    return f"{us / 1e6:,.0f} s"
