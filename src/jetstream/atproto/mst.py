"""The Merkle search tree (MST) of a repository: keys are record paths, values are record CIDs.

The hash of a key determines its layer (`layer_of`). All keys of a node are in one layer. Between two keys
there may be a subtree, whose root is one layer below; where that layer has no keys, a node without keys takes
its place. So a tree depends only on its contents, not on the order of writes.

The tree is changed in place, so that a write costs only its own path: `put` and `remove` change it and return
the root, which may be another node than before; `encode_changed` then encodes the blocks of the changed
nodes.

A node is encoded as a list of entries. An entry has the length `p` of the prefix that its key shares with the
key before it, the rest `k` of the key, the CID `v` of the record, and the CID `t` of the subtree after the
key, which may be null. `l` is the CID of the subtree before the first key:

    {"l": link, "e": [{"p": 0, "k": "app.bsky.feed.like/3k…", "v": link, "t": null}, {"p": 22, …}, …]}

So a write changes the block of the node with the key, and the blocks of all nodes above it, since each of
them has the CID of the one below. Nearly always that is one new entry in one node, and a replaced CID in each
of the others: `_insert` and `Node.patch` handle these two without encoding the node again.

A subtree may be a `Cid` instead of a node: its block is not loaded. So a consumer holds the few nodes that a
commit carries, and `invert` undoes the commit. After a PartialTreeError, discard the tree: it may be half
changed.

Source: the repository page of the AT Protocol specification, "MST structure", and the sync page, "Inductive
firehose".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final, NamedTuple, TypeAlias

import libipld

from jetstream.atproto.cbor_encoder import cbor_head
from jetstream.atproto.cid import LINK_HEAD, Cid, cid_of

# Bytes of a key, which is `collection/rkey`. The reference implementations refuse longer ones.
KEY_BYTES_MAX: Final = 1024


class PartialTreeError(Exception):
    """The operation needs a node whose block is not loaded."""


_NO_CID: Final = Cid()


@dataclass(slots=True, eq=False, repr=False)
class Node:
    """One node of the tree. Only this module changes it."""

    layer: int  # of all its keys
    keys: list[bytes]  # in order
    values: list[Cid]  # one for each key
    subtrees: list[Subtree]  # `len(keys) + 1`: before, between and after the keys
    # The encoded node. While `cid` is empty, it is empty or outdated.
    block: bytes = b""
    # The CID of `block`; empty after a change, until `encode_changed`.
    cid: Cid = _NO_CID
    # The one subtree that has changed since `block` was encoded, with the CID that it has in `block`. If this
    # is the only change, 36 bytes are replaced, which is several times as fast as encoding.
    patch: tuple[Cid, Node] | None = None

    def mark_changed(self) -> None:
        """Discard the block, so that `encode_changed` encodes the node."""
        self.block = b""
        self.cid = _NO_CID
        self.patch = None


Subtree: TypeAlias = Node | Cid | None  # loaded, not loaded, absent
Root: TypeAlias = Node | Cid
# The tree without keys: `{"e": [], "l": null}`.
EMPTY_BLOCK: Final = b"\xa2\x61e\x80\x61l\xf6"
EMPTY_CID: Final = cid_of(EMPTY_BLOCK)


class Change(NamedTuple):
    """One operation on the tree: the value of a key before and after it; None where the key is absent."""

    key: bytes
    before: Cid | None
    after: Cid | None


def layer_of(key: bytes) -> int:
    """Return the layer of a key: half the number of leading zero bits of its SHA-256, rounded down."""
    return (256 - int.from_bytes(sha256(key).digest(), "big").bit_length()) // 2


def shared_prefix(left: bytes, right: bytes) -> int:
    """Return the length of the common prefix of two keys."""
    size = min(len(left), len(right))
    differing = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return size - (differing.bit_length() + 7) // 8


def get(root: Subtree, key: bytes) -> Cid | None:
    """Return the value of a key, or None. Raises PartialTreeError if its path is not loaded."""
    node = root
    while node is not None:
        node = _loaded(node)
        i = bisect_left(node.keys, key)
        if i < len(node.keys) and node.keys[i] == key:
            return node.values[i]
        node = node.subtrees[i]
    return None


def empty() -> Node:
    """Return a tree without keys."""
    return Node(0, [], [], [None], EMPTY_BLOCK, EMPTY_CID)


def put(root: Root, key: bytes, value: Cid) -> tuple[Node, Cid | None]:
    """Set a key. Return the root and the previous value, None if the key was absent."""
    layer, top = layer_of(key), _loaded(root)
    if layer > top.layer:
        return _put_above(top, key, value, layer), None
    path, node = _descend(top, key, layer)
    if node is None:
        above, i = path[-1]
        node = Node(layer, [], [], [None])
        above.subtrees[i] = _raised(node, above.layer - 1)
        above.mark_changed()
    return top, _put_into(node, key, value)


def remove(root: Root, key: bytes) -> tuple[Root, Cid | None]:
    """Remove a key. Return the root and the previous value, None if the key was absent."""
    layer, top = layer_of(key), _loaded(root)
    if layer > top.layer or get(top, key) is None:
        return top, None
    path, node = _descend(top, key, layer)
    assert node is not None, "the key was found on this path"
    i = bisect_left(node.keys, key)
    before = node.values.pop(i)
    del node.keys[i]
    node.subtrees[i : i + 2] = [_merge(node.subtrees[i], node.subtrees[i + 1])]
    node.mark_changed()
    while path and _is_empty(node):
        node, i = path.pop()
        node.subtrees[i] = None
        node.mark_changed()
    return _lowered(top), before


def encode_changed(root: Node) -> list[Node]:
    """Encode every changed node of a tree. Return these nodes, children before parents."""
    if root.cid:
        return []
    fresh: list[Node] = []
    if root.patch is not None:
        link, changed = root.patch
        fresh += encode_changed(changed)
        root.block = root.block.replace(link, changed.cid, 1)
        root.patch = None
    else:
        for sub in root.subtrees:
            if isinstance(sub, Node):
                fresh += encode_changed(sub)
        root.block = root.block or encode_node(root)
    root.cid = cid_of(root.block)
    return [*fresh, root]


def items(root: Subtree) -> Iterator[tuple[bytes, Cid]]:
    """Yield the keys and values of a loaded tree, in order. Raises PartialTreeError."""
    if root is None:
        return
    node = _loaded(root)
    for i, key in enumerate(node.keys):
        yield from items(node.subtrees[i])
        yield key, node.values[i]
    yield from items(node.subtrees[-1])


def nodes(root: Subtree) -> Iterator[Node]:
    """Yield the nodes of a loaded tree, parents first. Raises PartialTreeError."""
    if root is None:
        return
    node = _loaded(root)
    yield node
    for sub in node.subtrees:
        yield from nodes(sub)


def load(blocks: Mapping[bytes, bytes], root: Cid, layer: int = 0) -> Root:
    """Return the tree of a root CID. Subtrees whose block is not in `blocks` stay a `Cid`.

    `layer` is that of a root without keys. Raises ValueError for a block that is not a node, or whose keys
    are not in order.
    """
    block = blocks.get(root)
    if block is None:
        return root
    keys, values, links = _decode(block)
    if keys:
        layer = layer_of(keys[0])
    subtrees = [None if link is None else load(blocks, link, layer - 1) for link in links]
    return Node(layer, keys, values, subtrees, block, root)


def invert(root: Root, changes: Iterable[Change]) -> Root:
    """Undo the operations of a commit. Return the root of the tree before it.

    Operations are undone from the last key to the first: of the orders in use, only this one always manages
    with the minimal set of nodes that producers send. Raises ValueError if the tree contradicts an operation,
    and PartialTreeError if nodes are missing.
    """
    for change in sorted(changes, reverse=True):
        if change.before is None:
            root, found = remove(root, change.key)
        else:
            root, found = put(root, change.key, change.before)
        if found != change.after:
            raise ValueError(f"{change.key!r}: the tree holds {found}, the operation says {change.after}")
    return root


def _loaded(node: Root) -> Node:
    """Return the node, or raise PartialTreeError if its block is not loaded."""
    if not isinstance(node, Node):
        raise PartialTreeError(str(node))
    return node


def _is_empty(node: Node) -> bool:
    """Return whether a node has neither a key nor a subtree. Only the empty tree keeps such a node."""
    return not node.keys and node.subtrees[0] is None


def _lowered(top: Node) -> Root:
    """Remove nodes without keys from the top."""
    root: Root = top
    while isinstance(root, Node) and not root.keys:
        below = root.subtrees[0]
        if below is None:
            return empty()
        root = below
    return root


def _descend(top: Node, key: bytes, layer: int) -> tuple[list[tuple[Node, int]], Node | None]:
    """Descend to a layer and mark the path as changed. Return the path, and the node if there is one."""
    path: list[tuple[Node, int]] = []
    node = top
    while node.layer > layer:
        i = bisect_left(node.keys, key)
        path.append((node, i))
        below = node.subtrees[i]
        if below is None:
            return path, None
        below = _loaded(below)
        if node.cid and below.cid:
            node.patch = (below.cid, below)
            node.cid = _NO_CID
        else:
            node.mark_changed()
        node = below
    return path, node


def _raised(node: Node, layer: int) -> Node:
    """Return a node in a layer: this one, or the top of nodes without keys above it."""
    while node.layer < layer:
        node = Node(node.layer + 1, [], [], [node])
    return node


def _put_into(node: Node, key: bytes, value: Cid) -> Cid | None:
    """Set a key in the node of its layer. Return the previous value."""
    i = bisect_left(node.keys, key)
    if i < len(node.keys) and node.keys[i] == key:
        before, node.values[i] = node.values[i], value
        node.mark_changed()
        return before
    sub = node.subtrees[i]
    if sub is None and node.block and node.patch is None:
        node.block = _insert(node, i, key, value)
        node.cid = _NO_CID
    else:
        node.mark_changed()
    node.keys.insert(i, key)
    node.values.insert(i, value)
    node.subtrees[i : i + 1] = _split(sub, key)
    return None


def _put_above(node: Node, key: bytes, value: Cid, layer: int) -> Node:
    """Set a key whose layer is above the root. Return the new root."""
    if _is_empty(node):
        return Node(layer, [key], [value], [None, None])
    return Node(layer, [key], [value], list(_split(_raised(node, layer - 1), key)))


def _split(node: Subtree, key: bytes) -> tuple[Subtree, Subtree]:
    """Split a subtree into the part before an absent key and the part after it. Either may be None.

    A key that is inserted above a subtree separates it. The nodes on the path of the key are split in two,
    down to the lowest layer; all others are kept.
    """
    if node is None:
        return None, None
    node = _loaded(node)
    i = bisect_left(node.keys, key)
    sub = node.subtrees[i]
    left, right = _split(sub, key)
    # If one side is the whole node, return the same object: its block is still valid.
    if right is None and i == len(node.keys) and left is sub:
        return node, None
    if left is None and i == 0 and right is sub:
        return None, node
    before = Node(node.layer, node.keys[:i], node.values[:i], [*node.subtrees[:i], left])
    after = Node(node.layer, node.keys[i:], node.values[i:], [right, *node.subtrees[i + 1 :]])
    return None if _is_empty(before) else before, None if _is_empty(after) else after


def _merge(left: Subtree, right: Subtree) -> Subtree:
    """Join two subtrees of one layer, between which a key was removed. This is the inverse of `_split`."""
    if left is None or right is None:
        return left or right
    left, right = _loaded(left), _loaded(right)
    seam = _merge(left.subtrees[-1], right.subtrees[0])
    return Node(
        left.layer,
        left.keys + right.keys,
        left.values + right.values,
        [*left.subtrees[:-1], seam, *right.subtrees[1:]],
    )


# The parts of an encoded node. Heads of every possible length are looked up, since computing them is slow.
_BEGIN: Final = b"\xa2\x61e"
_KEY_HEADS: Final = tuple(b"\xa4\x61k" + cbor_head(2, size) for size in range(KEY_BYTES_MAX + 1))
_PREFIXES: Final = tuple(b"\x61p" + cbor_head(0, size) + b"\x61t" for size in range(KEY_BYTES_MAX + 1))
_VALUE: Final = b"\x61v" + LINK_HEAD


def encode_node(node: Node) -> bytes:
    """Encode a node: `{"e": [{"k": suffix, "p": prefix, "t": link, "v": link}, …], "l": link}`."""
    parts = [_BEGIN, cbor_head(4, len(node.keys))]
    before = b""
    for key, value, sub in zip(node.keys, node.values, node.subtrees[1:], strict=True):
        parts += _entry(before, key, value, sub)
        before = key
    parts += (b"\x61l", _link(node.subtrees[0]))
    return b"".join(parts)


def _insert(node: Node, i: int, key: bytes, value: Cid) -> bytes:
    """Return the block of a node with one more key, made from its present block.

    There must be no subtree at the place of the key, as for most new keys. An entry ends with its value, so
    the values mark where entries end.
    """
    block, keys, values = node.block, node.keys, node.values
    start = at = len(_BEGIN) + len(cbor_head(4, len(keys)))
    for before in values[:i]:
        at = block.index(before, at) + len(before)
    parts = [_BEGIN, cbor_head(4, len(keys) + 1), block[start:at]]
    parts += _entry(keys[i - 1] if i else b"", key, value, None)
    if i < len(keys):
        at = block.index(values[i], at) + len(value)
        parts += _entry(key, keys[i], values[i], node.subtrees[i + 1])
    parts.append(block[at:])
    return b"".join(parts)


def _entry(before: bytes, key: bytes, value: Cid, sub: Subtree) -> tuple[bytes, ...]:
    """Return the parts of an entry: its key after the key `before`, its value, and the subtree after it."""
    shared = shared_prefix(before, key) if before else 0
    return _KEY_HEADS[len(key) - shared], key[shared:], _PREFIXES[shared], _link(sub), _VALUE, value


def _link(sub: Subtree) -> bytes:
    """Return the encoded link to a subtree, or null."""
    if sub is None:
        return b"\xf6"
    return LINK_HEAD + (sub.cid if isinstance(sub, Node) else sub)


def _decode(block: bytes) -> tuple[list[bytes], list[Cid], list[Cid | None]]:
    """Return the keys, values and links of a node. Raises ValueError."""
    fields = libipld.decode_dag_cbor(block)
    keys: list[bytes] = []
    values: list[Cid] = []
    links = [fields["l"]]
    for entry in fields["e"]:
        before = keys[-1] if keys else b""
        key = before[: entry["p"]] + entry["k"]
        if keys and key <= before:
            raise ValueError(f"{key!r} comes after {before!r} in a tree node")
        keys.append(key)
        values.append(Cid(entry["v"]))
        links.append(entry["t"])
    return keys, values, [link and Cid(link) for link in links]
