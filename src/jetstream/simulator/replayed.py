"""The repositories of a recording, as far as its frames tell.

A recording has of each repository the newest commit, and the tree nodes and records that its frames carried.
So an exported repository has the commit as its root, and lacks the blocks that were there before.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import libipld

from jetstream.atproto import mst_load, mst_node
from jetstream.atproto.car import write_car
from jetstream.atproto.cid import CID_BYTES, Cid, cid_of
from jetstream.simulator import check, recording
from jetstream.simulator.xrpc import HostedRepo, Json


class RecordedRepos:
    """The repositories of a recording, which is read when they are first asked for, and for each export."""

    def __init__(self, path: Path, documents: Mapping[str, object]) -> None:
        self._path = path
        self._documents = documents  # by DID, as far as they are known
        self._repos: dict[str, HostedRepo] | None = None  # by DID; None until they are asked for
        self._seq = 0  # of the last frame
        self._reading = asyncio.Lock()  # the file is read once at a time

    async def all(self) -> Iterable[HostedRepo]:
        """Return all of them, in the order of their first frames."""
        return (await self._index()).values()

    async def find(self, did: str) -> HostedRepo | None:
        """Return one of them."""
        return (await self._index()).get(did)

    async def with_collection(self, collection: str) -> Iterable[HostedRepo]:  # noqa: ARG002 - part of the interface
        """Return none: a recording does not tell what was written before it."""
        return ()

    async def export(self, did: str) -> bytes:
        """Return what is known of a repository as a CAR file: its newest commit, and all that it reaches."""
        repo = (await self._index())[did]
        async with self._reading:
            blocks = await asyncio.to_thread(_blocks_of, self._path, did)
        return _reachable(blocks, repo)

    async def hosts(self, own: str) -> Sequence[Json]:
        """Return the PDSes that the documents name; without documents, this host."""
        repos = await self._index()
        named = Counter(_host_in(self._documents.get(did)) or own for did in repos)
        return [
            {"hostname": name, "seq": self._seq, "accountCount": count, "status": "active"}
            for name, count in (named or {own: 0}).items()
        ]

    async def _index(self) -> dict[str, HostedRepo]:
        async with self._reading:
            if self._repos is not None:
                return self._repos
            repos, self._seq = await asyncio.to_thread(_read, self._path)
            self._repos = repos
            return repos


def _read(path: Path) -> tuple[dict[str, HostedRepo], int]:
    """Return what the frames of a recording say of each repository, by DID, and the last number."""
    repos: dict[str, HostedRepo] = {}
    last = 0
    for frame in recording.read(path):
        body = recording.body_of(frame)
        seq, did = body.get("seq"), _did_of(body)
        if not isinstance(did, str) or not isinstance(seq, int):
            continue
        last = max(last, seq)
        repos[did] = _after(repos.get(did) or HostedRepo(did, True, None, None, None), body)
    return repos, last


def _after(repo: HostedRepo, body: Mapping[str, Any]) -> HostedRepo:
    """Return what is known of a repository after a message."""
    if isinstance(active := body.get("active"), bool):
        status = body.get("status")
        return repo._replace(active=active, status=status if isinstance(status, str) else None)
    found = _commit_in(body)
    if found is None or (repo.rev is not None and found[0] < repo.rev):
        return repo
    return repo._replace(rev=found[0], head=str(found[1]))


def _commit_in(body: Mapping[str, Any]) -> tuple[str, Cid] | None:
    """Return the revision and the CID of the commit in a message; None if there is no intact one."""
    roots, blocks = _car_of(body)
    block = blocks.get(roots[0]) if roots else None
    if block is None or roots[0] != cid_of(block):
        return None
    try:
        commit = libipld.decode_dag_cbor(block)
    except (ValueError, RecursionError):
        return None
    match commit:
        case {"did": did, "rev": str(rev), "data": bytes()} if did == _did_of(body):
            return rev, roots[0]
    return None


def _did_of(body: Mapping[str, Any]) -> object:
    return body.get("repo", body.get("did"))


def _car_of(body: Mapping[str, Any]) -> tuple[list[Cid], dict[bytes, bytes]]:
    """Return the roots and the blocks in a message; none if it has no CAR, or a damaged one."""
    car = body.get("blocks")
    if not isinstance(car, bytes):
        return [], {}
    try:
        return check.read_car(car)
    except (ValueError, IndexError, KeyError, TypeError, RecursionError, check.BadCommitError):
        return [], {}


def _blocks_of(path: Path, did: str) -> dict[bytes, bytes]:
    """Return all intact blocks of a repository that a recording has."""
    blocks: dict[bytes, bytes] = {}
    written = did.encode()
    for frame in recording.read(path):
        if written in frame:  # most frames are of others, and are not decoded
            body = recording.body_of(frame)
            if _did_of(body) == did:
                found = _car_of(body)[1]
                blocks |= {cid: block for cid, block in found.items() if cid == cid_of(block)}
    return blocks


def _reachable(blocks: Mapping[bytes, bytes], repo: HostedRepo) -> bytes:
    """Return a CAR of the newest commit, the known nodes of its tree, and the known records in them."""
    assert repo.head is not None, "only a repository with a commit is exported"
    root = _cid(repo.head)
    data = Cid(libipld.decode_dag_cbor(blocks[root])["data"])
    return write_car(root, ((root, blocks[root]), *_tree(blocks, data)))


def _cid(text: str) -> Cid:
    """Return the bytes of a CID that is written in base 32."""
    return Cid(bytes(libipld.decode_multibase(text)[1])[:CID_BYTES])


def _tree(blocks: Mapping[bytes, bytes], data: Cid) -> Iterator[tuple[Cid, bytes]]:
    """Yield the known nodes of a tree and then the known records; nothing for a damaged tree."""
    try:
        nodes = list(_nodes(mst_load.load(blocks, data)))
    except (ValueError, KeyError, TypeError, RecursionError):
        return
    yield from ((node.cid, node.block) for node in nodes)
    records = dict.fromkeys(cid for node in nodes for cid in node.values)
    yield from ((cid, blocks[cid]) for cid in records if cid in blocks)


def _nodes(node: mst_node.Subtree) -> Iterator[mst_node.Node]:
    """Yield the nodes whose blocks are known, parents first."""
    if isinstance(node, mst_node.Node):
        yield node
        for sub in node.subtrees:
            yield from _nodes(sub)


def _host_in(document: object) -> str | None:
    """Return the host and port of the PDS that a document names."""
    match document:
        case {"service": [{"serviceEndpoint": str(url)}, *_]}:
            return urlsplit(url).netloc or None
    return None
