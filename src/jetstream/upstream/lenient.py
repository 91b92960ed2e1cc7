"""Read the known fields of a frame that a decoder refuses, or that is too large to decode.

A decoder refuses a frame for one bad byte anywhere in it, and makes objects of all that is in it. This reader
takes only the fields that the envelope needs and skips the others. So one bad field or op costs only itself,
and the `seq` of a frame is found whatever else it holds.

What it returns is of the types that a decoder returns, with links as plain `bytes`; what it cannot read is
`DAMAGED`. A frame that it has read to its end is used like any other. Of any other, the `seq` counts, and
the frame is dropped.

The work is bounded twice. From the front, at most `items_max` items are read. If the `seq` is not among them,
it is searched for from the end, in what can be the last fields of a body.
"""

from __future__ import annotations

from typing import Any, Final

from jetstream.atproto.cbor import LINK_TAG, Unreadable
from jetstream.atproto.cbor_scan import BYTES, LIST, MAP, NEGATIVE, SIMPLE, TAG, TEXT, UNSIGNED, Scanner

# Items that are read from the front of a frame that is too large to decode. Its own fields are a few dozen.
ITEMS_MAX: Final = 2_000
# What may follow the `seq` of such a frame: ten short fields, and two megabytes of blocks.
_TAIL_BYTES_MAX: Final = 2_100_000
_TAIL_ITEMS_MAX: Final = 200
_TAIL_TRIES_MAX: Final = 16  # places that may be the `seq`; records may hold the same bytes
_SEQ_KEY: Final = b"\x63seq"

# The keys that are read, of the header, of the body of any type, and of an op. All others are skipped.
_HEADER_KEYS: Final = frozenset({b"op", b"t"})
_BODY_KEYS: Final = frozenset(
    b"seq repo did rev since prevData commit ops blocks time tooBig".split()
    + b"handle active status name message error".split()
)
_OP_KEYS: Final = frozenset({b"action", b"path", b"cid"})
# The simple values of DAG-CBOR, by their one byte.
_SIMPLE: Final = {0xF4: False, 0xF5: True, 0xF6: None}


class _Damaged:
    """The class of `DAMAGED`, which is the same object in every process that it is sent to."""

    def __reduce__(self) -> str:
        """Return the name under which pickle finds the object, so that `is DAMAGED` holds in any process."""
        return "DAMAGED"


# A value that is there and cannot be read: text that is not UTF-8, or a type that no known field has.
DAMAGED: Final = _Damaged()


def read_lenient(frame: bytes, items_max: int = ITEMS_MAX) -> tuple[dict[str, Any], dict[str, Any], bool]:
    """Return the known fields of a frame's header and of its body. Never raises.

    The third value tells whether the frame is two maps and nothing more, each read to its end. Of a repeated
    key the first counts. What cannot be read is `DAMAGED`. Reading stops after `items_max` items and where
    the bytes make no sense. A `seq` that lies behind that point is searched for from the end.
    """
    scanner = Scanner(frame, items_max)
    header: dict[str, Any] = {}
    body: dict[str, Any] = {}
    try:
        _read_map(header, scanner, _HEADER_KEYS)
        _read_map(body, scanner, _BODY_KEYS)
        complete = scanner.position == len(frame)
    except Unreadable:
        complete = False
    if not complete and "seq" not in body:
        body |= _fields_at_end(frame)
    return header, body, complete


def _read_map(fields: dict[str, Any], scanner: Scanner, keys: frozenset[bytes]) -> None:
    """Read a map into `fields`, as far as it goes. Raises Unreadable where it cannot go on.

    `fields` is filled in place, so what was read before that stays.
    """
    kind, size = scanner.head()
    if kind != MAP:
        raise Unreadable("not a map")
    for _ in range(size):
        _read_entry(fields, scanner, keys)


def _read_entry(fields: dict[str, Any], scanner: Scanner, keys: frozenset[bytes]) -> bool:
    """Read one entry of a map; return whether it repeats a known key, and is left out for that.

    Raises Unreadable where the bytes make no sense or the items are too many, as all of these functions
    do.
    """
    kind, size = scanner.head()
    if kind != TEXT:
        scanner.skip_rest(kind, size)
        scanner.skip()
        return False
    key = scanner.take(size)
    if key not in keys or (name := key.decode()) in fields:
        scanner.skip()
        return key in keys
    fields[name] = _ops(scanner) if name == "ops" else _value(scanner)
    return False


def _value(scanner: Scanner) -> Any:
    """Read a scalar or a link; skip anything else, which is `DAMAGED`."""
    first = scanner.position
    kind, number = scanner.head()
    if kind == UNSIGNED or kind == NEGATIVE:
        return -1 - number if kind else number
    if kind == BYTES:
        return scanner.take(number)
    if kind == TEXT:
        return _text(scanner.take(number))
    if kind == SIMPLE:
        return _SIMPLE.get(scanner.raw[first], DAMAGED)
    if kind == TAG and number == LINK_TAG:
        return _link(scanner)
    scanner.skip_rest(kind, number)
    return DAMAGED


def _text(raw: bytes) -> Any:
    """Decode UTF-8; return `DAMAGED` for anything else."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return DAMAGED


def _link(scanner: Scanner) -> Any:
    """Read what tag 42 stands before: a zero byte, and the CID."""
    cid = _value(scanner)
    return cid[1:] if type(cid) is bytes and cid.startswith(b"\0") else DAMAGED


def _ops(scanner: Scanner) -> Any:
    """Read a list of ops, each by itself: a bad one costs no other. Anything but a list is `DAMAGED`."""
    kind, size = scanner.head()
    if kind != LIST:
        scanner.skip_rest(kind, size)
        return DAMAGED
    return [_op(scanner) for _ in range(size)]


def _op(scanner: Scanner) -> Any:
    """Read an op; None: it is no map. One with a repeated field, or an unreadable one, is `DAMAGED`."""
    kind, size = scanner.head()
    if kind != MAP:
        scanner.skip_rest(kind, size)
        return None
    op: dict[str, Any] = {}
    repeats = sum([_read_entry(op, scanner, _OP_KEYS) for _ in range(size)])
    return DAMAGED if repeats or DAMAGED in op.values() else op


def _fields_at_end(frame: bytes) -> dict[str, Any]:
    """Return the fields from `seq` on, if entries of a map stand there up to the end of the frame.

    Of several places that may be it, the first counts, because an account can write what follows it, in
    the blocks. They are tried from the last to the first, `_TAIL_TRIES_MAX` at most.
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
    """Return the entries from a place to the end; nothing if anything else stands there."""
    scanner = Scanner(frame, _TAIL_ITEMS_MAX, place)
    fields: dict[str, Any] = {}
    try:
        while scanner.position < len(frame):
            if frame[scanner.position] >> 5 != TEXT:
                return {}
            _read_entry(fields, scanner, _BODY_KEYS)
    except Unreadable:
        return {}
    return fields
