"""The time in unix microseconds, and a clock that does not follow every step of the wall clock.

    wall      the machine's clock; it may be set at any moment, also to a wrong time
    elapsed   time since boot, suspension included; it is never set
    offset    wall - elapsed; constant except for drift, until the wall clock is set

Events are stamped with the time, and a stamp never falls. So a step ahead that is a mistake would have
lasting effects: all later stamps would be in the future. `SteadyClock` returns `elapsed` plus the newest
offset that it trusts.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

# A larger difference is a step and no drift. NTP by itself steps a clock only within seconds of the right
# time.
STEP_US: Final = 60_000_000
# CLOCK_MONOTONIC of Linux stops while the machine is suspended, and the offset would then jump on each
# resume. Other systems do not have CLOCK_BOOTTIME.
_ELAPSED: Final = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)
# A UUID that Linux makes at each boot (random(4)).
_BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def unix_us() -> int:
    """Return the time in unix microseconds, as the wall clock has it. It may step at any moment."""
    return time.time_ns() // 1000


def elapsed_us() -> int:
    """Return the microseconds since boot, suspension included."""
    return time.clock_gettime_ns(_ELAPSED) // 1000


def boot_id(path: Path = _BOOT_ID) -> str:
    """Return an identifier of this boot of the machine; `unknown` where the system has none.

    A log stores it beside the clock's offset: `elapsed` of another boot has another origin, and an
    offset of it means nothing.
    """
    try:
        return path.read_text().strip()
    except OSError:
        return "unknown"


class SteadyClock:
    """The wall clock without steps ahead that do not last.

    A step ahead of more than `STEP_US` is ignored until it has lasted for `settle_us`: meanwhile the time
    runs on from before it. Smaller differences from the trusted offset are followed at once, and so is every
    step back. A step back that is undone within `settle_us` does not count as a step ahead.

    `wall` and `elapsed` return microseconds. A step that begins and ends between two calls goes unnoticed.
    """

    def __init__(
        self,
        settle_us: int,
        wall: Callable[[], int] = unix_us,
        elapsed: Callable[[], int] = elapsed_us,
    ) -> None:
        # How far the wall clock is ahead of the returned time while a step is ignored, else 0. Set by each
        # call.
        self.ignored_us = 0
        # From `--clock-settle`: how long a step ahead must last before it is followed.
        self._settle_us = settle_us
        self._wall = wall
        self._elapsed = elapsed
        self._trust(wall() - elapsed(), elapsed())

    def resume(self, offset_us: int) -> None:
        """Trust the offset that an earlier process trusted last, in the same boot.

        So a restart does not adopt a step ahead that has not lasted for `settle_us` yet. Called once,
        when the log is open, before the first event is stamped.
        """
        self._trust(offset_us, self._elapsed())

    def _trust(self, offset: int, elapsed: int) -> None:
        """Trust an offset from now on, without a history of steps."""
        # The offset that has lasted, and the one that the last call used.
        self._trusted = self._used = offset
        # The offset that was trusted before a step back, and until when, in microseconds of `elapsed`,
        # the wall clock may return to it.
        self._former, self._former_until = offset, elapsed
        self._observe(offset, elapsed)

    def _observe(self, offset: int, elapsed: int) -> None:
        """Begin to measure how long the offset has been at least this high."""
        # The lowest offset since a moment: once `settle_us` have passed, so much of a step has lasted.
        self._lowest, self._since = offset, elapsed

    def __call__(self) -> int:
        """Return the time in unix microseconds.

        It falls with a step back of the wall clock: what must not fall is the stamp of events, which
        `ingest.Stamper` keeps above the tip.
        """
        elapsed = self._elapsed()
        offset = self._wall() - elapsed
        self._used = self._follow(offset, elapsed)
        self.ignored_us = max(0, offset - self._used)
        return elapsed + self._used

    def _follow(self, offset: int, elapsed: int) -> int:
        """Return the offset to use: this one, or the last one while this is ignored."""
        if offset <= self._trusted:
            self._step_back(offset, elapsed)
            return offset
        limit = self._limit(elapsed)
        # A step ahead begins: `_lowest` must not have a value from before it.
        if offset > limit and not self.ignored_us:
            self._observe(offset, elapsed)
        self._lowest = min(self._lowest, offset)
        # For `settle_us` the offset was at least `_lowest`: that much of it has lasted. What is above it
        # may be a second step, which is observed from now on.
        if elapsed - self._since >= self._settle_us:
            self._trusted = self._lowest
            self._observe(offset, elapsed)
            limit = self._limit(elapsed)
        return offset if offset <= limit else self._used

    def _step_back(self, offset: int, elapsed: int) -> None:
        """Follow a lower offset at once, and remember the one before it if that was more than drift.

        Without that, setting the wall clock right again would be a step ahead, and be ignored for
        `settle_us`.
        """
        if offset < self._trusted - STEP_US and elapsed >= self._former_until:
            self._former, self._former_until = self._trusted, elapsed + self._settle_us
        self._trusted = offset
        self._observe(offset, elapsed)

    def _limit(self, elapsed: int) -> int:
        """Return the highest offset that is no step ahead."""
        former = self._former if elapsed < self._former_until else self._trusted
        return max(self._trusted, former) + STEP_US


def clock_reason(tip_us: int, now_us: int, ignored_us: int, settle_s: float) -> str | None:
    """Return a sentence about what is wrong with the clock, or with the tip compared to it; None: nothing.

    `ignored_us` is `SteadyClock.ignored_us`, `settle_s` the setting `--clock-settle`.
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
    """Return a time as an ISO 8601 date; beyond the year 9999 as a number."""
    try:
        return datetime.fromtimestamp(time_us / 1e6, UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return str(time_us)


def _seconds(us: int) -> str:
    """Return microseconds as whole seconds for people, with commas: `86,400 s`."""
    return f"{us / 1e6:,.0f} s"
