"""The second step: a commit or #sync to `Evidence`, all that its blocks prove without a key.

The checks, in order: limits, the CAR and every hash, the root, the shape of the commit block, whether it
agrees with the message, the shape of the ops, their records, and the tree (`proof`). Any that fails raises
`Refused`: the message as a whole is not what the owner signed.

    blocks (a CAR)                    the message's fields
      └─ root: commit block ◀─ agree ─▶ repo, rev, commit
           └─ data: tree node           since, prevData
                └─ nodes ◀─── proof ──▶ ops: path, cid, prev
                     └─ records         one for each create and update

A message's fields are those of `upstream.envelope`: of the types that it promises, whatever their values.

Source: the sync page of the AT Protocol specification, "Commit validation", and the repository page, "Commit
objects".
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from hashlib import sha256
from typing import Any, Final, NamedTuple

import libipld

from jetstream.atproto.car import Mismatch, checked_blocks, proven
from jetstream.atproto.cbor import Unreadable
from jetstream.atproto.cid import CID_BYTES, Cid
from jetstream.atproto.keys import SIGNATURE_BYTES, PublicKey
from jetstream.atproto.mst import Change, PartialTreeError
from jetstream.atproto.mst_node import EMPTY_CID, KEY_BYTES_MAX
from jetstream.verify import proof
from jetstream.verify.verdict import Refused

# Limits of the protocol for a #commit: bytes of its blocks, and ops.
BLOCKS_BYTES_MAX: Final = 2_000_000
OPS_MAX: Final = 200
# Bytes of a commit block: a DID has 2,048 at most, the other fields 200.
_COMMIT_BYTES_MAX: Final = 4_096
_COMMIT_FIELDS: Final = {"did", "rev", "sig", "data", "prev", "version"}
_COMMIT_VERSION: Final = 3
# What stands before a signature in a commit block: the key `sig`, and the head of a byte string of 64.
_SIGNATURE_FIELD: Final = b"\x63sig\x58\x40"


class Before(Enum):
    """What is known of the tree before a message."""

    PROVEN = "the ops, undone, give `prevData`"
    LEGACY = "the message does not say enough to undo its ops; the tree holds them"
    INCOMPLETE = "tree nodes are missing to undo the ops; the tree holds them"
    FOUND = "the tree holds the ops; they were not undone"
    CLAIMED = "nothing was looked at but the commit block"
    SYNC = "there are no ops"


class Evidence(NamedTuple):
    """What the blocks of one message say, which agree with each other and with the message."""

    did: str
    rev: str
    # The rev before; empty if there is none, or if the message does not say. It is not signed.
    since: str
    # The root of the tree before, as the message claims (`prevData`); None: it does not say. Not signed
    # either.
    prev_root: bytes | None
    # The root of the tree: a CID of 36 bytes.
    root: bytes
    # How far the ops are proven.
    before: Before
    # The commit block without its signature: what is signed.
    unsigned: bytes
    # Of 64 bytes: r and s (`atproto.keys`).
    signature: bytes

    @property
    def is_unproven(self) -> bool:
        """Whether ops can have been left out or exchanged, although it is signed."""
        return self.before is Before.LEGACY or self.before is Before.INCOMPLETE

    def is_signed_by(self, keys: Iterable[PublicKey]) -> bool:
        """Return whether the signature is by one of these keys, which are tried in order."""
        digest = sha256(self.unsigned).digest()
        return any(key.verify(digest, self.signature) for key in keys)


class _Signed(NamedTuple):
    """A commit block, read: the fields of `Evidence` that it has, and no others."""

    did: str
    rev: str
    root: bytes
    unsigned: bytes
    signature: bytes


def examine_commit(fields: Mapping[str, Any], *, full: bool = True) -> Evidence:
    """Check all of a commit but its signature and what came before. Raises Refused.

    Without `full`, ops are looked up in the tree and not undone, and records may be missing. The first
    check that fails gives the reason, in the order of `verdict.REFUSALS`.
    """
    ops = fields["ops"]
    if len(ops) > OPS_MAX:
        raise Refused("limits", f"{len(ops)} ops")
    signed, blocks = _signed_blocks(fields, fields["repo"], fields.get("commit") or b"")
    changes = [_change(op) for op in ops]
    if len(changes) > 1 and len({change.key for change in changes}) < len(changes):
        raise Refused("op", "two ops have one path")
    since, prev_root = _claims(fields)
    if full:
        _require_records(changes, blocks)
        before = _before(blocks, signed.root, ops, changes, prev_root, since)
    else:
        before = _found(blocks, signed.root, changes, Before.FOUND)
    return _evidence(signed, since, prev_root, before)


def examine_sync(fields: Mapping[str, Any]) -> Evidence:
    """Check all of a #sync but its signature and what came before. Raises Refused.

    Of its blocks, only the commit block is read: the root of its CAR, whatever its CID is.
    """
    signed, _ = _signed_blocks(fields, fields["did"], None)
    return _evidence(signed, "", None, Before.SYNC)


def claimed(fields: Mapping[str, Any]) -> Evidence:
    """Return what the commit block of a #commit says; nothing but its hash is checked. Raises Refused.

    It is enough to tell repeats and breaks where upstreams are merged and not verified.
    """
    car, cid = fields.get("blocks"), fields.get("commit")
    if type(car) is not bytes or not isinstance(cid, bytes):
        raise Refused("root", "there are no blocks, or no commit is named")
    block = proven(car, cid) or _checked(car)[1].get(cid, b"")
    return _evidence(_agreeing(block, fields["repo"], fields), *_claims(fields), Before.CLAIMED)


def _claims(fields: Mapping[str, Any]) -> tuple[str, bytes | None]:
    """Return what a #commit says of the one before it: `since` and `prevData`. Raises Refused."""
    since, prev_root = fields.get("since"), fields.get("prevData")
    if prev_root is not None and not _is_cid(prev_root):
        raise Refused("envelope", "prevData is no CID")
    return since if type(since) is str else "", prev_root


