"""What a frame says, as far as it can be read: for frames that cannot be decoded whole, or must not be.

A decoder refuses a frame for one bad byte anywhere in it, and makes objects of all that is in it. This
reads the fields that we know and passes over the others, so that one bad field or op costs only itself,
and the `seq` of a frame is found whatever the rest of it is.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

from jetstream.atproto.cbor import LINK_TAG, Unreadable
from jetstream.upstream.walk import BYTES, LIST, MAP, NEGATIVE, SIMPLE, TAG, TEXT, UNSIGNED, Reader

# Heads that are read from the front of a frame that is too large to be decoded: its fields are dozens.
ITEMS_MAX: Final = 2_000
# What stands behind the `seq` of such a frame: ten short fields, and blocks of two megabytes.
_TAIL_BYTES_MAX: Final = 2_100_000
_TAIL_ITEMS_MAX: Final = 200
_TAIL_TRIES_MAX: Final = 16  # places that may be the `seq`; records may hold the same bytes
_SEQ_KEY: Final = b"\x63seq"

_HEADER_KEYS: Final = frozenset({b"op", b"t"})
_BODY_KEYS: Final = frozenset(
    b"seq repo did rev ops blocks time tooBig handle active status name message error".split()
)
_OP_KEYS: Final = frozenset({b"action", b"path", b"cid"})
_SIMPLE: Final = {0xF4: False, 0xF5: True, 0xF6: None}


DAMAGED: Final = object()  # a value that is there and cannot be read: bad UTF-8, a kind that no field has


class Skimmed(NamedTuple):
    """The known fields of a frame's two maps; `whole` if these are two maps and nothing after them."""

    header: dict[str, Any]
    body: dict[str, Any]
    whole: bool


def skim(frame: bytes, items_max: int = ITEMS_MAX) -> Skimmed:
    """Return the fields that are known, and pass over the others. Never raises.

    Of a repeated key the first counts. What cannot be read is `DAMAGED`. Reading stops after `items_max`
    items and where the bytes make no sense; a `seq` that lies behind that is looked for from the end.
    """
    reader = Reader(frame, items_max)
    header: dict[str, Any] = {}
    body: dict[str, Any] = {}
    try:
        _fill(header, reader, _HEADER_KEYS)
        _fill(body, reader, _BODY_KEYS)
        whole = reader.position == len(frame)
    except Unreadable:
        whole = False
    if not whole and "seq" not in body:
        body |= _tail(frame)
    return Skimmed(header, body, whole)


def _fill(fields: dict[str, Any], reader: Reader, keys: frozenset[bytes]) -> None:
    """Read a map into `fields`, as far as it goes."""
    kind, size = reader.head()
    if kind != MAP:
        raise Unreadable("not a map")
    for _ in range(size):
        _entry(fields, reader, keys)


def _entry(fields: dict[str, Any], reader: Reader, keys: frozenset[bytes]) -> bool:
    """Read one entry of a map; tell whether it repeats a known key, and is left out for that."""
    kind, size = reader.head()
    if kind != TEXT:
        reader.skip_rest(kind, size)
        reader.skip()
        return False
    key = reader.take(size)
    if key not in keys or (name := key.decode()) in fields:
        reader.skip()
        return key in keys
    fields[name] = _ops(reader) if name == "ops" else _value(reader)
    return False


def _value(reader: Reader) -> Any:
    """Read a scalar or a link; anything else is passed over."""
    first = reader.position
    kind, number = reader.head()
    if kind == UNSIGNED or kind == NEGATIVE:
        return -1 - number if kind else number
    if kind == BYTES:
        return reader.take(number)
    if kind == TEXT:
        return _text(reader.take(number))
    if kind == SIMPLE:
        return _SIMPLE.get(reader.raw[first], DAMAGED)
    if kind == TAG and number == LINK_TAG:
        return _link(reader)
    reader.skip_rest(kind, number)
    return DAMAGED


def _text(raw: bytes) -> Any:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return DAMAGED


def _link(reader: Reader) -> Any:
    cid = _value(reader)
    return cid[1:] if type(cid) is bytes and cid.startswith(b"\0") else DAMAGED


def _ops(reader: Reader) -> Any:
    kind, size = reader.head()
    if kind != LIST:
        reader.skip_rest(kind, size)
        return DAMAGED
    return [_op(reader) for _ in range(size)]


def _op(reader: Reader) -> Any:
    """Read an op. One that repeats a field, or has one that cannot be read, is damaged."""
    kind, size = reader.head()
    if kind != MAP:
        reader.skip_rest(kind, size)
        return None
    op: dict[str, Any] = {}
    repeats = sum([_entry(op, reader, _OP_KEYS) for _ in range(size)])
    return DAMAGED if repeats or DAMAGED in op.values() else op


def _tail(frame: bytes) -> dict[str, Any]:
    """Return the fields from `seq` on, if entries of a map stand there up to the end of the frame.

    Of several places that might be it the first counts: what follows it, in the blocks, is an account's to
    write.
    """
    fields: dict[str, Any] = {}
    start = max(0, len(frame) - _TAIL_BYTES_MAX)
    place = len(frame)
    for _ in range(_TAIL_TRIES_MAX):
        place = frame.rfind(_SEQ_KEY, start, place)
        if place < 0:
            break
        found = _entries_to_end(frame, place)
        fields = found if type(found.get("seq")) is int else fields
    return fields


def _entries_to_end(frame: bytes, place: int) -> dict[str, Any]:
    """Return what the entries at a place say; nothing if it is no place of entries."""
    reader = Reader(frame, _TAIL_ITEMS_MAX, place)
    fields: dict[str, Any] = {}
    try:
        while reader.position < len(frame):
            if frame[reader.position] >> 5 != TEXT:
                return {}
            _entry(fields, reader, _BODY_KEYS)
    except Unreadable:
        return {}
    return fields
