"""The Merkle search tree (MST) of a repository: keys are record paths, values are record CIDs.

    layer 2                 [ k5 ]
                          ┌──┘  └──┐
    layer 1           [ k2 ]      [ k8 ]        a node: keys in order, and a subtree before, between
                     ┌─┘  └─┐    ┌─┘  └─┐      and after them, which may be absent
    layer 0        [k0,k1] [k3] [k6]  [k9]

The hash of a key determines its layer (`layer_of`). All keys of a node are in one layer. Between two keys
there may be a subtree, whose root is one layer below; where that layer has no keys, a node without keys takes
its place. So a tree depends only on its contents, not on the order of writes.

The tree is changed in place, so that a write costs only its own path: `put` and `remove` change it and return
the root, which may be another node than before; `encode_changed` then encodes the blocks of the changed
nodes. `mst_node` has the encoding of a node.

A write changes the block of the node with the key, and the blocks of all nodes above it, since each of
them has the CID of the one below. Nearly always that is one new entry in one node, and a replaced CID in each
of the others: `insert_entry` and `Node.patch` handle these two without encoding the node again.

A subtree may be a `Cid` instead of a node: its block is not loaded. So a consumer holds the few nodes that a
commit carries (`mst_load`), and `invert` undoes the commit. After a PartialTreeError or a ValueError, discard
the tree: it may be half changed.

Source: the repository page of the AT Protocol specification, "MST structure", and the sync page, "Inductive
firehose".
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping
from typing import Final, NamedTuple

from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.mst_load import Loader
from jetstream.atproto.mst_node import (
    EMPTY_BLOCK,
    EMPTY_CID,
    NO_CID,
    Node,
    Root,
    Subtree,
    encode_node,
    insert_entry,
    layer_of,
)

# Bytes of a block into which an entry is inserted. A longer one is encoded once for all changes instead, so
# that many changes of one node do not take quadratic time.
_SPLICED_BYTES_MAX: Final = 16_384


class PartialTreeError(Exception):
    """The operation needs a node whose block is not loaded."""


class Change(NamedTuple):
    """One operation on the tree: the value of a key before and after it; None where the key is absent."""

    # The path of the record, `collection/rkey`, in UTF-8.
    key: bytes
    # Of an op without `prev`, which older producers send, `before` is None as well: then the change
    # cannot be undone.
    before: Cid | None
    after: Cid | None


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
    """Set a key. Return the root and the previous value, None if the key was absent.

    The tree is changed in place. Raises PartialTreeError if a node on the path is not loaded.
    """
    layer, top = layer_of(key), _loaded(root)
    if layer > top.layer:
        return _put_above(top, key, value, layer), None
    path, node = _descend(top, key, layer)
    if node is None:
        # There is no node in the layer of the key: one is made, with nodes without keys above it.
        above, i = path[-1]
        node = Node(layer, [], [], [None])
        above.subtrees[i] = _raised(node, above.layer - 1)
        above.mark_changed()
    return top, _put_into(node, key, value)


def remove(root: Root, key: bytes) -> tuple[Root, Cid | None]:
    """Remove a key. Return the root and the previous value, None if the key was absent.

    The tree is changed in place, and not at all if the key is absent. Raises PartialTreeError if a node
    on the path, or next to the key, is not loaded, and ValueError for a key that is in another layer than its
    own, as a foreign tree may have it.
    """
    layer, top = layer_of(key), _loaded(root)
    if layer > top.layer or get(top, key) is None:
        return top, None
    path, node = _descend(top, key, layer)
    i = 0 if node is None else bisect_left(node.keys, key)
    if node is None or node.keys[i : i + 1] != [key]:
        raise ValueError(f"{key[:100]!r} is in a wrong layer of the tree")
    before = node.values.pop(i)
    del node.keys[i]
    node.subtrees[i : i + 2] = [_merge(node.subtrees[i], node.subtrees[i + 1])]
    node.mark_changed()
    # Of the nodes on the path, those that have nothing any more go, the lowest first.
    while path and _is_empty(node):
        node, i = path.pop()
        node.subtrees[i] = None
        node.mark_changed()
    return _lowered(top), before


def encode_changed(root: Node) -> list[Node]:
    """Encode every changed node of a tree. Return these nodes, children before parents.

    From then on, each has its block and CID until it is changed again. What was not changed is not
    encoded again.
    """
    if root.cid:
        return []
    fresh: list[Node] = []
    # One subtree has changed and nothing else: its CID is replaced in the block.
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


def joined(blocks: Mapping[bytes, bytes], left: bytes, right: bytes, layer: int) -> Cid:
    """Return the CID of two neighbouring subtrees as one, whose roots are in `layer`.

    It is what takes the place of both when the key between them is removed. Raises ValueError as
    `mst_load.load` does, and PartialTreeError.
    """
    loader = Loader(blocks)
    roots = [loader.subtree(Cid(each), layer) for each in (left, right)]
    merged = _merge(*roots)
    assert merged is not None, "neither is absent"
    return root_cid(merged)


def root_cid(root: Root) -> Cid:
    """Return the CID of a tree. Encodes what has changed. A tree that is not loaded is its CID."""
    if not isinstance(root, Node):
        return root
    encode_changed(root)
    return root.cid


def _loaded(node: Root) -> Node:
    """Return the node, or raise PartialTreeError if its block is not loaded."""
    if not isinstance(node, Node):
        raise PartialTreeError(str(node))
    return node


def _is_empty(node: Node) -> bool:
    """Return whether a node has neither a key nor a subtree. Only the empty tree keeps such a node."""
    return not node.keys and node.subtrees[0] is None


def _lowered(top: Node) -> Root:
    """Remove nodes without keys from the top. Return the root, which may be a CID that is not loaded."""
    root: Root = top
    while isinstance(root, Node) and not root.keys:
        below = root.subtrees[0]
        if below is None:
            return empty()
        root = below
    return root


def _descend(top: Node, key: bytes, layer: int) -> tuple[list[tuple[Node, int]], Node | None]:
    """Descend to a layer and mark the path as changed. Return the path, and the node if there is one.

    The path has each node above, with the index of the subtree that was taken. Its last node has no such
    subtree if there is no node in the layer. A node whose only change is the CID of one subtree gets a
    `patch`.
    """
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
            node.cid = NO_CID
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
    if sub is None and node.block and node.patch is None and len(node.block) <= _SPLICED_BYTES_MAX:
        node.block = insert_entry(node, i, key, value)
        node.cid = NO_CID
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