def _evidence(signed: _Signed, since: str, prev_root: bytes | None, before: Before) -> Evidence:
    """Return the evidence of a commit block, with what the message says beside it."""
    did, rev, root, unsigned, signature = signed
    return Evidence(did, rev, since, prev_root, root, before, unsigned, signature)


def _signed_blocks(fields: Mapping[str, Any], did: str, commit: object) -> tuple[_Signed, dict[bytes, bytes]]:
    """Return the commit block and all blocks of a message. `commit` must be the root; None: any is."""
    root, blocks = _checked(fields.get("blocks"))
    block = blocks.get(root)
    if block is None or (commit is not None and root != commit):
        raise Refused("root", "the root of the CAR is missing, or is not the commit of the message")
    return _agreeing(block, did, fields), blocks


def _checked(car: object) -> tuple[bytes, dict[bytes, bytes]]:
    """Return the root of a CAR and its blocks, whose hashes are right. Raises Refused."""
    if type(car) is not bytes:
        raise Refused("car", "there are no blocks")
    if len(car) > BLOCKS_BYTES_MAX:
        raise Refused("limits", f"{len(car)} bytes of blocks")
    try:
        return checked_blocks(car)
    except Unreadable as error:
        raise Refused("car", str(error)) from error
    except Mismatch as error:
        raise Refused("hash", str(error)) from error


def _agreeing(block: bytes, did: str, fields: Mapping[str, Any]) -> _Signed:
    """Read a commit block, which must be of the DID and rev of its message. Raises Refused."""
    signed = _signed(block)
    if signed.did != did or signed.rev != fields["rev"]:
        raise Refused("envelope", f"the commit is of {signed.did[:100]} at {signed.rev[:20]}")
    return signed


