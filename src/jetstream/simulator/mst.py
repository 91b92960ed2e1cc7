"""The Merkle search tree of a repository, changed in place, so that a write costs only its own path.

Source: the repository page of the ATProto specification, "MST structure". A key lies in the layer that
its hash names (`height`); all keys of a node share one layer; the subtree between two keys lies one layer
below, and a node without keys stands in wherever that layer is empty. `put` and `remove` change the tree and
return its root, which may be another node than before; `seal` writes the blocks of what has changed.

A subtree that is known only by its CID is a `Cid`: that is how a consumer holds the few nodes that a commit
carries, and how `invert` undoes a commit. After a PartialTreeError a tree is not to be used any more.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from itertools import pairwise
from typing import Final, NamedTuple, TypeAlias

import libipld

from jetstream.simulator.cbor import LINK_HEAD, Cid, cid_of, head

KEY_BYTES_MAX: Final = 1024  # the reference implementations refuse longer ones


class PartialTreeError(Exception):
    """The change needs a node that is known only by its CID."""


class Node:
    """One node: its layer, keys, values and the `len(keys) + 1` subtrees around them.

    `cid` is empty where the node has changed since it was sealed. Its `block` is then empty as well, or can
    still be had by replacing 36 bytes, which is several times faster than encoding and nearly always the
    case: `patch` is the subtree that has changed, with the CID that it has in the block.
    """

    __slots__ = ("block", "cid", "height", "keys", "patch", "subs", "values")

    def __init__(self, height: int, keys: list[bytes], values: list[Cid], subs: list[Subtree]) -> None:
        self.height = height
        self.keys = keys
        self.values = values
        self.subs = subs
        self.block = b""
        self.cid = _NO_CID
        self.patch: tuple[Cid, Node] | None = None

    def rewrite(self) -> None:
        """Have the block written anew when the node is sealed."""
        self.block = b""
        self.cid = _NO_CID
        self.patch = None


_NO_CID: Final = Cid()
Subtree: TypeAlias = Node | Cid | None
Root: TypeAlias = Node | Cid
EMPTY_BLOCK: Final = b"\xa2\x61e\x80\x61l\xf6"
EMPTY_CID: Final = cid_of(EMPTY_BLOCK)


class Change(NamedTuple):
    """One operation, as the tree sees it: the value before and the value after, None where there is none."""

    key: bytes
    before: Cid | None
    after: Cid | None


def height(key: bytes) -> int:
    """Tell the layer of a key: the leading zero bits of its SHA-256, counted in pairs."""
    return (256 - int.from_bytes(sha256(key).digest(), "big").bit_length()) // 2


def shared_prefix(left: bytes, right: bytes) -> int:
    """Count the bytes that two keys begin with alike."""
    size = min(len(left), len(right))
    differing = int.from_bytes(left[:size], "big") ^ int.from_bytes(right[:size], "big")
    return size - (differing.bit_length() + 7) // 8


def get(root: Subtree, key: bytes) -> Cid | None:
    """Look up the value of a key. Raises PartialTreeError where the path is not loaded."""
    node = root
    while node is not None:
        node = _loaded(node)
        i = bisect_left(node.keys, key)
        if i < len(node.keys) and node.keys[i] == key:
            return node.values[i]
        node = node.subs[i]
    return None


def empty() -> Node:
    """Make a tree without keys."""
    node = Node(0, [], [], [None])
    node.block, node.cid = EMPTY_BLOCK, EMPTY_CID
    return node


def put(root: Root, key: bytes, value: Cid) -> tuple[Node, Cid | None]:
    """Set a key. Return the root and the value before."""
    layer, top = height(key), _loaded(root)
    if layer > top.height:
        return _put_above(top, key, value, layer), None
    path, node = _descend(top, key, layer)
    if node is None:
        above, i = path[-1]
        above.subs[i], node = _chain(above.height - 1, layer)
        above.rewrite()
    return top, _put_into(node, key, value)


def remove(root: Root, key: bytes) -> tuple[Root, Cid | None]:
    """Take a key out. Return the root and the value before, None where the key was absent."""
    layer, top = height(key), _loaded(root)
    if layer > top.height or get(top, key) is None:
        return top, None
    path, node = _descend(top, key, layer)
    assert node is not None, "the key was found on this path"
    i = bisect_left(node.keys, key)
    before = node.values.pop(i)
    del node.keys[i]
    node.subs[i : i + 2] = [_merge(node.subs[i], node.subs[i + 1])]
    node.rewrite()
    while path and _is_empty(node):
        node, i = path.pop()
        node.subs[i] = None
        node.rewrite()
    return _lowered(top), before


def build(items: Sequence[tuple[bytes, Cid]]) -> Node:
    """Make the tree of many items at once, which must come sorted by key and without repeats."""
    if not items:
        return empty()
    heights = [height(key) for key, _ in items]
    return _build(items, heights, max(heights), 0, len(items))


def seal(root: Node) -> list[Node]:
    """Encode every new node below and including the root. Return them, children before parents."""
    fresh: list[Node] = []
    _seal(root, fresh)
    return fresh


def cover(root: Node, key: bytes) -> list[Node]:
    """List the nodes on the lookup paths of a key and of its two neighbours, as inversion needs them.

    An absent key's neighbours lie on its own path.
    """
    path: list[Node] = []
    node: Subtree = root
    while isinstance(node, Node):
        path.append(node)
        i = bisect_left(node.keys, key)
        if i < len(node.keys) and node.keys[i] == key:
            return path + _edge(node.subs[i], -1) + _edge(node.subs[i + 1], 0)
        node = node.subs[i]
    return path


def items(root: Subtree) -> Iterator[tuple[bytes, Cid]]:
    """List the keys and values of a loaded tree, in order."""
    if root is None:
        return
    node = _loaded(root)
    for i, key in enumerate(node.keys):
        yield from items(node.subs[i])
        yield key, node.values[i]
    yield from items(node.subs[-1])


def nodes(root: Subtree) -> Iterator[Node]:
    """List the nodes of a loaded tree, parents first."""
    if root is None:
        return
    node = _loaded(root)
    yield node
    for sub in node.subs:
        yield from nodes(sub)


def load(blocks: Mapping[bytes, bytes], root: Cid) -> Root:
    """Read a tree from the blocks at hand; what is not among them stays a `Cid`.

    Raises ValueError for a block that is no node, or whose keys do not ascend.
    """
    return _load(blocks, root, None)


def invert(root: Root, changes: Iterable[Change]) -> Root:
    """Undo the operations of a commit and return the root before it.

    They are undone from the last key to the first: of the orders in use, the only one for which the
    producer's minimal set of nodes always suffices. Raises ValueError where the tree does not hold what
    an operation says, PartialTreeError where nodes are missing.
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
    if not isinstance(node, Node):
        raise PartialTreeError(str(node))
    return node


