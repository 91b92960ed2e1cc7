"""Faults that forge a commit: it is invalid in a way that only a consumer that verifies detects."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Iterator
from random import Random
from typing import Final

from jetstream.atproto import mst, mst_load, mst_node
from jetstream.atproto.car import Block
from jetstream.atproto.cid import LINK_HEAD, Cid, cid_of
from jetstream.atproto.keys import SIGNATURE_BYTES
from jetstream.atproto.tid import tid, tid_us
from jetstream.simulator.added import flip
from jetstream.simulator.frames import Commit
from jetstream.simulator.repo import Revision
from jetstream.simulator.signing import SIGNATURE_FIELD, SigningKey, high_s, sign_commit

_HOUR_US: Final = 3_600_000_000
_FUTURE_US: Final = (
    100 * 365 * 24 * _HOUR_US
)  # ahead of any clock, also of a consumer's in a world of the past
Forge = Callable[[Commit, SigningKey, Random], Commit]


def revised(message: Commit, **changes: object) -> Commit:
    """Return a commit with some fields of its revision changed."""
    return message._replace(revision=message.revision._replace(**changes))  # type: ignore[arg-type]


def _signed(message: Commit, change: Callable[[bytes], bytes]) -> Commit:
    """Replace the signature in the commit block, and its CID."""
    data = message.revision.commit.data
    at = data.index(SIGNATURE_FIELD) + len(SIGNATURE_FIELD)
    end = at + SIGNATURE_BYTES
    block = data[:at] + change(data[at:end]) + data[end:]
    return revised(message, commit=Block(cid_of(block), block))


def _too_big(message: Commit, _key: SigningKey, _rng: Random) -> Commit:
    return message._replace(too_big=True)


def _bad_signature(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    return _signed(message, lambda signature: flip(signature, 0, len(signature), rng))


def _high_s(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    return _signed(message, lambda signature: high_s(signature, key.order))


def _broken_chain(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    """Let the commit follow one that does not exist."""
    return revised(message, prev_data=cid_of(rng.randbytes(8)), since=tid(rng.getrandbits(50), 0))


def _rev_back(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    """Sign the same tree with a revision one hour older, and older than the last one."""
    assert message.revision.since is not None, "it is the commit after one that is known"
    last_us = tid_us(message.revision.since)
    return _dated(message, min(tid_us(message.revision.rev) - _HOUR_US, last_us - 1), key)


def _future_rev(message: Commit, key: SigningKey, _rng: Random) -> Commit:
    """Sign the same tree with a revision a hundred years ahead."""
    return _dated(message, tid_us(message.revision.rev) + _FUTURE_US, key)


def _dated(message: Commit, time_us: int, key: SigningKey) -> Commit:
    rev = tid(time_us, 0)
    data = data_of(message.revision.commit.data)
    return revised(message, rev=rev, commit=sign_commit(message.did, rev, data, key))


def _no_prev_data(message: Commit, _key: SigningKey, _rng: Random) -> Commit:
    """Leave out what says what was before, as servers did until 2025."""
    ops = tuple(op._replace(prev=None) for op in message.revision.ops)
    return revised(message, prev_data=None, ops=ops)


def _missing_node(message: Commit, _key: SigningKey, rng: Random) -> Commit:
    """Leave out a tree node that is needed only to undo the operations."""
    cid = rng.choice(nodes_to_undo(message.revision))
    return revised(message, nodes=tuple(node for node in message.revision.nodes if node[0] != cid))


def nodes_to_undo(revision: Revision) -> list[Cid]:
    """Return the nodes that are needed to undo the operations of a commit, and not to find them."""
    blocks: dict[bytes, bytes] = dict(revision.nodes)
    data = data_of(revision.commit.data)
    found = {data}
    for op in revision.ops:
        found.update(_path(mst_load.load(blocks, data), op.path.encode()))
    others = [cid for cid, _ in revision.nodes if cid not in found]
    return [cid for cid in others if not can_be_undone(revision, without=cid)]


def _path(node: mst_node.Subtree, key: bytes) -> Iterator[Cid]:
    """Yield the loaded nodes on the way to a key."""
    while isinstance(node, mst_node.Node):
        yield node.cid
        i = bisect_left(node.keys, key)
        node = None if i < len(node.keys) and node.keys[i] == key else node.subtrees[i]


def can_be_undone(revision: Revision, without: Cid | None = None) -> bool:
    """Return whether the nodes of a commit, without one of them, suffice to undo or refute its operations."""
    blocks: dict[bytes, bytes] = {cid: block for cid, block in revision.nodes if cid != without}
    changes = [mst.Change(op.path.encode(), op.prev, op.cid) for op in revision.ops]
    try:
        mst.invert(mst_load.load(blocks, data_of(revision.commit.data)), changes)
    except mst.PartialTreeError:
        return False
    except ValueError:  # the tree holds something else than an operation says
        return True
    return True


def data_of(commit: bytes) -> Cid:
    """Return the CID of the tree in a commit block."""
    at = commit.index(b"\x64data" + LINK_HEAD) + 5 + len(LINK_HEAD)
    return Cid(commit[at : at + 36])


FORGED: Final[dict[str, Forge]] = {
    "too_big": _too_big,
    "bad_signature": _bad_signature,
    "high_s": _high_s,
    "broken_chain": _broken_chain,
    "rev_back": _rev_back,
    "future_rev": _future_rev,
    "no_prev_data": _no_prev_data,
    "missing_node": _missing_node,
}
