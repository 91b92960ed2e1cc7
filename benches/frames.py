"""The frames that the benchmarks feed: a recording of the simulator, made once and kept in build/."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from jetstream.simulator import frames, recording
from jetstream.simulator.world import Population, SteadyClock, World

FILE: Final = Path(__file__).parent.parent / "build" / "benches" / "frames.bin.zst"
COUNT: Final = 20_000
# Few accounts with much each: their trees are as deep, and frames as long (5 kB), as those of real ones.
POPULATION: Final = Population(repos=40, records=8_000)
_START_US: Final = 1_780_000_000_000_000
_STEP_US: Final = 500


def recorded() -> Path:
    """Return the file, made first where it is not there yet: half a minute."""
    if not FILE.exists():
        print(f"benches: simulating {COUNT:,} frames into {FILE}", flush=True)
        FILE.parent.mkdir(parents=True, exist_ok=True)
        unfinished = FILE.with_suffix(".part")
        messages = World(POPULATION, 1, SteadyClock(_START_US, _STEP_US)).messages()
        with recording.writing(unfinished) as add:
            for seq in range(1, COUNT + 1):
                add(frames.encode(next(messages), seq))
        unfinished.rename(FILE)
    return FILE