def _is_empty(node: Node) -> bool:
    return not node.keys and node.subs[0] is None


def _lowered(top: Node) -> Root:
    """Take away nodes without keys at the top."""
    root: Root = top
    while isinstance(root, Node) and not root.keys:
        below = root.subs[0]
        if below is None:
            return empty()
        root = below
    return root


def _descend(top: Node, key: bytes, layer: int) -> tuple[list[tuple[Node, int]], Node | None]:
    """Go down to a layer, and mark the way as changed. Return the way, and the node if there is one."""
    path: list[tuple[Node, int]] = []
    node = top
    while node.height > layer:
        i = bisect_left(node.keys, key)
        path.append((node, i))
        below = node.subs[i]
        if below is None:
            return path, None
        below = _loaded(below)
        if node.cid and below.cid:
            node.patch = (below.cid, below)
            node.cid = _NO_CID
        else:
            node.rewrite()
        node = below
    return path, node


def _chain(top: int, bottom: int) -> tuple[Node, Node]:
    """Make nodes without keys from one layer down to another. Return the first and the last."""
    first = last = Node(bottom, [], [], [None])
    for layer in range(bottom + 1, top + 1):
        first = Node(layer, [], [], [first])
    return first, last


def _put_into(node: Node, key: bytes, value: Cid) -> Cid | None:
    """Set a key in the node of its layer."""
    i = bisect_left(node.keys, key)
    if i < len(node.keys) and node.keys[i] == key:
        before, node.values[i] = node.values[i], value
        node.rewrite()
        return before
    sub = node.subs[i]
    if sub is None and node.block and node.patch is None:
        node.block = _insert(node, i, key, value)
        node.cid = _NO_CID
    else:
        node.rewrite()
    node.keys.insert(i, key)
    node.values.insert(i, value)
    node.subs[i : i + 1] = _split(sub, key)
    return None


def _put_above(node: Node, key: bytes, value: Cid, layer: int) -> Node:
    """Set a key above the root."""
    if _is_empty(node):
        return Node(layer, [key], [value], [None, None])
    while node.height < layer - 1:
        node = Node(node.height + 1, [], [], [node])
    return Node(layer, [key], [value], list(_split(node, key)))


def _split(node: Subtree, key: bytes) -> tuple[Subtree, Subtree]:
    if node is None:
        return None, None
    node = _loaded(node)
    i = bisect_left(node.keys, key)
    sub = node.subs[i]
    left, right = _split(sub, key)
    # A side that keeps the whole node keeps the same object: it stays sealed.
    if right is None and i == len(node.keys) and left is sub:
        return node, None
    if left is None and i == 0 and right is sub:
        return None, node
    before = Node(node.height, node.keys[:i], node.values[:i], [*node.subs[:i], left])
    after = Node(node.height, node.keys[i:], node.values[i:], [right, *node.subs[i + 1 :]])
    return None if _is_empty(before) else before, None if _is_empty(after) else after


