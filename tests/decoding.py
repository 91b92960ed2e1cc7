"""One frame through the stages that decode it: what the tests of each of them compare."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from tests.builders import LIKE, Op, delete, like

from jetstream.delivery.renderers import RENDERERS
from jetstream.model.batch import Batch
from jetstream.model.event import SYNC, Event
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract

UNSORTED_HEADER = bytes.fromhex("a2626f700161746723636f6d6d6974")
OPS = [like(1), delete(f"{LIKE}/2"), Op("update", f"{LIKE}/3", {"$type": LIKE, "text": "<&>"})]


class Message(NamedTuple):
    """What one frame said: its envelope and what was extracted, in one value."""

    type: str
    seq: int | None = None
    events: Sequence[Event] = ()
    drops: Sequence[str] = ()
    name: str = ""
    text: str = ""


def decode(frame: bytes, *, check_cid: bool = True) -> Message:
    """Read the envelope of a frame, and extract its events."""
    envelope = read_envelope(frame)
    events, drops = extract(envelope, check_cid)
    assert not (events and envelope.seq is None)
    return Message(envelope.type, envelope.seq, events, drops, envelope.name, envelope.text)


def bodies(message: Message) -> list[Any]:
    return [json.loads(event.body) for event in message.events]


def rendered(message: Message) -> Iterator[dict[str, Any]]:
    """Spell the events in every wire that has them, and read them: they are JSON whatever they hold.

    Of the v2 wire, the payload is read.
    """
    batch = Batch.of(message.events, range(1, len(message.events) + 1))
    for renderer in RENDERERS.values():
        for text in filter(None, renderer.render(batch, range(len(batch)))):
            event = json.loads(text)
            yield event.get("payload", event)


def spellings(message: Message) -> int:
    """Return how many messages there are of its events in all wires: a sync is in one only."""
    return sum(1 if event.kind == SYNC else len(RENDERERS) for event in message.events)
