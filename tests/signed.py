"""Signed repositories for tests of what verifies them, and the public test suite of trees."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import libipld
import zstandard

from jetstream.atproto import mst, mst_node
from jetstream.atproto.car import Block
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.atproto.keys import PublicKey, public_key
from jetstream.atproto.mst import Change
from jetstream.atproto.tid import tid
from jetstream.simulator import check, frames
from jetstream.simulator.repo import Repo, Revision, Write, covering_proof
from jetstream.simulator.signing import K256Key, SigningKey, sign_commit
from jetstream.upstream.envelope import read_envelope

DID = "did:plc:" + "a" * 24
NOTE = "app.test.note"
TIME = "2026-01-01T00:00:00.000Z"
START_US = 1_767_225_600_000_000
KEY = K256Key(b"\x07" * 32)


def rev(number: int) -> str:
    """Return one of revs that rise with their number."""
    return tid(START_US + number, 0)


def public(key: SigningKey = KEY) -> PublicKey:
    """Return the public key of a private one."""
    return public_key(parse_multikey(key.multibase))


class Account:
    """A repository, whose commits become the fields of messages."""

    def __init__(self, key: SigningKey = KEY, did: str = DID) -> None:
        self.repo = Repo(did, key)
        self.number = 0

    def write(self, *writes: tuple[str, str, str], at: int | None = None) -> Revision:
        """Commit writes: action, rkey and text."""
        self.number = self.number + 1 if at is None else at
        return self.repo.apply([_write(*each) for each in writes], rev(self.number))

    def create(self, *rkeys: str, at: int | None = None) -> Revision:
        """Commit new records."""
        return self.write(*(("create", rkey, "") for rkey in rkeys), at=at)

    def sync(self) -> dict[str, Any]:
        """Return the fields of a #sync of the present commit."""
        assert self.repo.head is not None
        assert self.repo.rev is not None
        message = frames.Sync(self.repo.did, TIME, self.repo.rev, self.repo.head)
        return dict(read_envelope(frames.encode(message, 1)).fields)


def _write(action: str, rkey: str, text: str) -> Write:
    if action == "delete":
        return Write(action, f"{NOTE}/{rkey}", None, b"")
    record: dict[str, object] = {"$type": NOTE, "text": text}
    return Write(action, f"{NOTE}/{rkey}", record, encode_cbor(record))


def fields_of(revision: Revision, did: str = DID, **changed: Any) -> dict[str, Any]:
    """Return the fields of the message of a commit, as they are decoded, with some of them changed."""
    message = frames.Commit(did, TIME, revision)
    return dict(read_envelope(frames.encode(message, 1)).fields) | changed


def resigned(revision: Revision, root: Cid, key: SigningKey = KEY, did: str = DID) -> Revision:
    """Return a revision whose commit has another tree root, signed."""
    return revision._replace(commit=sign_commit(did, revision.rev, root, key))


def with_commit(revision: Revision, data: bytes) -> Revision:
    """Return a revision with another commit block."""
    return revision._replace(commit=Block(cid_of(data), data))


def tree_of(contents: Mapping[bytes, Cid]) -> mst_node.Node:
    """Return the encoded tree of some keys."""
    root = mst.empty()
    for key, value in contents.items():
        root, _ = mst.put(root, key, value)
    mst.encode_changed(root)
    return root


def apply(root: mst_node.Node, changes: Iterable[Change]) -> mst_node.Node:
    """Apply changes to a tree, and encode it."""
    top: mst_node.Root = root
    for change in changes:
        if change.after is None:
            top, before = mst.remove(top, change.key)
        else:
            top, before = mst.put(top, change.key, change.after)
        assert before == change.before
    assert isinstance(top, mst_node.Node)
    mst.encode_changed(top)
    return top


def names(root: mst_node.Node) -> set[Cid]:
    """Return the CIDs of all nodes."""
    return {node.cid for node in mst.nodes(root)}


def carried(old: set[Cid], after: mst_node.Node, changes: Iterable[Change]) -> dict[bytes, bytes]:
    """Return the blocks that a commit carries: what is new, and the cover of every changed key."""
    sent = [node for node in mst.nodes(after) if node.cid not in old]
    sent += [node for change in changes for node in covering_proof(after, change.key)]
    return {node.cid: node.block for node in sent}


@cache
def parse_cid(text: str) -> Cid:
    """Return a CID of its text."""
    return Cid(libipld.decode_multibase(text)[1])


class Suite:
    """The public test suite of tree differences: its trees by file name, and its cases."""

    def __init__(self, archive: Path) -> None:
        self.trees: dict[str, dict[bytes, bytes]] = {}
        self.roots: dict[str, Cid] = {}
        self.cases: list[dict[str, Any]] = []
        raw = zstandard.ZstdDecompressor().decompressobj().decompress(archive.read_bytes())
        with tarfile.open(fileobj=io.BytesIO(raw)) as tar:
            for name, data in self._files(tar):
                if name.endswith(".car"):
                    (self.roots[name],), self.trees[name] = check.read_car(data)
                elif "/tests/" in f"/{name}" and name.endswith(".json"):
                    self.cases.append(json.loads(data))

    @staticmethod
    def _files(tar: tarfile.TarFile) -> Iterator[tuple[str, bytes]]:
        for member in tar:
            file = tar.extractfile(member)
            if file is not None:
                yield member.name.removeprefix("./"), file.read()

    @staticmethod
    def sides(case: Mapping[str, Any]) -> tuple[str, str]:
        """Return the names of the trees before and after."""
        before, after = (case["inputs"][side].removeprefix("./") for side in ("mst_a", "mst_b"))
        return before, after

    @staticmethod
    def changes(case: Mapping[str, Any]) -> list[Change]:
        """Return the operations from one tree to the other."""
        return [
            Change(
                op["rpath"].encode(),
                op["old_value"] and parse_cid(op["old_value"]),
                op["new_value"] and parse_cid(op["new_value"]),
            )
            for op in case["results"]["record_ops"]
        ]

    @staticmethod
    def minimal(case: Mapping[str, Any], blocks: Mapping[bytes, bytes]) -> dict[bytes, bytes]:
        """Return the smallest set of nodes of the tree after that proves the operations."""
        known = {parse_cid(name) for name in case["results"]["inductive_proof_nodes"]}
        return {name: block for name, block in blocks.items() if name in known}