def _signed(block: bytes) -> _Signed:
    """Read a commit block: `{"did", "rev", "sig", "data", "prev", "version": 3}`, in this order.

    The signature covers the same map without `sig`: it is cut out of the block.
    """
    if len(block) > _COMMIT_BYTES_MAX:
        raise Refused("commit", f"a commit block of {len(block)} bytes")
    try:
        fields = libipld.decode_dag_cbor(block)
        did, rev, signature, root = fields["did"], fields["rev"], fields["sig"], fields["data"]
        # The keys of a commit are sorted by length: `did`, `rev` and `sig` come first. So the field is
        # not searched for within the texts before it, which an account can choose.
        start = block.index(_SIGNATURE_FIELD, 10 + len(did) + len(rev))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Refused("commit", "the root of the CAR is no commit") from error
    # What is cut out must be the signature that was decoded, or the block is not canonical.
    end = start + len(_SIGNATURE_FIELD) + SIGNATURE_BYTES
    if (
        fields.keys() != _COMMIT_FIELDS
        or fields["version"] != _COMMIT_VERSION
        or type(did) is not str
        or type(rev) is not str
        or not _is_cid(root)
        or signature != block[end - SIGNATURE_BYTES : end]
    ):
        raise Refused("commit", "the commit has other fields than one of version 3, or other types")
    # The map has five entries without the signature, so it begins with another byte.
    return _Signed(did, rev, root, b"\xa5" + block[1:start] + block[end:], signature)


def _is_cid(value: object) -> bool:
    """Return whether a decoded value may be a link: 36 bytes. Their content is compared, not parsed."""
    return isinstance(value, bytes) and len(value) == CID_BYTES


def _change(op: Any) -> Change:
    """Return an op as a change of the tree. `before` is None for an op without `prev`. Raises Refused."""
    if type(op) is not dict:
        raise Refused("op", "an op is no map")
    action, path, after, before = op.get("action"), op.get("path"), op.get("cid"), op.get("prev")
    if (
        type(path) is not str
        or (action != "delete" if after is None else action not in ("create", "update") or not _is_cid(after))
        or (before is not None and (action == "create" or not _is_cid(before)))
    ):
        raise Refused("op", f"{_shown(action)} of {_shown(path)} has other fields than such an op")
    key = path.encode()
    if not key or len(key) > KEY_BYTES_MAX:
        raise Refused("op", f"a path of {len(key)} bytes")
    return Change(key, before, after)


def _require_records(changes: Sequence[Change], blocks: Mapping[bytes, bytes]) -> None:
    """Raise Refused unless the record of every create and update is among the blocks."""
    for change in changes:
        if change.after is not None and change.after not in blocks:
            raise Refused("record", f"there is no record of {change.key[:100]!r}")


def _before(
    blocks: Mapping[bytes, bytes],
    root: bytes,
    ops: Sequence[Mapping[str, Any]],
    changes: Sequence[Change],
    prev_root: bytes | None,
    since: str,
) -> Before:
    """Undo the ops, and return what is known of the tree before them. Raises Refused.

    A message of an older producer does not say what the tree was (`prevData`), or what an op has replaced
    (`prev`). It is `LEGACY`, if the tree holds what its ops say. A message that says enough, and is
    contradicted by its own tree, is refused.
    """
    if prev_root is None and since:
        return _found(blocks, root, changes, Before.LEGACY)
    undone, problem, fallback = None, "", Before.LEGACY
    try:
        undone = proof.undo(blocks, root, changes)
    except PartialTreeError:
        fallback = Before.INCOMPLETE
    except ValueError as error:
        problem = str(error)
    # The first commit of a repository has nothing before it.
    if undone == (EMPTY_CID if prev_root is None else prev_root):
        return Before.PROVEN
    says_enough = prev_root is not None and all(op.get("prev") or op["action"] == "create" for op in ops)
    if fallback is Before.LEGACY and says_enough:
        raise Refused("proof", problem or f"undone, the tree is {undone and Cid(undone)}")
    return _found(blocks, root, changes, fallback if says_enough else Before.LEGACY)


def _found(blocks: Mapping[bytes, bytes], root: bytes, changes: Sequence[Change], known: Before) -> Before:
    """Look the ops up in the tree, and return `known` if it holds what they say. Raises Refused."""
    try:
        proof.find(blocks, root, changes)
    except (PartialTreeError, ValueError) as error:
        raise Refused("proof", str(error) or "a node on the way to an op is missing") from error
    return known


def _shown(value: object) -> str:
    """Return what a message says where a text should be, for people. Long texts are cut off."""
    return value[:100] if type(value) is str else type(value).__name__
