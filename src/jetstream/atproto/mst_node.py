"""One node of a Merkle search tree, and its block. `mst` has the operations on trees.

A node is encoded as a list of entries. An entry has the length `p` of the prefix that its key shares with the
key before it, the rest `k` of the key, the CID `v` of the record, and the CID `t` of the subtree after the
key, which may be null. `l` is the CID of the subtree before the first key:

    {"l": link, "e": [{"p": 0, "k": "app.bsky.feed.like/3k…", "v": link, "t": null}, {"p": 22, …}, …]}

Source: the repository page of the AT Protocol specification, "MST structure".
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from typing import Any, Final, TypeAlias

import libipld

from jetstream.atproto.cbor_encoder import cbor_head
from jetstream.atproto.cbor_scan import item_heads
from jetstream.atproto.cid import CID_BYTES, LINK_HEAD, Cid, cid_of

# Bytes of a key, which is `collection/rkey`. The reference implementations refuse longer ones.
KEY_BYTES_MAX: Final = 1024
# Items of CBOR in a block that is decoded: those of 1,450 keys. Few nodes have a dozen: one key in four is in
# a higher layer, and ends the node before it. A short block is not measured.
_ITEMS_MAX: Final = 16_000
_UNMEASURED_BYTES_MAX: Final = 4_096

NO_CID: Final = Cid()


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One node of the tree. Only `mst` changes it."""

    # The layer of all its keys: 0 is the lowest.
    layer: int
    # Its keys, in order: whole, and not as the suffixes of entries.
    keys: list[bytes]
    values: list[Cid]  # one for each key
    subtrees: list[Subtree]  # `len(keys) + 1`: before, between and after the keys
    # The encoded node. While `cid` is empty, it is empty or outdated.
    block: bytes = b""
    # The CID of `block`; empty after a change, until `encode_changed`.
    cid: Cid = NO_CID
    # The one subtree that has changed since `block` was encoded, with the CID that it has in `block`. If this
    # is the only change, 36 bytes are replaced, which is several times as fast as encoding.
    patch: tuple[Cid, Node] | None = None

    def mark_changed(self) -> None:
        """Discard the block, so that `encode_changed` encodes the node."""
        self.block = b""
        self.cid = NO_CID
        self.patch = None


Subtree: TypeAlias = Node | Cid | None  # loaded, not loaded, absent
Root: TypeAlias = Node | Cid
# The tree without keys: `{"e": [], "l": null}`.
EMPTY_BLOCK: Final = b"\xa2\x61e\x80\x61l\xf6"
EMPTY_CID: Final = cid_of(EMPTY_BLOCK)


def layer_of(key: bytes) -> int:
    """Return the layer of a key: half the number of leading zero bits of its SHA-256, rounded down.

    One key in four is in a higher layer than 0, one in sixteen in a higher one than 1, up to 128.
    """
    return (256 - int.from_bytes(sha256(key).digest(), "big").bit_length()) // 2


def shared_prefix(left: bytes, right: bytes) -> int:
    """Return the length of the common prefix of two keys."""
    size = min(len(left), len(right))
    differing = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return size - (differing.bit_length() + 7) // 8


_ENTRY_FIELDS: Final = 4
# The parts of an encoded node. Heads of every possible length are looked up, since computing them is slow.
_BEGIN: Final = b"\xa2\x61e"
_KEY_HEADS: Final = tuple(b"\xa4\x61k" + cbor_head(2, size) for size in range(KEY_BYTES_MAX + 1))
_PREFIXES: Final = tuple(b"\x61p" + cbor_head(0, size) + b"\x61t" for size in range(KEY_BYTES_MAX + 1))
_VALUE: Final = b"\x61v" + LINK_HEAD


def encode_node(node: Node) -> bytes:
    """Encode a node: `{"e": [{"k": suffix, "p": prefix, "t": link, "v": link}, …], "l": link}`.

    Its subtrees must be encoded before (`mst.encode_changed`). Raises IndexError for a suffix of over
    1,024 bytes.
    """
    parts = [entries_head(len(node.keys))]
    before = b""
    for key, value, sub in zip(node.keys, node.values, node.subtrees[1:], strict=True):
        parts += _entry(before, key, value, sub)
        before = key
    parts += (b"\x61l", _link(node.subtrees[0]))
    return b"".join(parts)


