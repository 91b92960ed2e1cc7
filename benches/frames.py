"""The frames that the relay sends: a recording of the simulator, made once and kept in build/."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Final

from jetstream.simulator import frames, recording
from jetstream.simulator.world import Population, SteadyClock, World

DIRECTORY: Final = Path(__file__).parent.parent / "build" / "benches"
FILE: Final = DIRECTORY / "frames.bin.zst"
COUNT: Final = 20_000
# Few accounts with many records each, so that trees are as deep and frames as long (5 kB) as real ones.
POPULATION: Final = Population(repos=40, records=8_000, did_web=0.01)
START_US: Final = 1_780_000_000_000_000
_STEP_US: Final = 500


def recorded() -> Path:
    """Return the recording. Make it first if there is none, in half a minute."""
    return kept(FILE, islice(simulated(POPULATION, _STEP_US), COUNT))


def simulated(population: Population, step_us: int) -> Iterator[bytes]:
    """Yield the frames of a new world, without end. It is made when the first frame is requested."""
    world = World(population, 1, SteadyClock(START_US, step_us))
    for seq, message in enumerate(world.messages(), 1):
        yield frames.encode(message, seq)


def kept(file: Path, made: Iterable[bytes]) -> Path:
    """Return a recording. Make it first of these frames if there is none."""
    if not file.exists():
        print(f"benches: simulating into {file}", flush=True)
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_suffix(".part")
        with recording.writing(unfinished) as add:
            for frame in made:
                add(frame)
        unfinished.rename(file)
    return file
