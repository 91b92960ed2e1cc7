"""Put a record's DAG-CBOR into JSON (`docs/api.md`, "Records as JSON").

Links become `{"$link": …}`, byte strings `{"$bytes": …}`. Keys are sorted by their UTF-8 bytes. Whole floats
become integers.

There are two ways. The *fast* one is libipld and orjson: 0.8 µs for a like. libipld returns links and byte
strings alike as `bytes`, so the hook that orjson calls for them looks at the raw record to tell which is
which. A record that is not plain takes the *exact* way, through `cbor.decode_lax`, which takes about four
times as long: one with floats, integers over 64 bits, keys that are not canonical, or byte strings that the
hook cannot tell apart.

No record may hold the event loop for more than 5 ms. So a record is measured before it is decoded, unless it
is so short that it cannot matter. An item costs at most 0.3 µs on the fast way, and a character that JSON
escapes 5 ns. The limits leave a margin of two.
"""

from __future__ import annotations

import binascii
import json
from collections.abc import Callable
from typing import Any, Final

import orjson
from libipld import decode_dag_cbor, encode_cid

from jetstream.atproto.cbor import DEPTH_MAX, Unreadable, decode_lax, depth
from jetstream.atproto.cbor_scan import item_heads, text_strings
from jetstream.atproto.cid import CID_BYTES, LINK_HEAD, Cid
from jetstream.limits import UpstreamLimits
from jetstream.upstream.drops import Dropped

# Of a record's CBOR: the reference relay's limit. Of its JSON: what stands around a record in a message takes
# less than 10,000 bytes, and clients accept messages of a megabyte (`docs/api.md`).
RECORD_BYTES_MAX: Final = 1 << 20
JSON_BYTES_MAX: Final = 990_000

# What work costs, in items of the fast way. One item of the exact way, as a factor; characters that JSON
# escapes, 5 ns each; bytes that are hashed, decoded, counted and written as base64, 2 ns each.
EXACT_FACTOR: Final = 4
_ESCAPES_PER_ITEM: Final = 32
_BYTES_PER_ITEM: Final = 128
# Fewer characters to escape matter only to the budget of a commit: 0.6 ms.
_ESCAPES_MIN: Final = 100_000
_CONTROLS: Final = bytes(set(range(0x20)) - set(b"\b\t\n\f\r"))  # six bytes of JSON each
_ESCAPED: Final = bytes(range(0x20)) + b'"\\'  # two bytes at least
# First bytes of floats of 32 and 64 bits, as numbers: `in` is then a memchr, ten times as fast.
_FLOAT32: Final = 0xFA
_FLOAT64: Final = 0xFB
# Bytes that the hook may compare. It searches the whole record for each byte string; with many of them in a
# long record, the exact way is cheaper. Four blobs in a post of 5 kB are within it.
_COMPARISONS_MAX: Final = 1_000_000
# Each level takes two characters of JSON at least, so a shorter text cannot be nested too deep.
_DEEP_TEXT_BYTES_MIN: Final = 2 * (DEPTH_MAX + 1)


class Budget:
    """What the records of one commit may still cost, in items.

    A record is paid for when it is looked at, whether it is passed on or not.
    """

    __slots__ = ("_record_items_max", "left")

    def __init__(self, limits: UpstreamLimits) -> None:
        # Items that are left. Only falls; below zero no other record is looked at.
        self.left = limits.commit_items_max
        self._record_items_max = limits.record_items_max

    def spend(self, items: int, spent: int = 0) -> None:
        """Pay for items of a record that has cost `spent` already.

        Raises Dropped when they are too many for one record, or when nothing is left.
        """
        self.left -= items
        if items + spent > self._record_items_max:
            raise Dropped("record_items")
        if self.left < 0:
            raise Dropped("commit_items")

    def spend_on_bytes(self, size: int) -> None:
        """Pay for hashing and copying `size` bytes."""
        self.left -= size // _BYTES_PER_ITEM


def to_json(raw: bytes, budget: Budget | None = None, limits: UpstreamLimits = UpstreamLimits()) -> bytes:
    """Return the JSON text of one record. `budget` is that of its commit, if there are others in it.

    Raises Dropped with reason `record_size` (over 1 MiB), `record_cbor` (not DAG-CBOR), `record_type` (not a
    map), `record_depth` (nested deeper than 128), `record_float` (a float that is not whole), `record_items`
    (over `record_items_max` items, or a quarter of them the exact way), `commit_items` (nothing left in the
    budget) or `json_size` (over 990,000 bytes of JSON).
    """
    items = 0
    if len(raw) > limits.unmeasured_record_bytes_max or budget is not None:
        budget = budget or Budget(limits)
        items = _measure(raw, budget, limits.record_items_max)
    if (_FLOAT32 in raw or _FLOAT64 in raw) and _has_floats(raw):
        # One record in ninety has such a byte somewhere, in a hash as a rule.
        return _to_json_exactly(raw, items, budget)
    try:
        record = decode_dag_cbor(raw)
    except ValueError:
        return _to_json_exactly(raw, items, budget)
    except RecursionError as error:
        raise Dropped("record_depth") from error
    if type(record) is not dict:
        raise Dropped("record_type")
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


