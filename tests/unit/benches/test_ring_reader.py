"""What the relay of the benchmarks sends, as the server's own code decodes and renders it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from itertools import islice

import pytest
from benches.frames import simulated
from benches.ring import Ring
from benches.ring_reader import RingReader
from tests.decoding import decode

from jetstream.bench import stream
from jetstream.delivery.renderers import RENDERERS
from jetstream.model.batch import Batch
from jetstream.simulator.world import Population

NOW_US = 1_790_000_000_123_456


@cache
def ring() -> Ring:
    return Ring(islice(simulated(Population(), 500), 100), repos=7)


@cache
def messages() -> list[bytes]:
    """Return what a subscriber receives when the ring is sent once."""
    spans, _ = ring().write(0, len(ring()), NOW_US)
    frames, _ = stream.frames(b"".join(ring().data[start:stop] for start, stop in spans))
    events = [event for frame in frames for event in decode(frame.payload).events]
    batch = Batch.of(events, range(NOW_US, NOW_US + len(events)))
    return list(filter(None, RENDERERS["classic"].render(batch, range(len(batch)))))


def later(message: bytes) -> bytes:
    """Return a message with a position above those of all others."""
    time_us = json.loads(message)["time_us"]
    return message.replace(b"%d" % time_us, b"%d" % (time_us + 1_000_000))


def received(texts: Iterable[bytes]) -> RingReader:
    reader = RingReader(ring().accounts_of_events())
    for text in texts:
        reader.take(stream.Frame(stream.TEXT, text, 0), NOW_US)
    return reader


def test_all_that_was_sent_is_good() -> None:
    reader = received(messages())
    assert (reader.good, reader.wrong) == (len(messages()), 0)
    assert len(messages()) > 50


@pytest.mark.parametrize(
    "change",
    [
        lambda texts: texts[:20] + texts[21:],
        lambda texts: texts[:20] + texts[19:],
        lambda texts: [*texts[:20], later(texts[19]), *map(later, texts[20:])],
        lambda texts: [*texts[:19], texts[20], texts[19], *texts[21:]],
        lambda texts: [*texts, texts[-1]],
    ],
    ids=["lost", "repeated", "repeated later", "swapped", "repeated at the end"],
)
def test_what_is_lost_repeated_or_swapped_is_wrong(change: Callable[[list[bytes]], list[bytes]]) -> None:
    assert received(change(messages())).wrong
