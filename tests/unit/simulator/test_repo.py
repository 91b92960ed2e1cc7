from __future__ import annotations

from typing import Any

import libipld
import pytest
from tests.fixtures import captured_frames, json_of

from jetstream.atproto import mst, mst_load, mst_node
from jetstream.atproto.car import Block, write_car
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import cid_of
from jetstream.simulator import check, frames
from jetstream.simulator.repo import DELETE, Repo, Revision, Write
from jetstream.simulator.signing import K256Key, P256Key

DID = "did:plc:" + "a" * 24


def write(action: str, path: str, text: str = "") -> Write:
    if action == DELETE:
        return Write(action, path, None, b"")
    record: dict[str, object] = {"$type": path.partition("/")[0], "text": text}
    return Write(action, path, record, encode_cbor(record))


def body(revision: Revision) -> dict[str, Any]:
    ops = [op._asdict() for op in revision.ops]
    return {
        "repo": DID,
        "rev": revision.rev,
        "commit": revision.commit.cid,
        "ops": ops,
        "blocks": frames.commit_car(revision),
        "prevData": revision.prev_data,
    }


@pytest.mark.parametrize("curve", [K256Key, P256Key])
def test_a_history_of_commits_passes_the_check(curve: type[K256Key | P256Key]) -> None:
    key = curve(b"\x07" * 32)
    account = Repo(DID, key)
    histories = [
        [write("create", f"app.test.note/{n}", str(n)) for n in range(100)],
        [write("update", "app.test.note/7", "again"), write("delete", "app.test.note/50")],
        [write("create", "app.test.note/self", "0"), write("delete", "app.test.note/3")],
        [write("delete", f"app.test.note/{n}") for n in range(100) if n not in (3, 50)],
        [write("delete", "app.test.note/self")],
    ]
    last = None
    for number, writes in enumerate(histories):
        revision = account.apply(writes, f"3kwemukb2222{number + 2}")
        check.check_commit(body(revision), key.multibase)
        assert revision.since == last
        last = revision.rev
    assert account.tree.cid == mst_node.EMPTY_CID


def test_the_first_commit_has_nothing_before_it() -> None:
    revision = Repo(DID, K256Key(b"\x07" * 32)).apply([write("create", "app.test.note/1")], "3kwemukb22222")
    assert (revision.since, revision.prev_data) == (None, None)


def test_filling_gives_the_tree_that_one_commit_of_all_gives() -> None:
    writes = [write("create", f"app.test.note/{n}", str(n)) for n in range(150)]
    filled, written = Repo(DID, K256Key(b"\x07" * 32)), Repo(DID, K256Key(b"\x07" * 32))
    filled.fill(((item.path, item.block) for item in writes), "3kwemukb22222")
    written.apply(writes, "3kwemukb22222")
    assert filled.head == written.head
    assert filled.export() == written.export()


def test_an_export_holds_the_commit_every_node_and_every_record_once() -> None:
    account = Repo(DID, K256Key(b"\x07" * 32))
    account.apply([write("create", f"app.test.note/{n}", str(n % 10)) for n in range(40)], "3kwemukb22222")
    (root,), blocks = check.read_car(account.export())
    assert account.head is not None
    assert root == account.head.cid
    tree = mst_load.load(blocks, account.tree.cid)
    assert {key.decode(): blocks[value] for key, value in mst.items(tree)} == account.records
    assert len(blocks) == 1 + len(list(mst.nodes(tree))) + 10


def test_a_new_key_signs_the_same_tree() -> None:
    account = Repo(DID, K256Key(b"\x07" * 32))
    account.apply([write("create", "app.test.note/1")], "3kwemukb22222")
    block = account.resign(P256Key(b"\x08" * 32), "3kwemukb22223")
    commit = libipld.decode_dag_cbor(block.data)
    assert (commit["rev"], commit["data"]) == ("3kwemukb22223", account.tree.cid)
    revision = account.apply([write("create", "app.test.note/2")], "3kwemukb22224")
    check.check_commit(body(revision), P256Key(b"\x08" * 32).multibase)


def invalid(revision: Revision) -> dict[str, dict[str, Any]]:
    """Give the body of a commit with one thing wrong, by what is wrong."""
    good = body(revision)
    root = revision.commit.cid
    (first, *rest) = revision.ops
    return {
        "has another hash": good | {"blocks": write_car(root, [Block(root, b"\xa0")])},
        "is not the commit": good | {"commit": cid_of(b"\xa0")},
        "the message says otherwise": good | {"rev": "3kwemukb22zzz"},
        "does not fit": good | {"blocks": good["blocks"][:-1]},
        "is missing": good | {"blocks": write_car(root, [*revision.nodes, revision.commit])},
        "prevData": good | {"prevData": cid_of(b"\xa0")},
        "the operation says": good
        | {"ops": [first._replace(path="app.test.note/nex")._asdict(), *[op._asdict() for op in rest]]},
        "wrong fields of cid and prev": good | {"ops": [first._replace(prev=first.cid)._asdict()]},
        "the root of the tree": good | {"blocks": write_car(root, [*revision.records, revision.commit])},
    }


def test_the_check_finds_every_kind_of_error() -> None:
    key = K256Key(b"\x07" * 32)
    account = Repo(DID, key)
    account.apply([write("create", f"app.test.note/{n}", str(n)) for n in range(30)], "3kwemukb22222")
    revision = account.apply([write("create", "app.test.note/new", "text")], "3kwemukb22223")
    check.check_commit(body(revision), key.multibase)
    with pytest.raises(check.BadCommitError, match="the signature is not by"):
        check.check_commit(body(revision), K256Key(b"\x08" * 32).multibase)
    for problem, wrong in invalid(revision).items():
        with pytest.raises(check.BadCommitError, match=problem):
            check.check_commit(wrong, key.multibase)


def test_the_check_accepts_captured_frames() -> None:
    documents = json_of("firehose/did_docs.json")
    for frame in captured_frames():
        _, commit = libipld.decode_dag_cbor_multi(frame)
        (method,) = documents[commit["repo"]]["verificationMethod"]
        check.check_commit(commit, method["publicKeyMultibase"])
