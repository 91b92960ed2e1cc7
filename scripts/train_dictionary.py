"""Make the zstd dictionary of this server, `src/jetstream/dictionary/own.zdict`, from simulated traffic.

    make dictionary                          make it again, with the ID that it has
    make dictionary ARGS="--id 20270131"     make it with a new ID

The simulator makes the same events each time, so the dictionary has the same bytes each time, with the same
version of libzstd. It holds nothing that a person wrote.

Clients keep a dictionary by its ID for ever. So the same ID must always mean the same bytes: once the
simulator, a renderer or this file has changed, the command asks for a new ID.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from itertools import islice
from typing import Annotated, Final

import zstandard
from cyclopts import App, Parameter

from jetstream.delivery.renderers import RENDERERS
from jetstream.dictionary.own import PATH
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.simulator import frames
from jetstream.simulator.world import Population, SteadyClock, World
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract

EVENTS: Final = 4_000  # more of them make it no better
BYTES: Final = 32 << 10  # 64 KiB compress simulated events 1 % better, and real ones no better
# What COVER, the algorithm, chooses: pieces of so many bytes, several messages, by how many of their runs of
# so many bytes are frequent. Short pieces are 10 % worse.
PIECE_BYTES: Final = 3_000
RUN_BYTES: Final = 8
START_US: Final = 1_782_864_000_000_000  # 2026-07-01
STEP_US: Final = 3_600_000_000  # an hour: dates and record keys of a year, of which none is favoured
SEED: Final = 1
LIBZSTD: Final = (1, 5, 7)  # what the packaged file was made with; another version may make other bytes

app = App(name="train_dictionary", help=__doc__)


def simulated() -> Iterator[Event]:
    """Yield the events of a simulated network, without end."""
    world = World(Population(did_web=0.01), SEED, SteadyClock(START_US, STEP_US))
    for seq, message in enumerate(world.messages(), 1):
        events, _ = extract(read_envelope(frames.encode(message, seq)), check_cid=False)
        yield from events


def spelled(events: int) -> list[bytes]:
    """Return so many events as messages of every wire, one after another."""
    some = list(islice(simulated(), events))
    batch = Batch.of(some, range(START_US, START_US + STEP_US * events, STEP_US))
    wires = [renderer.render(batch, range(events)) for renderer in RENDERERS.values()]
    return [message for messages in zip(*wires, strict=True) for message in messages if message]


def trained(dictionary_id: int, events: int = EVENTS, size: int = BYTES) -> bytes:
    """Return a dictionary for the messages of every wire, of at most `size` bytes."""
    samples: list[bytes | bytearray | memoryview] = [*spelled(events)]
    return zstandard.train_dictionary(
        size, samples, k=min(PIECE_BYTES, size), d=RUN_BYTES, dict_id=dictionary_id, level=1
    ).as_bytes()


def id_of(dictionary: bytes) -> int:
    """Return the ID of a dictionary, as its header has it (RFC 8878, section 5)."""
    return int.from_bytes(dictionary[4:8], "little")


@app.default
def main(
    *,
    id: Annotated[int, Parameter(help="A new ID: today's date, as 20261127. Default: the ID it has.")] = 0,  # noqa: A002
) -> None:
    """Make the file."""
    before = PATH.read_bytes() if PATH.exists() else b""
    data = trained(id or id_of(before))
    if before and data != before and id_of(data) == id_of(before):
        sys.exit(
            f"{PATH} would have other bytes with the same ID: give a new one with --id"
            f" (libzstd here: {'.'.join(map(str, zstandard.ZSTD_VERSION))})"
        )
    PATH.write_bytes(data)
    print(f"{PATH}: {len(data)} bytes, ID {id_of(data)}")  # noqa: T201 - the output


if __name__ == "__main__":
    app()
