"""Decode DAG-CBOR, as it should be and as lax producers write it.

`libipld` decodes what is canonical, in about a microsecond. It refuses what some real producers send:
unsorted keys, half floats. Such an object is decoded once more by `cbor2`, which is kept strict in everything
else: by itself it would make dates, compile patterns and expand references. A frame that libipld refuses is
read by `jetstream.upstream.lenient`.

    canonical, nearly all     decode       libipld
    lax                       decode_lax   cbor2, restricted to the data model
    damaged, or too large     cbor_scan    item by item

libipld returns CID links as plain `bytes`, like byte strings. `decode_lax` tells them apart.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, Final, NoReturn

import cbor2
from libipld import decode_dag_cbor, decode_dag_cbor_multi

from jetstream.atproto.cid import Cid

DEPTH_MAX: Final = 128  # levels of lists and maps in a record that is passed on
LINK_TAG: Final = 42  # the only tag of DAG-CBOR


class Unreadable(Exception):
    """These bytes are not what their format says: DAG-CBOR or a CAR."""


def decode(raw: bytes) -> Any:
    """Decode one object. Links are `bytes`, like byte strings. Raises Unreadable.

    If the object is not canonical, it is that of `decode_lax`, whose links are `Cid`, which is `bytes` as
    well.
    """
    try:
        return decode_dag_cbor(raw)
    except (ValueError, RecursionError):
        return decode_lax(raw)


def decode_pair(raw: bytes) -> tuple[Any, Any]:
    """Decode exactly two canonical objects that follow each other: a frame. Raises Unreadable."""
    try:
        objects = decode_dag_cbor_multi(raw)
    except (ValueError, RecursionError) as error:
        raise Unreadable(str(error)) from error
    if len(objects) != 2:
        raise Unreadable(f"{len(objects)} CBOR objects where a frame has two")
    return objects[0], objects[1]


def decode_lax(raw: bytes) -> Any:
    """Decode one object that need not be canonical. Links are `Cid`, byte strings `bytes`.

    Raises Unreadable for what is no DAG-CBOR all the same: bytes after the object, repeated keys, keys that
    are neither text nor bytes, indefinite lengths, every tag but 42, bad UTF-8, and nesting deeper than
    cbor2's 400.
    """
    stream = io.BytesIO(raw)
    decoder = cbor2.CBORDecoder(
        stream,
        semantic_decoders=_ONLY_LINKS,
        allow_indefinite=False,
        allow_duplicate_keys=False,
        strict_hashable_types=True,
    )
    try:
        value = decoder.decode()
    except (cbor2.CBORDecodeError, ValueError, RecursionError, MemoryError, OverflowError) as error:
        raise Unreadable(str(error)) from error
    if stream.tell() != len(raw):
        raise Unreadable(f"{len(raw) - stream.tell()} bytes after the CBOR object")
    return value


def depth(value: Any) -> int:
    """Return how deep maps and lists nest: 0 for a scalar, 1 for a map of scalars. Does not recurse."""
    deepest = 0
    level: list[Any] = [[value]]
    while level := [
        inner
        for outer in level
        for inner in (outer.values() if type(outer) is dict else outer)
        if type(inner) is dict or type(inner) is list
    ]:
        deepest += 1
    return deepest


def _link(value: object, _immutable: bool) -> Cid:
    """Return the CID of a link, for cbor2: what tag 42 stands before. Raises ValueError."""
    # In DAG-CBOR a zero byte stands before the CID: the multibase prefix of binary.
    if not isinstance(value, bytes) or not value.startswith(b"\0"):
        raise ValueError("tag 42 on what is no binary CID")
    return Cid(value[1:])


class _OnlyLinks(dict[int, Callable[[Any, bool], Any]]):
    """cbor2's decoder for each tag: none has one but links.

    By itself, cbor2 would make objects of many tags, such as dates, regular expressions and references.
    """

    def __missing__(self, tag: int) -> NoReturn:
        """Raise ValueError, which `decode_lax` turns into Unreadable."""
        raise ValueError(f"tag {tag}, which DAG-CBOR does not have")


_ONLY_LINKS: Final = _OnlyLinks({LINK_TAG: _link})
