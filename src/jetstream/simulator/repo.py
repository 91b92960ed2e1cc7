"""The repository of a simulated account: records in a Merkle search tree, under a signed commit.

Source: the repository and sync pages of the AT Protocol specification ("Sync 1.1").
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Final, NamedTuple

from jetstream.atproto import mst, mst_node
from jetstream.atproto.car import Block, write_car
from jetstream.atproto.cid import Cid, cid_of
from jetstream.simulator.signing import SigningKey, sign_commit

# The `action` of an operation in a `#commit` message.
CREATE: Final = "create"
UPDATE: Final = "update"
DELETE: Final = "delete"
OPS_MAX: Final = 200  # operations in one commit; the limit of the lexicon


class Write(NamedTuple):
    """A change to make: an action, the path of the record, and the record, also as DAG-CBOR.

    `record` is None for a delete and for a record that is given as `block` only.
    """

    action: str
    path: str
    record: dict[str, object] | None
    block: bytes


class Op(NamedTuple):
    """A change that was made, as a commit lists it: with the record's CID after and before."""

    action: str
    path: str
    cid: Cid | None
    prev: Cid | None
    record: dict[str, object] | None


class Revision(NamedTuple):
    """One commit, with every block that a consumer needs to verify and invert it."""

    rev: str
    since: str | None  # the rev before; None for the first commit
    commit: Block
    prev_data: Cid | None  # the root of the tree before; None for the first commit
    ops: tuple[Op, ...]
    nodes: tuple[tuple[Cid, bytes], ...]  # tree nodes, parents first
    records: tuple[Block, ...]


class Repo:
    """The repository of one account. It begins empty and without a commit."""

    def __init__(self, did: str, key: SigningKey) -> None:
        self.did = did
        self.key = key  # signs the next commit; changed by `resign`
        self.tree = mst.empty()  # the root; encoded whenever no method runs
        self.records: dict[str, bytes] = {}  # DAG-CBOR by path
        self.rev: str | None = None  # of `head`
        self.head: Block | None = None  # the newest commit

    def fill(self, records: Iterable[tuple[str, bytes]], rev: str) -> None:
        """Give an empty repository its records, in one commit that is not announced."""
        self.records = dict(records)
        named = sorted((path.encode(), cid_of(block)) for path, block in self.records.items())
        self.tree = build(named)
        mst.encode_changed(self.tree)
        self._commit(rev)

    def apply(self, writes: Sequence[Write], rev: str) -> Revision:
        """Make a commit of at most 200 writes to distinct paths. `rev` must be above the previous one.

        Creates must be of absent paths, updates and deletes of present ones; `World` makes sure of it.
        """
        before = None if self.head is None else self.tree.cid
        since = self.rev
        records: list[Block] = []
        ops = [self._write(write, records) for write in writes]
        nodes = [*mst.encode_changed(self.tree), self.tree]
        nodes.reverse()
        for write in writes:
            nodes += covering_proof(self.tree, write.path.encode())
        blocks = tuple([(node.cid, node.block) for node in dict.fromkeys(nodes)])
        return Revision(rev, since, self._commit(rev), before, tuple(ops), blocks, tuple(records))

    def resign(self, key: SigningKey, rev: str) -> Block:
        """Replace the signing key, and sign the present tree with it. Return the new commit."""
        self.key = key
        return self._commit(rev)

    def export(self) -> bytes:
        """Return the whole repository as a CAR file: the commit, every tree node, every record."""
        assert self.head is not None, "an account has a commit before it can be asked for"
        nodes = ((node.cid, node.block) for node in mst.nodes(self.tree))
        records = {cid: self.records[key.decode()] for key, cid in mst.items(self.tree)}
        return write_car(self.head.cid, (self.head, *nodes, *records.items()))

    def _write(self, write: Write, records: list[Block]) -> Op:
        """Apply one write to the tree; append its record, if any, to `records`."""
        key = write.path.encode()
        if write.action == DELETE:
            root, prev = mst.remove(self.tree, key)
            assert isinstance(root, mst_node.Node), "all nodes of a repository are loaded"
            self.tree = root
            del self.records[write.path]
            return Op(DELETE, write.path, None, prev, None)
        cid = cid_of(write.block)
        self.tree, prev = mst.put(self.tree, key, cid)
        self.records[write.path] = write.block
        records.append(Block(cid, write.block))
        return Op(write.action, write.path, cid, prev, write.record)

    def _commit(self, rev: str) -> Block:
        self.rev = rev
        self.head = sign_commit(self.did, rev, self.tree.cid, self.key)
        return self.head


def build(items: Sequence[tuple[bytes, Cid]]) -> mst_node.Node:
    """Return the tree of many items, which must be sorted by key and have no duplicates."""
    if not items:
        return mst.empty()
    layers = [mst_node.layer_of(key) for key, _ in items]
    return _build(items, layers, max(layers), 0, len(items))


def _build(
    sorted_items: Sequence[tuple[bytes, Cid]], layers: Sequence[int], layer: int, start: int, end: int
) -> mst_node.Node:
    """Return the node of one layer for `sorted_items[start:end]`, with its subtrees.

    The keys of its layer are its own. The runs of items between them become the subtrees.
    """
    mine = [i for i in range(start, end) if layers[i] == layer]
    bounds = [start - 1, *mine, end]
    subtrees: list[mst_node.Subtree] = [
        _build(sorted_items, layers, layer - 1, left + 1, right) if right - left > 1 else None
        for left, right in pairwise(bounds)
    ]
    return mst_node.Node(
        layer, [sorted_items[i][0] for i in mine], [sorted_items[i][1] for i in mine], subtrees
    )


def covering_proof(root: mst_node.Node, key: bytes) -> list[mst_node.Node]:
    """Return the nodes on the paths to a key and to its two neighbours, which `mst.invert` needs.

    The neighbours of an absent key are on its own path.
    """
    path: list[mst_node.Node] = []
    node: mst_node.Subtree = root
    while isinstance(node, mst_node.Node):
        path.append(node)
        i = bisect_left(node.keys, key)
        if i < len(node.keys) and node.keys[i] == key:
            return path + _edge(node.subtrees[i], -1) + _edge(node.subtrees[i + 1], 0)
        node = node.subtrees[i]
    return path


def _edge(node: mst_node.Subtree, side: int) -> list[mst_node.Node]:
    """Return the nodes on the left (`side` 0) or right (-1) edge of a subtree, from its root down."""
    edge: list[mst_node.Node] = []
    while isinstance(node, mst_node.Node):
        edge.append(node)
        node = node.subtrees[side]
    return edge