def _measure(raw: bytes, budget: Budget, items_max: int) -> int:
    """Pay for a record; return what it costs, in items. Raises Dropped."""
    if len(raw) > RECORD_BYTES_MAX:
        raise Dropped("record_size")
    items = len(item_heads(raw, items_max + 1))
    budget.spend(items)
    escapes = len(raw) - len(raw.translate(None, _ESCAPED))  # an upper bound: not all of them are in texts
    if escapes <= _ESCAPES_MIN:
        budget.left -= escapes // _ESCAPES_PER_ITEM
        return items
    budget.spend(items, items)  # they are scanned once more
    escapes = _escapes(raw) // _ESCAPES_PER_ITEM
    budget.spend(escapes, 2 * items)
    return 2 * items + escapes


def _escapes(raw: bytes) -> int:
    """Count the characters of texts that JSON escapes. Raises Dropped if they are too much JSON already."""
    all_texts = b"".join(text_strings(raw))
    escapes = len(all_texts) - len(all_texts.translate(None, _ESCAPED))
    controls = len(all_texts) - len(all_texts.translate(None, _CONTROLS))
    if len(all_texts) + escapes + 4 * controls > JSON_BYTES_MAX:
        raise Dropped("json_size")
    return escapes


def _has_floats(raw: bytes) -> bool:
    """Tell whether an item is a float: its first byte may also occur in strings."""
    firsts = item_heads(raw, len(raw))
    return _FLOAT32 in firsts or _FLOAT64 in firsts


def _to_json_exactly(raw: bytes, items: int, budget: Budget | None) -> bytes:
    """Convert any record that may be passed on, the slow way; `items` is what it has cost already."""
    if budget is not None:
        budget.spend((EXACT_FACTOR - 1) * items, items)
    try:
        record = decode_lax(raw)
    except Unreadable as error:
        raise Dropped("record_cbor") from error
    if type(record) is not dict:
        raise Dropped("record_type")
    return exact_json(record)


def exact_json(record: dict[Any, Any]) -> bytes:
    """Return the JSON text of a record with floats, or with integers of any size.

    Links and byte strings in it are those of `decode_lax`. Raises Dropped, as `to_json` does.
    """
    _require_depth(record)
    record = whole(record)
    try:
        text = orjson.dumps(record, default=_link_or_bytes, option=orjson.OPT_SORT_KEYS)
    except TypeError:  # integers past 64 bits, or what `json` refuses as well
        text = _to_json_slowly(record)
    return _short_enough(text)


def _to_json_slowly(record: object) -> bytes:
    """Convert with the standard library, which has integers of any size."""
    try:
        text = json.dumps(
            record, default=_link_or_bytes, ensure_ascii=False, sort_keys=True, separators=(",", ":")
        )
    except TypeError as error:  # keys that are no text
        raise Dropped("record_cbor") from error
    return text.encode()


def _short_enough(text: bytes) -> bytes:
    """Return the text. Raises Dropped if it is too long for a message."""
    if len(text) > JSON_BYTES_MAX:
        raise Dropped("json_size")
    return text


def _require_depth(record: object) -> None:
    if depth(record) > DEPTH_MAX:
        raise Dropped("record_depth")


def whole(value: Any) -> Any:
    """Copy a value with its floats as integers. Raises Dropped for one that is not whole."""
    kind = type(value)
    if kind is dict:
        return {key: whole(item) for key, item in value.items()}
    if kind is list:
        return [whole(item) for item in value]
    if kind is float:
        if not value.is_integer():  # false for NaN and the infinities, too
            raise Dropped("record_float")
        return int(value)
    return value


def _link_or_bytes(value: object) -> dict[str, str]:
    """Return the JSON of a link or a byte string out of `decode_lax`. Raises Dropped for all else."""
    if type(value) is bytes:
        return _bytes(value)
    if type(value) is not Cid:
        raise Dropped("record_cbor")  # undefined and the other simple values
    try:
        return {"$link": encode_cid(bytes(value))}
    except ValueError as error:
        raise Dropped("record_cbor") from error


def _bytes(value: bytes) -> dict[str, str]:
    return {"$bytes": binascii.b2a_base64(value, newline=False).rstrip(b"=").decode("ascii")}


def _bytes_hook(raw: bytes) -> Callable[[Any], dict[str, str]]:
    """Return orjson's hook for `bytes`: a link if tag 42 precedes them in `raw`, else a byte string.

    Only the exact way can tell when the same bytes stand in `raw` more than once, or when their head is not
    canonical. Then, and when searching takes too long, the hook raises TypeError, and orjson with it.
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
            if size == CID_BYTES and raw.startswith(LINK_HEAD, at - len(LINK_HEAD)):
                return {"$link": encode_cid(value)}
            if raw[at - 1] == (size if size > 23 else 0x40 + size) and size < 256:
                return _bytes(value)
        raise TypeError("a link or a byte string")

    return hook
