"""A part of the second step: what a commit's tree nodes prove of its ops.

A commit carries the nodes of the new tree on the paths to its ops and their neighbours. That is enough to
undo the ops: `undo` returns the root of the tree before, which must be the `prevData` of the commit. So no op
was left out, added or changed. `find` only looks the ops up in the new tree.

Nearly all commits have one op. It is undone in the bytes: on the way down, only the keys before that of the
op are read; its entry is cut out, put in or replaced; in each node above it, the 36 bytes of a CID are
replaced. It takes half the time of loading the nodes and encoding them again, which `mst` does for all other
commits, with the same result.

The blocks are those of `car.checked_blocks`: each hashes to its CID, so no chain of nodes is a cycle. A chain
ends at the layer of the op, which is less than 128 below the root's.

Source: the sync page of the AT Protocol specification, "Inductive firehose", and the repository page, "MST
structure".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import sha256
from typing import Any, Final, NamedTuple, TypeAlias

from jetstream.atproto import mst, mst_load
from jetstream.atproto.cid import DAG_CBOR_SHA256, LINK_HEAD, Cid
from jetstream.atproto.mst import Change, PartialTreeError
from jetstream.atproto.mst_node import (
    EMPTY_BLOCK,
    KEY_BYTES_MAX,
    decode_fields,
    encode_entry,
    entries_head,
    layer_of,
    shared_prefix,
)

# The blocks of a CAR, by their CID of 36 bytes.
Blocks: TypeAlias = Mapping[bytes, bytes]
# A link to no subtree, in DAG-CBOR.
_NULL: Final = b"\xf6"
# An entry that lacks a field, or has one of another type, shows where that is used.
_MALFORMED: Final = (KeyError, TypeError, IndexError)
_NO_ENTRY: Final = "a tree node with an entry that is not one"
_NO_LEFT: Final = b"\x61l\xf6"  # what a block without a subtree before its first key ends with


class _Place(NamedTuple):
    """Where a key is in a tree, or would be."""

    # The nodes on the way to its node, the root first: the block of each, and the link that was followed.
    above: list[tuple[bytes, bytes]]
    # The node in the key's layer; the last node of the way, if that ends above it.
    block: bytes
    # The entries of the node, as its block has them: foreign values whose types were not checked.
    entries: list[Any]
    # The link before the first entry: a CID or None, unless the block is malformed.
    left: Any
    # The index of the first entry whose key is not below; that of the end, if there is none.
    at: int
    # The key of the entry before it; empty if there is none.
    before: bytes
    # Whether the node has the key: then it is that of the entry at `at`.
    found: bool
    # The layer of the node, relative to that of the key: 0 is the same, above 0 the node is higher.
    layer: int


def find(blocks: Blocks, root: bytes, changes: Sequence[Change]) -> None:
    """Check that a tree holds what the ops say: created and updated keys, and no deleted one.

    Raises ValueError if it does not, and PartialTreeError if a node on the way is not there.
    """
    if len(changes) == 1:
        try:
            _require(changes[0], _value_at(_place(blocks, root, changes[0].key)))
        except _MALFORMED as error:
            raise ValueError(_NO_ENTRY) from error
        return
    tree = mst_load.load(blocks, Cid(root))
    for change in changes:
        _require(change, mst.get(tree, change.key))


def undo(blocks: Blocks, root: bytes, changes: Sequence[Change]) -> bytes:
    """Return the root of the tree before the ops of a commit.

    Raises ValueError if the tree contradicts an op, and PartialTreeError if a node is not there.
    """
    if len(changes) == 1:
        try:
            before = _undo_one(blocks, root, changes[0])
        except _MALFORMED as error:
            raise ValueError(_NO_ENTRY) from error
        if before is not None:
            return before
    if not changes:
        return root
    return mst.root_cid(mst.invert(mst_load.load(blocks, Cid(root)), changes))


def _require(change: Change, value: bytes | None) -> None:
    """Raise ValueError unless the tree holds what an op says its path has after it: a CID, or nothing."""
    if value != change.after:
        raise ValueError(f"{change.key!r}: the tree holds {_text(value)}, the op says {_text(change.after)}")


def _text(value: bytes | None) -> str:
    """Return a value of the tree for people."""
    return "nothing" if value is None else str(Cid(value))


def _place(blocks: Blocks, root: bytes, key: bytes) -> _Place:
    """Descend from the root to a key. Raises ValueError, and PartialTreeError.

    The layer of the root is that of its first key, and each node below is one layer lower. So the way
    ends, whatever the nodes hold. Keys behind that of the op are not looked at: they are covered by the
    hashes.
    """
    above: list[tuple[bytes, bytes]] = []
    wanted, layer, link = layer_of(key), -1, root
    while True:
        block = blocks.get(link)
        if block is None:
            raise PartialTreeError("a node on the way to an op is missing")
        entries, left = decode_fields(block)
        # The first node: its layer is not known before. A root below the layer of the key ends the way.
        if layer < 0:
            layer = layer_of(entries[0]["k"]) - wanted if entries else 0
        index, before, found = _search(entries, key)
        below = entries[index - 1]["t"] if index else left
        if found or layer <= 0 or below is None:
            return _Place(above, block, entries, left, index, before, found, layer)
        above.append((block, below))
        layer -= 1
        link = below


def _search(entries: list[Any], key: bytes) -> tuple[int, bytes, bool]:
    """Return the index of the first key not below a key, the key before it, and whether it is equal.

    Raises ValueError for a longer key than any repository has, and one of `_MALFORMED` for an entry that
    is none.
    """
    before = b""
    for index, entry in enumerate(entries):
        k = before[: entry["p"]] + entry["k"]
        if k >= key:
            return index, before, k == key
        if len(k) > KEY_BYTES_MAX:
            raise ValueError("a key of over 1,024 bytes in a tree node")
        before = k
    return len(entries), before, False


def _value_at(place: _Place) -> bytes | None:
    """Return the value at a place, None if the key is not in the tree.

    Raises ValueError for a key in another layer than its own, and for one that has no value.
    """
    if not place.found:
        return None
    value = place.entries[place.at]["v"]
    if place.layer or type(value) is not bytes:
        raise ValueError("a key of the tree is in the wrong layer, or has no value")
    return value


def _undo_one(blocks: Blocks, root: bytes, change: Change) -> bytes | None:
    """Undo the only op of a commit in the bytes of the nodes. Return None where that is not possible.

    Then `mst` does it, so None is never wrong, only slower. Raises ValueError if the tree does not hold
    what the op says, and PartialTreeError.
    """
    key, before, after = change
    place = _place(blocks, root, key)
    _require(change, _value_at(place))
    if before is None:
        node = _without_entry(blocks, place, key)
    elif after is None:
        node = _with_entry(place, key, before)
    else:
        node = _replaced(place, before)
    return node and _rehashed(place.above, node)


def _subtree_at(place: _Place, index: int) -> bytes | None:
    """Return the link before the entry at an index, None if there is no subtree. Raises TypeError."""
    link: Any = place.entries[index - 1]["t"] if index else place.left
    if link is None or isinstance(link, bytes):
        return link
    raise TypeError("a link that is none")


def _encoded(entry: Any) -> bytes:
    """Return the bytes of an entry, as its node has them if that is canonical."""
    return b"".join(encode_entry(entry["k"], entry["p"], entry["v"], entry["t"]))


def _spliced(block: bytes, old: bytes, new: bytes) -> bytes | None:
    """Replace a part of a block by another. Return None if it is not there exactly once.

    Entries may be equal: those of `…40`, `…44`, `…50` and `…54` are, if two of their records are.
    """
    return block.replace(old, new) if block.count(old) == 1 else None


def _replaced(place: _Place, value: bytes) -> bytes | None:
    """Return the node with another value of its key."""
    entry = place.entries[place.at]
    return _spliced(place.block, _encoded(entry), _encoded(entry | {"v": value}))


def _without_entry(blocks: Blocks, place: _Place, key: bytes) -> bytes | None:
    """Return the node without its key, and the subtrees around the key as one.

    Return None for the only key of the root: another node becomes the root.
    """
    entries, index = place.entries, place.at
    entry, new = entries[index], b""
    left, right = _subtree_at(place, index), _subtree_at(place, index + 1)
    if len(entries) == 1 and not place.above and (left or right):
        return None
    old = _encoded(entry)
    if index + 1 < len(entries):
        after = entries[index + 1]
        old += _encoded(after)
        # Of keys in order, the outer two share the shorter of the two prefixes.
        longer = max(0, after["p"] - entry["p"])
        new = _encoded(after | {"p": after["p"] - longer, "k": entry["k"][:longer] + after["k"]})
    block = _recounted(place, _spliced(place.block, old, new), -1)
    if block is None or right is None:
        return block
    if left is not None:
        return _spliced(block, left, mst.joined(blocks, left, right, layer_of(key) - 1))
    if index:
        return _spliced(block, _encoded(entries[index - 1]), _encoded(entries[index - 1] | {"t": right}))
    return _spliced(block, _NO_LEFT, _NO_LEFT[:-1] + LINK_HEAD + right)


def _with_entry(place: _Place, key: bytes, value: bytes) -> bytes | None:
    """Return the node with one more key at its place. Return None where a node is made or a subtree split.

    The key after it shares another prefix with the key before it now, so its entry is written again.
    """
    entries, index, left = place.entries, place.at, place.left
    if place.layer or _subtree_at(place, index) is not None:
        return None
    shared = shared_prefix(place.before, key)
    new = b"".join(encode_entry(key[shared:], shared, value, None))
    if index < len(entries):
        after = entries[index]
        rest = place.before[: after["p"]] + after["k"]
        longer = shared_prefix(key, rest)
        old, new = _encoded(after), new + _encoded(after | {"p": longer, "k": rest[longer:]})
    else:
        old = _NO_LEFT if left is None else _NO_LEFT[:-1] + LINK_HEAD + left
        new += old
    return _recounted(place, _spliced(place.block, old, new), 1)


def _recounted(place: _Place, block: bytes | None, more: int) -> bytes | None:
    """Return the block of a node whose number of entries has changed."""
    if block is None:
        return None
    count = len(place.entries)
    return entries_head(count + more) + block[len(entries_head(count)) :]


def _rehashed(above: list[tuple[bytes, bytes]], node: bytes) -> bytes:
    """Return the root of a tree one of whose nodes has changed, given the way to it.

    In each node above, the CID of the one below is replaced. A node that has become empty is none: its link
    becomes null.
    """
    for block, link in reversed(above):
        if node == EMPTY_BLOCK:
            node = block.replace(LINK_HEAD + link, _NULL, 1)
        else:
            node = block.replace(link, DAG_CBOR_SHA256 + sha256(node).digest(), 1)
    return DAG_CBOR_SHA256 + sha256(node).digest()