def _merge(left: Subtree, right: Subtree) -> Subtree:
    if left is None:
        return right
    if right is None:
        return left
    left, right = _loaded(left), _loaded(right)
    seam = _merge(left.subs[-1], right.subs[0])
    return Node(
        left.height,
        left.keys + right.keys,
        left.values + right.values,
        [*left.subs[:-1], seam, *right.subs[1:]],
    )


def _build(
    sorted_items: Sequence[tuple[bytes, Cid]], heights: Sequence[int], layer: int, start: int, end: int
) -> Node:
    mine = [i for i in range(start, end) if heights[i] == layer]
    bounds = [start - 1, *mine, end]
    subs: list[Subtree] = [
        _build(sorted_items, heights, layer - 1, left + 1, right) if right - left > 1 else None
        for left, right in pairwise(bounds)
    ]
    return Node(layer, [sorted_items[i][0] for i in mine], [sorted_items[i][1] for i in mine], subs)


def _edge(node: Subtree, side: int) -> list[Node]:
    edge: list[Node] = []
    while isinstance(node, Node):
        edge.append(node)
        node = node.subs[side]
    return edge


def _seal(node: Node, fresh: list[Node]) -> None:
    if node.cid:
        return
    if node.patch is not None:
        link, changed = node.patch
        _seal(changed, fresh)
        node.block = node.block.replace(link, changed.cid, 1)
        node.patch = None
    else:
        for sub in node.subs:
            if isinstance(sub, Node):
                _seal(sub, fresh)
        node.block = node.block or encode_node(node)
    node.cid = cid_of(node.block)
    fresh.append(node)


_BEGIN: Final = b"\xa2\x61e"
_KEY_HEADS: Final = tuple(b"\xa4\x61k" + head(2, size) for size in range(KEY_BYTES_MAX + 1))
_PREFIXES: Final = tuple(b"\x61p" + head(0, size) + b"\x61t" for size in range(KEY_BYTES_MAX + 1))
_VALUE: Final = b"\x61v" + LINK_HEAD


def encode_node(node: Node) -> bytes:
    """Write `{"e": [{"k": suffix, "p": prefix, "t": link, "v": link}, …], "l": link}`."""
    parts = [_BEGIN, head(4, len(node.keys))]
    before = b""
    for key, value, sub in zip(node.keys, node.values, node.subs[1:], strict=True):
        parts += _entry(before, key, value, sub)
        before = key
    parts += (b"\x61l", _link(node.subs[0]))
    return b"".join(parts)


def _insert(node: Node, i: int, key: bytes, value: Cid) -> bytes:
    """Write the block of a node with one more key, at a place where there is no subtree, out of its block.

    Most new keys come to such a place. An entry ends with its value, so that is where the next one begins.
    """
    block, keys, values = node.block, node.keys, node.values
    start = at = len(_BEGIN) + len(head(4, len(keys)))
    for before in values[:i]:
        at = block.index(before, at) + len(before)
    parts = [_BEGIN, head(4, len(keys) + 1), block[start:at]]
    parts += _entry(keys[i - 1] if i else b"", key, value, None)
    if i < len(keys):
        at = block.index(values[i], at) + len(value)
        parts += _entry(key, keys[i], values[i], node.subs[i + 1])
    parts.append(block[at:])
    return b"".join(parts)


def _entry(before: bytes, key: bytes, value: Cid, sub: Subtree) -> tuple[bytes, ...]:
    shared = shared_prefix(before, key) if before else 0
    return _KEY_HEADS[len(key) - shared], key[shared:], _PREFIXES[shared], _link(sub), _VALUE, value


def _link(sub: Subtree) -> bytes:
    if sub is None:
        return b"\xf6"
    return LINK_HEAD + (sub.cid if isinstance(sub, Node) else sub)


def _load(blocks: Mapping[bytes, bytes], cid: Cid, layer: int | None) -> Root:
    block = blocks.get(cid)
    if block is None:
        return cid
    keys, values, links = _decode(block)
    if keys:
        layer = height(keys[0])
    below = None if layer is None else layer - 1
    subs = [None if link is None else _load(blocks, link, below) for link in links]
    node = Node(layer or 0, keys, values, subs)
    node.block, node.cid = block, cid
    return node


def _decode(block: bytes) -> tuple[list[bytes], list[Cid], list[Cid | None]]:
    fields = libipld.decode_dag_cbor(block)
    keys: list[bytes] = []
    values: list[Cid] = []
    links = [_cid(fields["l"])]
    for entry in fields["e"]:
        before = keys[-1] if keys else b""
        key = before[: entry["p"]] + entry["k"]
        if keys and key <= before:
            raise ValueError(f"{key!r} comes after {before!r} in a tree node")
        keys.append(key)
        values.append(Cid(entry["v"]))
        links.append(_cid(entry["t"]))
    return keys, values, links


def _cid(link: bytes | None) -> Cid | None:
    return None if link is None else Cid(link)
