"""A record's DAG-CBOR as JSON (`wire.md`, "Records as JSON").

Links become `{"$link"}`, byte strings `{"$bytes"}`, keys are sorted by their UTF-8 bytes, whole floats
become integers. The fast way is libipld and orjson, 0.8 µs for a like; libipld gives links and byte
strings alike as `bytes`, and the raw record tells which is which. Whatever is not plain goes the exact
way, over `cbor.decode_lax`, which takes about four times as long.

No record may hold the event loop for more than 5 ms, so it is measured before it is decoded, unless it is
so short that it cannot matter: an item costs 0.3 µs at most on the fast way, and a character that JSON
escapes 5 ns. The limits below leave a margin of two.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable
from typing import Any, Final

import orjson
from libipld import decode_dag_cbor, encode_cid

from jetstream.atproto.car import CID_BYTES
from jetstream.atproto.cbor import DEPTH_MAX, Link, Unreadable, decode_lax, depth
from jetstream.upstream.walk import heads, texts

RECORD_BYTES_MAX: Final = 1 << 20  # of CBOR; the reference relay's limit
# Of JSON: what is around a record is under 10,000 bytes, and clients take messages of a megabyte.
JSON_BYTES_MAX: Final = 990_000
RECORD_ITEMS_MAX: Final = 8_000  # 2.5 ms; real records have dozens
COMMIT_ITEMS_MAX: Final = 48_000  # of all records of a commit: 15 ms; a thousand posts have as many
EXACT_FACTOR: Final = 4  # how many items of the fast way cost as much as one of the exact way
# Shorter records are not measured: they cannot have more items than that, one a byte.
UNMEASURED_BYTES_MAX: Final = RECORD_ITEMS_MAX // EXACT_FACTOR
_ESCAPES_PER_ITEM: Final = 32  # 5 ns each
_BYTES_PER_ITEM: Final = 128  # hashing, decoding, counting and base64 are 2 ns a byte
# Fewer bytes that JSON escapes in texts matter to a commit only: 0.6 ms.
_ESCAPES_MIN: Final = 100_000
_CONTROLS: Final = bytes(set(range(0x20)) - set(b"\b\t\n\f\r"))  # six bytes of JSON each
_ESCAPED: Final = bytes(range(0x20)) + b'"\\'  # two bytes at least
# What stands before the 36 bytes of a CID in a canonical link: tag 42, and 37 bytes of which the first is 0.
_LINK_HEAD: Final = b"\xd8\x2a\x58\x25\0"
# Floats of 32 and 64 bits, as numbers: membership is then a memchr, and ten times as fast.
_FLOAT32: Final = 0xFA
_FLOAT64: Final = 0xFB
# Each byte string is looked for in the whole record, so many of them in a long one go the exact way: at worst
# a search compares all its bytes at all places. Four blobs in a post of 5 kB are within it.
_COMPARISONS_MAX: Final = 1_000_000
# Each level costs a text two characters at least, so a shorter one need not be looked at.
_DEEP_TEXT_BYTES_MIN: Final = 2 * (DEPTH_MAX + 1)


class Refused(Exception):
    """This record cannot be passed on; `reason` is a label for the metrics."""

    def __init__(self, reason: str) -> None:
        self.reason = reason
        super().__init__(reason)


class Budget:
    """What the records of one commit may still cost, in items.

    `left` falls with each record that is looked at, whether it is passed on or not. Below zero no other is.
    """

    __slots__ = ("left",)

    def __init__(self) -> None:
        self.left = COMMIT_ITEMS_MAX

    def spend(self, items: int, spent: int = 0) -> None:
        """Spend items of one record that has cost `spent` already.

        Raises Refused when they are too many for one record, or when nothing is left.
        """
        self.left -= items
        if items + spent > RECORD_ITEMS_MAX:
            raise Refused("record_items")
        if self.left < 0:
            raise Refused("commit_items")

    def spend_on_bytes(self, size: int) -> None:
        """Spend what hashing and copying so many bytes costs."""
        self.left -= size // _BYTES_PER_ITEM


def to_json(raw: bytes, budget: Budget | None = None) -> bytes:
    """Return the JSON text of one record. `budget` is that of its commit, if others are in it.

    Raises Refused with reason `record_size` (over 1 MiB), `record_cbor` (not DAG-CBOR), `record_type` (not
    a map), `record_depth` (nested deeper than 128), `record_float` (a float that is not whole),
    `record_items` (over 8,000 items, or 2,000 the exact way), `commit_items` (nothing left in the budget)
    or `json_size` (over 990,000 bytes of JSON).
    """
    items = 0
    if len(raw) > UNMEASURED_BYTES_MAX or budget is not None:
        budget = budget or Budget()
        items = _measure(raw, budget)
    if (_FLOAT32 in raw or _FLOAT64 in raw) and _has_floats(raw):
        # One record in ninety has such a byte somewhere, in a hash as a rule.
        return _to_json_exactly(raw, items, budget)
    try:
        record = decode_dag_cbor(raw)
    except ValueError:
        return _to_json_exactly(raw, items, budget)
    except RecursionError as error:
        raise Refused("record_depth") from error
    if type(record) is not dict:
        raise Refused("record_type")
    try:
        text = orjson.dumps(record, default=_bytes_hook(raw), option=orjson.OPT_SORT_KEYS)
    except TypeError:  # orjson: integers past 64 bits, its own depth limit, a doubt of the hook
        _require_depth(record)
        return _to_json_exactly(raw, items, budget)
    if len(text) < _DEEP_TEXT_BYTES_MIN:
        return text
    if text.count(b"{") + text.count(b"[") > DEPTH_MAX:
        _require_depth(record)
    return _short_enough(text)


def _measure(raw: bytes, budget: Budget) -> int:
    """Return what a record costs, in items, when it has been paid for. Raises Refused."""
    if len(raw) > RECORD_BYTES_MAX:
        raise Refused("record_size")
    items = len(heads(raw, RECORD_ITEMS_MAX + 1))
    budget.spend(items)
    escapes = len(raw) - len(raw.translate(None, _ESCAPED))  # and what is not in texts
    if escapes <= _ESCAPES_MIN:
        budget.left -= escapes // _ESCAPES_PER_ITEM
        return items
    budget.spend(items, items)  # they are walked over once more
    escapes = _escapes(raw) // _ESCAPES_PER_ITEM
    budget.spend(escapes, 2 * items)
    return 2 * items + escapes


def _escapes(raw: bytes) -> int:
    """Count the characters of texts that JSON escapes. Raises Refused if they are too much JSON already."""
    all_texts = b"".join(texts(raw))
    escapes = len(all_texts) - len(all_texts.translate(None, _ESCAPED))
    controls = len(all_texts) - len(all_texts.translate(None, _CONTROLS))
    if len(all_texts) + escapes + 4 * controls > JSON_BYTES_MAX:
        raise Refused("json_size")
    return escapes


def _has_floats(raw: bytes) -> bool:
    firsts = heads(raw, len(raw))
    return _FLOAT32 in firsts or _FLOAT64 in firsts


def _to_json_exactly(raw: bytes, items: int, budget: Budget | None) -> bytes:
    """Do the same for any record that may be passed on, without haste; `items` is what it has cost."""
    if budget is not None:
        budget.spend((EXACT_FACTOR - 1) * items, items)
    try:
        record = decode_lax(raw, 1)[0]
    except Unreadable as error:
        raise Refused("record_cbor") from error
    if type(record) is not dict:
        raise Refused("record_type")
    _require_depth(record)
    record = _whole(record)
    try:
        text = orjson.dumps(record, default=_link_or_bytes, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers past 64 bits, or what `json` refuses as well
        text = _to_json_slowly(record)
    return _short_enough(text)


def _to_json_slowly(record: object) -> bytes:
    try:
        text = json.dumps(
            record, default=_link_or_bytes, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
    except TypeError as error:  # keys that are no text
        raise Refused("record_cbor") from error
    return text.encode()


def _short_enough(text: bytes) -> bytes:
    if len(text) > JSON_BYTES_MAX:
        raise Refused("json_size")
    return text


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
    exact way can tell: the hook raises, and orjson with it. So it does when searching takes too long.
    """
    left = _COMPARISONS_MAX

    def hook(value: Any) -> dict[str, str]:
        nonlocal left
        size = len(value)
        left -= (size + 1) * len(raw)
        if left < 0:
            raise TypeError("too many links and byte strings to look for")
        at = raw.find(value)
        if raw.find(value, at + 1) < 0:
            if size == CID_BYTES and raw.startswith(_LINK_HEAD, at - len(_LINK_HEAD)):
                return {"$link": encode_cid(value)}
            if raw[at - 1] == (size if size > 23 else 0x40 + size) and size < 256:
                return _bytes(value)
        raise TypeError("a link or a byte string")

    return hook
