"""Verify a commit like a consumer that checks everything, from its bytes and the public key only.

This is the simulator's second opinion, independent of the code that made the frame: it decodes with libipld,
splits the CAR itself, and inverts the operations. Source: the sync page of the AT Protocol specification,
"Commit validation".
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from hashlib import sha256
from typing import Any, Final

import libipld

from jetstream.atproto import keys, mst, mst_load, mst_node
from jetstream.atproto.cid import Cid

_SIGNATURE_FIELD: Final = b"\x63sig\x58\x40"


class BadCommitError(Exception):
    """A commit is not valid."""


def check_commit(body: Mapping[str, Any], multibase: str) -> None:
    """Verify the body of a `#commit` with the public key `multibase`.

    Every block must match its CID. The commit must be signed by the key, and name the account and the
    revision of the message. The loaded part of the tree must be valid and contain what the operations say.
    Inverting them must give `prevData`, or the empty tree for a first commit. Raises BadCommitError.
    """
    roots, blocks = read_car(body["blocks"])
    _check_hashes(blocks)
    if roots[0] != body["commit"]:
        raise BadCommitError(f"the root of the CAR, {roots[0]}, is not the commit {body['commit']}")
    data = _check_signed(blocks[roots[0]], body, multibase)
    try:
        tree = mst_load.load(blocks, data)
        _check_tree(tree)
        changes = [_change(op, blocks) for op in body["ops"]]
        before = mst.invert(tree, changes)
    except (ValueError, mst.PartialTreeError) as error:
        raise BadCommitError(f"{body['repo']} at {body['rev']}: {error}") from error
    expected = body.get("prevData") or mst_node.EMPTY_CID
    if mst.root_cid(before) != expected:
        raise BadCommitError(f"inverted, the tree is {mst.root_cid(before)}, prevData is {expected}")


def read_car(car: bytes) -> tuple[list[Cid], dict[bytes, bytes]]:
    """Return the roots and the blocks of a CAR file. Raises BadCommitError if it is truncated."""
    size, start = _read_uvarint(car, 0)
    header = libipld.decode_dag_cbor(car[start : start + size])
    return [Cid(root) for root in header["roots"]], dict(_read_blocks(car, start + size))


def _read_blocks(car: bytes, start: int) -> Iterator[tuple[bytes, bytes]]:
    while start < len(car):
        size, start = _read_uvarint(car, start)
        end = start + size
        if size < 36 or end > len(car):
            raise BadCommitError(f"a block of {size} bytes at {start} does not fit a CAR of {len(car)}")
        yield car[start : start + 36], car[start + 36 : end]
        start = end


def _read_uvarint(data: bytes, start: int) -> tuple[int, int]:
    value = shift = 0
    for i in range(start, min(start + 9, len(data))):
        value |= (data[i] & 0x7F) << shift
        if data[i] < 0x80:
            return value, i + 1
        shift += 7
    raise BadCommitError(f"no varint at {start} of a CAR of {len(data)} bytes")


def _check_hashes(blocks: Mapping[bytes, bytes]) -> None:
    for cid, data in blocks.items():
        if cid[4:] != sha256(data).digest():
            raise BadCommitError(f"the block of {Cid(cid)} has another hash")


def _check_signed(block: bytes, body: Mapping[str, Any], multibase: str) -> Cid:
    commit = libipld.decode_dag_cbor(block)
    if (commit["did"], commit["rev"], commit["version"]) != (body["repo"], body["rev"], 3):
        raise BadCommitError(f"the commit is {commit['did']} at {commit['rev']}, the message says otherwise")
    at = block.index(_SIGNATURE_FIELD)
    unsigned = b"\xa5" + block[1:at] + block[at + len(_SIGNATURE_FIELD) + keys.SIGNATURE_BYTES :]
    if not keys.verify(multibase, unsigned, commit["sig"]):
        raise BadCommitError(f"{commit['did']} at {commit['rev']}: the signature is not by {multibase}")
    return Cid(commit["data"])


def _check_tree(root: mst_node.Root) -> None:
    """Check the layers, the order of the keys, and that every loaded node is encoded canonically."""
    if not isinstance(root, mst_node.Node) or (not root.keys and root.subtrees != [None]):
        raise BadCommitError("the root of the tree is missing, or has a subtree but no key")
    last = b""
    for node in _loaded_nodes(root):
        if mst_node.encode_node(node) != node.block:
            raise BadCommitError(f"the tree node {node.cid} is not encoded canonically")
        if any(mst_node.layer_of(key) != node.layer for key in node.keys):
            raise BadCommitError(f"a key of {node.cid} is in the wrong layer")
    for key in _loaded_keys(root):
        if key <= last:
            raise BadCommitError(f"{key!r} comes after {last!r} in the tree")
        last = key


def _loaded_nodes(node: mst_node.Subtree) -> Iterator[mst_node.Node]:
    if isinstance(node, mst_node.Node):
        yield node
        for sub in node.subtrees:
            yield from _loaded_nodes(sub)


def _loaded_keys(node: mst_node.Subtree) -> Iterator[bytes]:
    if isinstance(node, mst_node.Node):
        yield from _loaded_keys(node.subtrees[0])
        for key, sub in zip(node.keys, node.subtrees[1:], strict=True):
            yield key
            yield from _loaded_keys(sub)


def _change(op: Mapping[str, Any], blocks: Mapping[bytes, bytes]) -> mst.Change:
    before, after = op.get("prev"), op["cid"]
    shape = (before is not None, after is not None)
    if shape != {"create": (False, True), "update": (True, True), "delete": (True, False)}[op["action"]]:
        raise BadCommitError(f"{op['action']} of {op['path']} has the wrong fields of cid and prev")
    if after is not None and after not in blocks:
        raise BadCommitError(f"the record of {op['path']} is missing")
    return mst.Change(op["path"].encode(), before and Cid(before), after and Cid(after))
