"""An event as the bytes of a WebSocket message: bytes concatenation around the record's JSON.

A wire is a way to spell events (`wire.md`). Server frames are not masked (RFC 6455, section 5.1), so the
frame of an event is the same bytes for every subscriber of its wire, and is made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from struct import pack
from typing import Final

from jetstream.model.batch import Batch
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE

# RFC 6455, section 5.2: FIN and opcode text, then the length in 7 bits, or 126 and 16, or 127 and 64.
_TEXT: Final = 0x81
_CLOSE: Final = 0x88
_SHORT_MAX: Final = 125
_MEDIUM_MAX: Final = 0xFFFF
PING: Final = b"\x89\x00"
_REASON_BYTES_MAX: Final = 123  # a control frame holds 125, two of them the code (RFC 6455, section 5.5)


def head(size: int) -> bytes:
    """Return the head of a whole text message of `size` bytes."""
    if size <= _SHORT_MAX:
        return bytes((_TEXT, size))
    if size <= _MEDIUM_MAX:
        return pack(">BBH", _TEXT, 126, size)
    return pack(">BBQ", _TEXT, 127, size)


def close_frame(code: int, reason: str) -> bytes:
    """Return a close frame; of a long reason, what fits."""
    text = reason.encode()[:_REASON_BYTES_MAX].decode(errors="ignore").encode()
    return pack(">BBH", _CLOSE, 2 + len(text), code) + text


def message_bytes(frame_bytes: int) -> int:
    """Return the length of the message in a frame of `frame_bytes`: the frame without its head."""
    if frame_bytes <= _SHORT_MAX + 2:
        return frame_bytes - 2
    return frame_bytes - (4 if frame_bytes <= _MEDIUM_MAX + 4 else 10)


def fitting(frames: list[bytes], message_bytes_max: int) -> list[bytes]:
    """Return the frames whose message is not longer than `message_bytes_max`; 0 is no limit."""
    if not message_bytes_max:
        return frames
    return [frame for frame in frames if message_bytes(len(frame)) <= message_bytes_max]


# Nearly every event is shorter than this: for them the head is looked up, not made.
_HEADS: Final = [head(size) for size in range(4096)]


class Wire:
    """One spelling of events.

    `templates` has a template for each kind of event. Each takes the same seven values in the same order:
    did, time, rev, collection, rkey, body, cid. (`%.0b` takes a value and writes nothing: one tuple for all
    kinds is three times as fast as a mapping.)
    """

    def __init__(self, name: str, templates: dict[bytes, bytes]) -> None:
        self.name = name
        self._templates = templates

    def __repr__(self) -> str:
        return f"<Wire {self.name}>"

    def message(self, batch: Batch, index: int) -> bytes:
        """Return one event as JSON."""
        return self._templates[batch.kinds[index]] % (
            batch.dids[index],
            batch.times[index],
            batch.revs[index],
            batch.collections[index],
            batch.rkeys[index],
            batch.bodies[index],
            batch.cids[index],
        )

    def frames(self, batch: Batch, stop: int) -> list[bytes]:
        """Return the frames of at least `batch[:stop]`; they stay with the batch, for the next who asks."""
        frames = batch.frames.get(self.name)
        if frames is None:
            frames = batch.frames[self.name] = []
        if len(frames) < stop:
            frames += self._frames(self._messages(batch, len(frames), stop))
        return frames

    def some_frames(self, batch: Batch, indices: Sequence[int]) -> list[bytes]:
        """Return the frames of a few events of a batch; what the others would cost is not spent."""
        made = batch.frames.get(self.name, ())
        if indices[-1] < len(made):
            return [made[i] for i in indices]
        return self._frames([self.message(batch, i) for i in indices])

    def _frames(self, messages: list[bytes]) -> list[bytes]:
        heads, known = _HEADS, len(_HEADS)
        return [(heads[n] if (n := len(message)) < known else head(n)) + message for message in messages]

    def _messages(self, batch: Batch, start: int, stop: int) -> list[bytes]:
        templates = self._templates
        return [
            templates[kind] % (did, time, rev, collection, rkey, body, cid)
            for time, kind, did, collection, rkey, rev, cid, body in zip(
                batch.times[start:stop],
                batch.kinds[start:stop],
                batch.dids[start:stop],
                batch.collections[start:stop],
                batch.rkeys[start:stop],
                batch.revs[start:stop],
                batch.cids[start:stop],
                batch.bodies[start:stop],
                strict=True,
            )
        ]


_START: Final = b'{"did":"%b","time_us":%d,'
_PATH: Final = b'"collection":"%b","rkey":"%b"'
_NO_PATH: Final = b"%.0b%.0b%.0b"
_RECORD: Final = b',"record":%b'
_NO_RECORD: Final = b"%.0b"
_CID: Final = b',"cid":"%b"'
_NO_CID: Final = b"%.0b"
_END: Final = b"}}"


def _classic(action: bytes) -> bytes:
    return _START + b'"type":"com","commit":{"rev":"%b","type":"' + action + b'",' + _PATH


def _v1(operation: bytes) -> bytes:
    return _START + b'"kind":"commit","commit":{"rev":"%b","operation":"' + operation + b'",' + _PATH


def _about(key: bytes, kind: bytes, name: bytes) -> bytes:
    return _START + b'"%b":"%b",' % (key, kind) + _NO_PATH + b'"' + name + b'":%b}' + _NO_CID


CLASSIC: Final = Wire(
    "classic",
    {
        CREATE: _classic(b"c") + _RECORD + _NO_CID + _END,
        UPDATE: _classic(b"u") + _RECORD + _NO_CID + _END,
        DELETE: _classic(b"d") + _NO_RECORD + _NO_CID + _END,
        IDENTITY: _about(b"type", b"id", b"identity"),
        ACCOUNT: _about(b"type", b"acc", b"account"),
    },
)
V1: Final = Wire(
    "v1",
    {
        CREATE: _v1(b"create") + _RECORD + _CID + _END,
        UPDATE: _v1(b"update") + _RECORD + _CID + _END,
        DELETE: _v1(b"delete") + _NO_RECORD + _NO_CID + _END,
        IDENTITY: _about(b"kind", b"identity", b"identity"),
        ACCOUNT: _about(b"kind", b"account", b"account"),
    },
)
WIRES: Final = {wire.name: wire for wire in (CLASSIC, V1)}
