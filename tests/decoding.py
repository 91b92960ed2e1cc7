"""One frame through the stages that decode it: what the tests of each of them compare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from jetstream.model.event import Event
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract


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
