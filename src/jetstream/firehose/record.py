"""A record's DAG-CBOR as JSON (`wire.md`, "Records as JSON").

Links become `{"$link"}`, byte strings `{"$bytes"}`, keys are sorted by their UTF-8 bytes, whole floats
become integers. The fast way is libipld and orjson, 0.8 µs for a like; libipld gives links and byte
strings alike as `bytes`, and the raw record tells which is which. Whatever is not plain goes the exact
way, over `cbor.decode_lax`.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable
from itertools import count
from typing import Any, Final

import orjson
from libipld import decode_dag_cbor, encode_cid

from jetstream.firehose.car import CID_BYTES
from jetstream.firehose.cbor import DEPTH_MAX, Link, Unreadable, decode_lax, depth

RECORD_BYTES_MAX: Final = 1 << 20  # of CBOR; the reference relay's limit
# What stands before the 36 bytes of a CID in a canonical link: tag 42, and 37 bytes of which the first is 0.
_LINK_HEAD: Final = b"\xd8\x2a\x58\x25\0"
# Floats of 32 and 64 bits, as numbers: membership is then a memchr, and ten times as fast.
_FLOAT32: Final = 0xFA
_FLOAT64: Final = 0xFB
# Each byte string is looked for in the whole record, so many of them in a long one go the exact way.
_SEARCHES_MAX: Final = 64
# Each level costs a text two characters at least, so a shorter one need not be looked at.
_DEEP_TEXT_BYTES_MIN: Final = 2 * (DEPTH_MAX + 1)


class Refused(Exception):
    """This record cannot be passed on; `reason` is a label for the metrics."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


def to_json(raw: bytes) -> bytes:
    """Return the JSON text of one record.

    Raises Refused with reason `record_size` (over 1 MiB), `record_cbor` (not DAG-CBOR), `record_type` (not
    a map), `record_depth` (nested deeper than 128) or `record_float` (a float that is not whole).
    """
    if len(raw) > RECORD_BYTES_MAX:
        raise Refused("record_size")
    try:
        record = decode_dag_cbor(raw)
    except ValueError:
        return _to_json_exactly(raw)
    except RecursionError as error:
        raise Refused("record_depth") from error
    if type(record) is not dict:
        raise Refused("record_type")
    if _FLOAT32 in raw or _FLOAT64 in raw:
        # One record in ninety has such a byte somewhere, in a hash as a rule: then, and only then, look.
        _require_depth(record)
        record = _whole(record)
    try:
        text = orjson.dumps(record, default=_bytes_hook(raw), option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson: integers past 64 bits, its own depth limit, a doubt of the hook
        _require_depth(record)
        return _to_json_exactly(raw)
    if len(text) >= _DEEP_TEXT_BYTES_MIN and text.count(b"{") + text.count(b"[") > DEPTH_MAX:
        _require_depth(record)
    return text


def _to_json_exactly(raw: bytes) -> bytes:
    """Do the same for any record that may be passed on, without haste."""
    try:
        record = decode_lax(raw, 1)[0]
    except Unreadable as error:
        raise Refused("record_cbor") from error
    if type(record) is not dict:
        raise Refused("record_type")
    _require_depth(record)
    record = _whole(record)
    try:
        return orjson.dumps(record, default=_link_or_bytes, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers past 64 bits, or what `json` refuses as well
        return _to_json_slowly(record)


def _to_json_slowly(record: object) -> bytes:
    try:
        text = json.dumps(
            record, default=_link_or_bytes, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
    except TypeError as error:  # keys that are no text
        raise Refused("record_cbor") from error
    return text.encode()


def _require_depth(record: object) -> None:
    if depth(record) > DEPTH_MAX:
        raise Refused("record_depth")


def _whole(value: Any) -> Any:
    """Copy a value with its floats as integers. Raises Refused for one that is not whole."""
    kind = type(value)
    if kind is dict:
        return {key: _whole(item) for key, item in value.items()}
    if kind is list:
        return [_whole(item) for item in value]
    if kind is float:
        if not value.is_integer():  # false for NaN and the infinities, too
            raise Refused("record_float")
        return int(value)
    return value


def _link_or_bytes(value: object) -> dict[str, str]:
    """Return what stands in JSON for what JSON does not have, after `decode_lax`."""
    if type(value) is bytes:
        return _bytes(value)
    if type(value) is not Link:
        raise Refused("record_cbor")  # undefined and the other simple values
    try:
        return {"$link": encode_cid(bytes(value))}
    except ValueError as error:
        raise Refused("record_cbor") from error


def _bytes(value: bytes) -> dict[str, str]:
    return {"$bytes": binascii.b2a_base64(value, newline=False).rstrip(b"=").decode("ascii")}


def _bytes_hook(raw: bytes) -> Callable[[Any], dict[str, str]]:
    """Return orjson's hook for `bytes`: a link if tag 42 stands before them in `raw`, else a byte string.

    When the same bytes stand in `raw` more than once, or their head is not the canonical one, only the
    exact way can tell: the hook raises, and orjson with it. So it does when it is asked too often.
    """
    searches = count()

    def hook(value: Any) -> dict[str, str]:
        if next(searches) >= _SEARCHES_MAX:
            raise TypeError("too many links and byte strings to look for")
        size = len(value)
        at = raw.find(value)
        if raw.find(value, at + 1) < 0:
            if size == CID_BYTES and raw.startswith(_LINK_HEAD, at - len(_LINK_HEAD)):
                return {"$link": encode_cid(value)}
            if raw[at - 1] == (size if size > 23 else 0x40 + size) and size < 256:
                return _bytes(value)
        raise TypeError("a link or a byte string")

    return hook
