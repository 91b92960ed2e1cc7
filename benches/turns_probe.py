"""`jetstream` with a probe that measures the CPU time of each turn of its event loop, for `make attack`.

    python -m benches.turns_probe FILE serve …      (the rest as for `jetstream`)

A timer fires every millisecond and reads the CPU clock of the loop's thread. The CPU time between two of its
calls is that of the turns between them, so a turn of 20 ms shows as at least 20 ms. Time in which the thread
waits for a core does not count. A second thread records the stack of a turn that takes long. FILE is written
every half second: a JSON object with the number of `turns` over the limit, `max_ms`, and the `worst` ones.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any, Final

from jetstream import cli
from jetstream import runtime as running

TICK_S: Final = 0.001
LONG_S: Final = 0.020
POLL_S: Final = 0.005  # between two looks of the second thread
WRITE_EVERY_S: Final = 0.5
WORST_MAX: Final = 10
STACK_FRAMES: Final = 5


class Probe:
    """The timer and the thread. Measuring starts over when FILE has been removed."""

    def __init__(self, loop: asyncio.AbstractEventLoop, file: Path) -> None:
        self._loop = loop
        self._file = file
        self._main = threading.get_ident()
        self._clock = time.pthread_getcpuclockid(self._main)
        self._last = time.thread_time()  # CPU time at the last tick
        self._seen = ""  # the deepest stack that the thread has recorded in this turn
        self._depth = 0  # of that stack
        self._next_write = 0.0
        self._turns = 0
        self._max_s = 0.0
        self._worst: list[tuple[float, str]] = []
        threading.Thread(target=self._watch, daemon=True).start()
        self._tick()

    def _tick(self) -> None:
        now = time.thread_time()
        took, self._last = now - self._last, now
        self._max_s = max(self._max_s, took)
        if took > LONG_S:
            self._note(took)
        self._seen, self._depth = "", 0
        if time.monotonic() >= self._next_write:
            self._write()
        self._last = time.thread_time()  # without what writing cost
        self._loop.call_later(TICK_S, self._tick)

    def _note(self, took: float) -> None:
        self._turns += 1
        self._worst = sorted([*self._worst, (took, self._seen)], reverse=True)[:WORST_MAX]

    def _write(self) -> None:
        if not self._file.exists():
            self._turns, self._max_s, self._worst = 0, 0.0, []
        facts: dict[str, Any] = {"turns": self._turns, "max_ms": self._max_s * 1000}
        facts["worst"] = [{"ms": took * 1000, "stack": stack} for took, stack in self._worst]
        unfinished = self._file.with_suffix(".part")
        unfinished.write_text(json.dumps(facts))
        unfinished.rename(self._file)
        self._next_write = time.monotonic() + WRITE_EVERY_S

    def _watch(self) -> None:
        while True:
            time.sleep(POLL_S)
            if time.clock_gettime(self._clock) - self._last > LONG_S / 2:
                frame = sys._current_frames().get(self._main)  # noqa: SLF001 - the way to see another thread
                if frame is not None:
                    self._see(traceback.extract_stack(frame))

    def _see(self, stack: traceback.StackSummary) -> None:
        """Keep the deepest stack of this turn: between two callbacks there is only that of the event loop."""
        if len(stack) >= self._depth:
            self._depth = len(stack)
            shown = stack[: -STACK_FRAMES - 1 : -1]
            self._seen = " < ".join(f"{one.name} {Path(one.filename).name}:{one.lineno}" for one in shown)


def main(file: str, arguments: list[str]) -> None:
    """Run `jetstream` with a probe in its event loop."""

    def probed(coroutine: Any) -> None:
        async def with_probe() -> None:
            Probe(asyncio.get_running_loop(), Path(file))
            await coroutine

        running.run(with_probe())

    vars(cli)["run"] = probed  # what `serve` calls
    cli.main(arguments)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:])