def insert_entry(node: Node, i: int, key: bytes, value: Cid) -> bytes:
    """Return the block of a node with one more key, made from its present block.

    There must be no subtree at the place of the key, as for most new keys. An entry ends with its value, so
    the values mark where entries end.
    """
    block, keys, values = node.block, node.keys, node.values
    start = at = len(entries_head(len(keys)))
    for before in values[:i]:
        at = block.index(before, at) + len(before)
    parts = [entries_head(len(keys) + 1), block[start:at]]
    parts += _entry(keys[i - 1] if i else b"", key, value, None)
    if i < len(keys):
        at = block.index(values[i], at) + len(value)
        parts += _entry(key, keys[i], values[i], node.subtrees[i + 1])
    parts.append(block[at:])
    return b"".join(parts)


def entries_head(count: int) -> bytes:
    """Return what the block of a node with `count` entries begins with."""
    return _BEGIN + cbor_head(4, count)


def encode_entry(suffix: bytes, prefix: int, value: bytes, subtree: bytes | None) -> tuple[bytes, ...]:
    """Return the parts of an entry: `k`, `p`, `v` and the CID `t`. Raises IndexError for a key too long."""
    link = b"\xf6" if subtree is None else LINK_HEAD + subtree
    return _KEY_HEADS[len(suffix)], suffix, _PREFIXES[prefix], link, _VALUE, value


def decode_fields(block: bytes) -> tuple[list[Any], Any]:
    """Return the entries `e` and the link `l` of a block, not checked further. Raises ValueError."""
    if len(block) > _UNMEASURED_BYTES_MAX and len(item_heads(block, _ITEMS_MAX + 1)) > _ITEMS_MAX:
        raise ValueError(f"a tree node of over {_ITEMS_MAX:,} items")
    try:
        fields = libipld.decode_dag_cbor(block)
        entries, left = fields["e"], fields["l"]
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError("a block that is no tree node") from error
    if type(entries) is not list or len(fields) != 2:
        raise ValueError("a tree node with other fields than a list of entries and a link")
    return entries, left


def decode_node(block: bytes) -> tuple[list[bytes], list[Cid], list[Cid | None]]:
    """Return the keys, values and links of a node. Raises ValueError.

    There is one link more than keys: the subtrees before, between and after them, None where there is
    none.
    """
    entries, left = decode_fields(block)
    try:
        return _decode(entries, left)
    except (KeyError, TypeError) as error:
        raise ValueError("an entry of a tree node that is not one") from error


def _decode(entries: list[Any], left: Any) -> tuple[list[bytes], list[Cid], list[Cid | None]]:
    """Read the entries of a node, whose keys must rise. Raises ValueError, KeyError and TypeError."""
    keys: list[bytes] = []
    values: list[Cid] = []
    links = [None if left is None else _cid(left)]
    before = b""
    for entry in entries:
        key = before[: entry["p"]] + entry["k"]
        if key <= before or len(key) > KEY_BYTES_MAX or len(entry) != _ENTRY_FIELDS:
            raise ValueError(f"{key[:KEY_BYTES_MAX]!r} after {before!r} in a tree node")
        keys.append(key)
        values.append(_cid(entry["v"]))
        links.append(None if entry["t"] is None else _cid(entry["t"]))
        before = key
    return keys, values, links


def _cid(link: bytes) -> Cid:
    """Return a link as a CID. Raises ValueError, or TypeError if it is none."""
    if len(link) != CID_BYTES:
        raise ValueError("a link of a tree node that is no CID")
    return Cid(link)


def _entry(before: bytes, key: bytes, value: Cid, sub: Subtree) -> tuple[bytes, ...]:
    """Return the parts of an entry: its key after the key `before`, its value, and the subtree after it."""
    shared = shared_prefix(before, key) if before else 0
    return _KEY_HEADS[len(key) - shared], key[shared:], _PREFIXES[shared], _link(sub), _VALUE, value


def _link(sub: Subtree) -> bytes:
    """Return the encoded link to a subtree, or null."""
    if sub is None:
        return b"\xf6"
    return LINK_HEAD + (sub.cid if isinstance(sub, Node) else sub)
