"""A repository: records in a Merkle search tree under signed commits, and the CAR files that carry them.

Source: the repository and sync pages of the ATProto specification (commit v3, CAR v1, "Sync 1.1").
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from jetstream.simulator import cbor, mst
from jetstream.simulator.cbor import Cid
from jetstream.simulator.keys import SigningKey

CREATE: Final = "create"
UPDATE: Final = "update"
DELETE: Final = "delete"


class Block(NamedTuple):
    """One block of a CAR file: what it is called and what it holds."""

    cid: Cid
    data: bytes


class Write(NamedTuple):
    """A change that an account makes to its repository; a delete has no record."""

    action: str
    path: str
    record: dict[str, object] | None
    block: bytes


class Op(NamedTuple):
    """A change as the commit tells it: with the record's CID after and before."""

    action: str
    path: str
    cid: Cid | None
    prev: Cid | None
    record: dict[str, object] | None


class Revision(NamedTuple):
    """What one commit did to a repository, and every block that a consumer needs to check and undo it."""

    rev: str
    since: str | None
    commit: Block
    prev_data: Cid | None
    ops: tuple[Op, ...]
    nodes: tuple[tuple[Cid, bytes], ...]
    records: tuple[Block, ...]


class Repo:
    """The repository of one account. It begins empty and without a commit."""

    def __init__(self, did: str, key: SigningKey) -> None:
        self.did = did
        self.key = key
        self.tree = mst.empty()
        self.records: dict[str, bytes] = {}
        self.rev: str | None = None
        self.head: Block | None = None

    def fill(self, records: Iterable[tuple[str, bytes]], rev: str) -> None:
        """Give an empty repository its records in one commit that nobody is told of."""
        self.records = dict(records)
        named = sorted((path.encode(), cbor.cid_of(block)) for path, block in self.records.items())
        self.tree = mst.build(named)
        mst.seal(self.tree)
        self._commit(rev)

    def apply(self, writes: Sequence[Write], rev: str) -> Revision:
        """Make a commit of at most 200 writes to distinct paths. `rev` must be above the last one.

        Creates must be of absent paths, updates and deletes of present ones: the world sees to that.
        """
        before = None if self.head is None else self.tree.cid
        since = self.rev
        records: list[Block] = []
        ops = [self._write(write, records) for write in writes]
        nodes = [*mst.seal(self.tree), self.tree]
        nodes.reverse()
        for write in writes:
            nodes += mst.cover(self.tree, write.path.encode())
        blocks = tuple([(node.cid, node.block) for node in dict.fromkeys(nodes)])
        return Revision(rev, since, self._commit(rev), before, tuple(ops), blocks, tuple(records))

    def resign(self, key: SigningKey, rev: str) -> Block:
        """Change the signing key, and sign what is there anew."""
        self.key = key
        return self._commit(rev)

    def export(self) -> bytes:
        """Write the whole repository as a CAR file: the commit, every tree node, every record."""
        assert self.head is not None, "an account has a commit before anybody can ask for it"
        nodes = ((node.cid, node.block) for node in mst.nodes(self.tree))
        records = {cid: self.records[key.decode()] for key, cid in mst.items(self.tree)}
        return car(self.head.cid, (self.head, *nodes, *records.items()))

    def _write(self, write: Write, records: list[Block]) -> Op:
        key = write.path.encode()
        if write.action == DELETE:
            root, prev = mst.remove(self.tree, key)
            assert isinstance(root, mst.Node), "a repository's own tree is whole"
            self.tree = root
            del self.records[write.path]
            return Op(DELETE, write.path, None, prev, None)
        cid = cbor.cid_of(write.block)
        self.tree, prev = mst.put(self.tree, key, cid)
        self.records[write.path] = write.block
        records.append(Block(cid, write.block))
        return Op(write.action, write.path, cid, prev, write.record)

    def _commit(self, rev: str) -> Block:
        self.rev = rev
        self.head = commit_block(self.did, rev, self.tree.cid, self.key)
        return self.head


def commit_block(did: str, rev: str, data: Cid, key: SigningKey) -> Block:
    """Sign the commit of a tree: `{"did", "rev", "sig", "data", "prev": null, "version": 3}`.

    What is signed is the same map without `sig`, so both are put together from the same parts.
    """
    before = b"\x63did" + cbor.text(did) + b"\x63rev" + cbor.text(rev)
    after = b"\x64data" + cbor.LINK_HEAD + data + b"\x64prev\xf6\x67version\x03"
    signature = key.sign(b"\xa5" + before + after)
    block = b"\xa6" + before + b"\x63sig\x58\x40" + signature + after
    return Block(cbor.cid_of(block), block)


def car(root: Cid, blocks: Iterable[tuple[Cid, bytes]]) -> bytes:
    """Write a CAR v1 file."""
    parts = [_CAR_HEAD, root, _CAR_VERSION]
    for cid, data in blocks:
        size = len(cid) + len(data)
        parts += (_UVARINTS[size] if size < len(_UVARINTS) else _uvarint(size), cid, data)
    return b"".join(parts)


# `{"roots": [root], "version": 1}` in 58 bytes, before and after the root's 36.
_CAR_HEAD: Final = b"\x3a\xa2\x65roots\x81" + cbor.LINK_HEAD
_CAR_VERSION: Final = b"\x67version\x01"


def _uvarint(number: int) -> bytes:
    parts = bytearray()
    while number >= 0x80:
        parts.append(number & 0x7F | 0x80)
        number >>= 7
    parts.append(number)
    return bytes(parts)


_UVARINTS: Final = tuple(_uvarint(number) for number in range(4096))  # the sizes of nearly all blocks
