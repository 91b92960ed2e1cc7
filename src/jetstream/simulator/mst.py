"""The Merkle search tree of a repository: immutable nodes, so that a change costs only its own path.

Source: the repository page of the ATProto specification, "MST structure". A key lies in the layer that
its hash names (`height`); all keys of a node share one layer; the subtree between two keys lies one layer
below, and a node without keys stands in wherever that layer is empty. `put` and `remove` return a new root
that shares every untouched node with the old one. A subtree that is known only by its CID is a `Cid`:
that is how a consumer holds the few nodes that a commit carries, and how `invert` undoes a commit.
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

    `cid` is filled in when the node is sealed, `block` then or earlier. `patch` says how a node comes from
    one with a block in which a single subtree changed: the block before, the subtree's CID in it, and the
    subtree that is to stand there. Most new nodes are of that kind, and replacing 36 bytes is several times
    faster than encoding.
    """

    __slots__ = ("block", "cid", "height", "keys", "patch", "subs", "values")

    def __init__(
        self,
        height: int,
        keys: tuple[bytes, ...],
        values: tuple[Cid, ...],
        subs: tuple[Subtree, ...],
    ) -> None:
        self.height = height
        self.keys = keys
        self.values = values
        self.subs = subs
        self.block = b""
        self.cid = _NO_CID
        self.patch: tuple[bytes, Cid, Node] | None = None


_NO_CID: Final = Cid()
Subtree: TypeAlias = Node | Cid | None
Root: TypeAlias = Node | Cid
EMPTY: Final = Node(0, (), (), (None,))


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


def put(root: Root, key: bytes, value: Cid) -> tuple[Node, Cid | None]:
    """Set a key. Return the new root and the value before."""
    layer, node = height(key), _loaded(root)
    path: list[tuple[Node, int]] = []
    while node.height > layer:
        i = bisect_left(node.keys, key)
        path.append((node, i))
        child = node.subs[i]
        node = Node(node.height - 1, (), (), (None,)) if child is None else _loaded(child)
    changed, before = _put_into(node, key, value, layer)
    for above, i in reversed(path):
        changed = _with_sub(above, i, changed)
    return changed, before


def remove(root: Root, key: bytes) -> tuple[Root, Cid | None]:
    """Take a key out. Return the new root and the value before, None where the key was absent."""
    top, before = _remove(root, key, height(key))
    while isinstance(top, Node) and not top.keys and top.subs[0] is not None:
        top = top.subs[0]
    return EMPTY if top is None else top, before


def build(items: Sequence[tuple[bytes, Cid]]) -> Node:
    """Make the tree of many items at once, which must come sorted by key and without repeats."""
    if not items:
        return EMPTY
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


def _unless_empty(node: Node) -> Node | None:
    return None if not node.keys and node.subs[0] is None else node


def _put_into(node: Node, key: bytes, value: Cid, layer: int) -> tuple[Node, Cid | None]:
    """Set a key in the node of its layer, or above a root that lies below it."""
    if layer > node.height:
        return _put_above(node, key, value, layer), None
    keys, values, subs = node.keys, node.values, node.subs
    i = bisect_left(keys, key)
    if i < len(keys) and keys[i] == key:
        return Node(node.height, keys, (*values[:i], value, *values[i + 1 :]), subs), values[i]
    left, right = _split(subs[i], key)
    grown = Node(
        node.height,
        (*keys[:i], key, *keys[i:]),
        (*values[:i], value, *values[i:]),
        (*subs[:i], left, right, *subs[i + 1 :]),
    )
    if node.block and subs[i] is None:
        grown.block = _insert(node, i, key, value)
    return grown, None


def _with_sub(node: Node, i: int, sub: Subtree) -> Node:
    """Copy a node with another subtree at one place."""
    changed = Node(node.height, node.keys, node.values, (*node.subs[:i], sub, *node.subs[i + 1 :]))
    before = node.subs[i]
    if node.block and isinstance(before, Node) and before.cid and isinstance(sub, Node):
        changed.patch = (node.block, before.cid, sub)
    return changed


def _put_above(node: Node, key: bytes, value: Cid, layer: int) -> Node:
    below = _unless_empty(node)
    if below is None:
        return Node(layer, (key,), (value,), (None, None))
    while below.height < layer - 1:
        below = Node(below.height + 1, (), (), (below,))
    return Node(layer, (key,), (value,), _split(below, key))


def _remove(node: Subtree, key: bytes, layer: int) -> tuple[Subtree, Cid | None]:
    if node is None:
        return None, None
    node = _loaded(node)
    if layer > node.height:
        return node, None
    keys, values, subs = node.keys, node.values, node.subs
    i = bisect_left(keys, key)
    if layer < node.height:
        child, before = _remove(subs[i], key, layer)
        if before is None:
            return node, None
        return _unless_empty(_with_sub(node, i, child)), before
    if i == len(keys) or keys[i] != key:
        return node, None
    rest = Node(
        node.height,
        keys[:i] + keys[i + 1 :],
        values[:i] + values[i + 1 :],
        (*subs[:i], _merge(subs[i], subs[i + 1]), *subs[i + 2 :]),
    )
    return _unless_empty(rest), values[i]


def _split(node: Subtree, key: bytes) -> tuple[Node | None, Node | None]:
    if node is None:
        return None, None
    node = _loaded(node)
    i = bisect_left(node.keys, key)
    left, right = _split(node.subs[i], key)
    # A side that keeps the whole node keeps the same object: it stays sealed.
    if right is None and i == len(node.keys) and left is node.subs[i]:
        return node, None
    if left is None and i == 0 and right is node.subs[0]:
        return None, node
    keys, values, subs = node.keys, node.values, node.subs
    return (
        _unless_empty(Node(node.height, keys[:i], values[:i], (*subs[:i], left))),
        _unless_empty(Node(node.height, keys[i:], values[i:], (right, *subs[i + 1 :]))),
    )


def _merge(left: Subtree, right: Subtree) -> Subtree:
    if left is None:
        return right
    if right is None:
        return left
    left, right = _loaded(left), _loaded(right)
    return Node(
        left.height,
        left.keys + right.keys,
        left.values + right.values,
        (*left.subs[:-1], _merge(left.subs[-1], right.subs[0]), *right.subs[1:]),
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
    keys = tuple([sorted_items[i][0] for i in mine])
    return Node(layer, keys, tuple([sorted_items[i][1] for i in mine]), tuple(subs))


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
        block, link, changed = node.patch
        _seal(changed, fresh)
        node.block = block.replace(link, changed.cid, 1)
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
    subs = tuple(None if link is None else _load(blocks, link, below) for link in links)
    node = Node(layer or 0, keys, values, subs)
    node.block, node.cid = block, cid
    return node


def _decode(block: bytes) -> tuple[tuple[bytes, ...], tuple[Cid, ...], list[Cid | None]]:
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
    return tuple(keys), tuple(values), links


def _cid(link: bytes | None) -> Cid | None:
    return None if link is None else Cid(link)


seal(EMPTY)
