from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
from tests.builders import Raw, car, dag_cbor, from_json, nested, uvarint
from tests.fixtures import captured_frames, from_scenario, json_of
from tests.signed import DID, KEY, NOTE, Account, fields_of, public, resigned, rev, with_commit

from jetstream.atproto.car import Block, write_car
from jetstream.atproto.cid import cid_of, raw_cid
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.atproto.keys import public_key
from jetstream.identity.documents import document_key
from jetstream.simulator.repo import Revision
from jetstream.simulator.signing import P256Key, high_s
from jetstream.upstream.envelope import read_envelope
from jetstream.verify.commit import Before, claimed, examine_commit, examine_sync
from jetstream.verify.verdict import REFUSALS, Refused


def reason(fields: dict[str, Any], *, full: bool = True) -> str:
    """Return why a commit is refused."""
    with pytest.raises(Refused) as refused:
        examine_commit(fields, full=full)
    assert refused.value.reason in REFUSALS
    assert len(str(refused.value)) < 500
    return refused.value.reason


@pytest.fixture
def revision(account: Account) -> Revision:
    return account.create("new")


def test_every_captured_frame_is_proven_and_signed() -> None:
    documents = json_of("firehose/did_docs.json")
    for frame in captured_frames():
        fields = read_envelope(frame).fields
        evidence = examine_commit(fields)
        assert evidence.before is Before.PROVEN
        assert evidence.is_signed_by([public_key(document_key(evidence.did, documents[evidence.did]))])
        assert evidence.rev == fields["rev"]
        assert examine_commit(fields, full=False) == evidence._replace(before=Before.FOUND)
        assert claimed(fields) == evidence._replace(before=Before.CLAIMED)


@pytest.mark.parametrize(
    ("name", "before"),
    [("post_lifecycle", Before.PROVEN), ("post_lifecycle_legacy", Before.LEGACY), ("legacy", Before.LEGACY)],
)
def test_the_commits_of_the_relay_scenarios_are_authentic(name: str, before: Before) -> None:
    messages, multibase = from_scenario(name)
    commits = [fields for kind, fields in messages if kind == "#commit"]
    assert commits
    for fields in commits:
        evidence = examine_commit(fields)
        assert evidence.before is before
        assert evidence.is_signed_by([public_key(parse_multikey(multibase))])


@pytest.mark.parametrize("seq", [4621317030, 4621317332, 4621332152, 4623075231])
def test_captured_commits_from_before_prev_data_are_legacy(seq: int) -> None:
    fields = from_json(json_of(f"commits/firehose_commit_{seq}.json"))
    assert examine_commit(fields).before is Before.LEGACY


def test_the_sync_of_a_relay_scenario_is_authentic() -> None:
    messages, multibase = from_scenario("account_lifecycle")
    [fields] = [fields for kind, fields in messages if kind == "#sync"]
    assert examine_sync(fields).is_signed_by([public_key(parse_multikey(multibase))])


def test_a_commit_of_many_ops_is_proven(account: Account) -> None:
    writes = [("create", f"new{n}", "") for n in range(100)]
    writes += [("update", f"{n}", "again") for n in range(30)] + [
        ("delete", f"{n}", "") for n in range(30, 60)
    ]
    evidence = examine_commit(fields_of(account.write(*writes)))
    assert evidence.before is Before.PROVEN
    assert evidence.is_signed_by([public()])


def test_the_first_commit_and_one_without_ops_are_proven() -> None:
    account = Account()
    first = examine_commit(fields_of(account.create("1")))
    assert (first.before, first.since, first.prev_root) == (Before.PROVEN, "", None)
    assert examine_commit(fields_of(account.write())).before is Before.PROVEN


def test_another_key_has_not_signed_it(revision: Revision) -> None:
    evidence = examine_commit(fields_of(revision))
    other = public(P256Key(b"\x01" * 32))
    assert evidence.is_signed_by([other, public()])
    assert not evidence.is_signed_by([other])
    assert not evidence.is_signed_by([])
    high = evidence._replace(signature=high_s(evidence.signature, KEY.order))
    assert not high.is_signed_by([public()])


def test_a_sync_is_its_commit(account: Account) -> None:
    evidence = examine_sync(account.sync())
    assert (evidence.did, evidence.rev, evidence.before) == (DID, account.repo.rev, Before.SYNC)
    assert evidence.root == account.repo.tree.cid
    assert evidence.is_signed_by([public()])
    with pytest.raises(Refused, match="envelope"):
        examine_sync(account.sync() | {"rev": rev(77)})
    with pytest.raises(Refused, match="envelope"):
        examine_sync(account.sync() | {"did": "did:web:other.example"})


class TestLimits:
    def test_ops(self, revision: Revision) -> None:
        fields = fields_of(revision)
        assert reason(fields | {"ops": fields["ops"] * 201}) == "limits"

    def test_bytes(self, revision: Revision) -> None:
        fields = fields_of(revision)
        assert reason(fields | {"blocks": fields["blocks"] + bytes(2_000_001)}) == "limits"


class TestCar:
    @pytest.mark.parametrize(
        "blocks", [None, "text", b"", b"\x00", car([], {"version": 1}), car([], {"roots": [], "version": 1})]
    )
    def test_what_is_no_car(self, blocks: object, revision: Revision) -> None:
        assert reason(fields_of(revision, blocks=blocks)) == "car"

    @pytest.mark.parametrize("roots", [{"0": 1}, "text", [7], ["x"], [[]]])
    def test_roots_that_are_no_cids(self, roots: object, revision: Revision) -> None:
        assert reason(fields_of(revision, blocks=car([], {"roots": roots, "version": 1}))) in {"car", "root"}

    def test_every_place_where_it_can_end(self, revision: Revision) -> None:
        fields = fields_of(revision)
        for size in range(0, len(fields["blocks"]), 7):
            assert reason(fields | {"blocks": fields["blocks"][:size]}) in {"car", "root", "record", "proof"}

    def test_any_bit_of_a_block(self, revision: Revision) -> None:
        fields = fields_of(revision)
        blocks = fields["blocks"]
        for at in range(60, len(blocks), 97):
            flipped = blocks[:at] + bytes((blocks[at] ^ 4,)) + blocks[at + 1 :]
            assert reason(fields | {"blocks": flipped}) in {"car", "hash"}

    def test_a_header_of_its_own(self, revision: Revision) -> None:
        """With two roots, the first one counts."""
        fields = fields_of(revision)
        header = dag_cbor({"roots": [_link(revision.commit.cid), _link(cid_of(b""))], "version": 1})
        rest = fields["blocks"][59:]
        evidence = examine_commit(fields | {"blocks": uvarint(len(header)) + header + rest})
        assert evidence == examine_commit(fields)

    def test_a_blob_among_the_blocks(self, revision: Revision) -> None:
        blob = b"an image"
        section = raw_cid(cid_of(blob)[4:]) + blob
        fields = fields_of(revision)
        more = fields["blocks"] + uvarint(len(section)) + section
        assert examine_commit(fields | {"blocks": more}) == examine_commit(fields)
        wrong = raw_cid(cid_of(b"")[4:]) + blob
        assert reason(fields | {"blocks": fields["blocks"] + uvarint(len(wrong)) + wrong}) == "hash"


def _link(cid: bytes) -> Raw:
    return Raw(b"\xd8\x2a\x58\x25\x00" + cid)


class TestRoot:
    def test_another_commit_than_the_message_names(self, revision: Revision) -> None:
        assert reason(fields_of(revision, commit=cid_of(b"other"))) == "root"

    @pytest.mark.parametrize("commit", [None, b"", "text", 7])
    def test_no_commit_in_the_message(self, commit: object, revision: Revision) -> None:
        assert reason(fields_of(revision, commit=commit)) == "root"

    def test_no_block_of_the_root(self, revision: Revision) -> None:
        blocks = write_car(revision.commit.cid, [Block(*node) for node in revision.nodes])
        assert reason(fields_of(revision, blocks=blocks)) == "root"


COMMIT = {
    "did": DID,
    "rev": rev(2),
    "sig": bytes(64),
    "data": Raw(_link(cid_of(b""))),
    "prev": None,
    "version": 3,
}


class TestCommitBlock:
    @pytest.mark.parametrize(
        "changed",
        [
            {"version": 2},
            {"version": "3"},
            {"did": 7},
            {"rev": None},
            {"sig": bytes(63)},
            {"sig": "x" * 64},
            {"sig": None},
            {"data": None},
            {"data": b"root"},
            {"data": "x" * 36},
            {"more": 1},
        ],
    )
    def test_other_fields_and_types(self, changed: dict[str, object], revision: Revision) -> None:
        block = dag_cbor(COMMIT | changed)
        assert reason(fields_of(with_commit(revision, block))) == "commit"

    @pytest.mark.parametrize("name", COMMIT)
    def test_a_field_that_is_missing(self, name: str, revision: Revision) -> None:
        block = dag_cbor({key: value for key, value in COMMIT.items() if key != name})
        assert reason(fields_of(with_commit(revision, block))) == "commit"

    @pytest.mark.parametrize(
        "block", [b"", b"\x80", b"\xf6", dag_cbor("text"), nested(10_000), b"\x81" * 9_000]
    )
    def test_what_is_no_map(self, block: bytes, revision: Revision) -> None:
        assert reason(fields_of(with_commit(revision, block))) == "commit"

    def test_fields_in_another_order(self, revision: Revision) -> None:
        data = revision.commit.data
        at = data.index(b"\x63rev")
        swapped = data[:1] + data[at : at + 18] + data[1:at] + data[at + 18 :]
        assert reason(fields_of(with_commit(revision, swapped))) == "commit"

    def test_a_root_of_the_tree_that_is_no_cid(self, revision: Revision) -> None:
        """Of a link and a byte string of 36 bytes, the decoder makes the same."""
        block = dag_cbor(COMMIT | {"rev": revision.rev, "data": b"\xff" * 36})
        fields = fields_of(with_commit(revision, block), prevData=b"\xee" * 36)
        assert reason(fields | {"ops": []}) == "proof"


class TestEnvelope:
    def test_another_did_or_rev(self, revision: Revision) -> None:
        assert reason(fields_of(revision, repo="did:web:other.example")) == "envelope"
        assert reason(fields_of(revision, rev=rev(99))) == "envelope"

    @pytest.mark.parametrize("prev_root", [b"", "text", 7, [1]])
    def test_prev_data_that_is_no_cid(self, prev_root: object, revision: Revision) -> None:
        assert reason(fields_of(revision, prevData=prev_root)) == "envelope"

    @pytest.mark.parametrize("since", ["", None, 7, b"x"])
    def test_no_since(self, since: object, revision: Revision) -> None:
        assert examine_commit(fields_of(revision, since=since)).since == ""


class TestOps:
    @pytest.mark.parametrize(
        "changed",
        [
            {"action": "upsert"},
            {"action": None},
            {"action": ["create"]},
            {"action": "delete"},
            {"action": "update", "prev": b"x"},
            {"cid": None},
            {"cid": b"x"},
            {"cid": "text"},
            {"prev": cid_of(b"")},
            {"path": None},
            {"path": ""},
            {"path": "x" * 1_025},
            {"path": 7},
        ],
    )
    def test_a_malformed_op(self, changed: dict[str, Any], revision: Revision) -> None:
        fields = fields_of(revision)
        assert reason(fields | {"ops": [fields["ops"][0] | changed]}) == "op"

    @pytest.mark.parametrize("op", [None, 7, "create", [], b""])
    def test_what_is_no_op(self, op: object, revision: Revision) -> None:
        assert reason(fields_of(revision, ops=[op])) == "op"

    def test_two_ops_of_one_path(self, account: Account) -> None:
        fields = fields_of(account.create("a", "b"))
        assert reason(fields | {"ops": [fields["ops"][0], fields["ops"][0]]}) == "op"

    def test_a_record_that_is_missing(self, account: Account) -> None:
        for revision in (account.write(("create", "a", "text")), account.write(("update", "a", "other"))):
            fields = fields_of(revision._replace(records=()))
            assert reason(fields) == "record"
            assert examine_commit(fields, full=False).before is Before.FOUND

    def test_an_op_that_the_tree_does_not_hold(self, account: Account) -> None:
        fields = fields_of(account.create("a", "b"))
        for changed in ({"path": f"{NOTE}/other"}, {"action": "update", "prev": cid_of(b"x")}):
            ops = [fields["ops"][0] | changed, *fields["ops"][1:]]
            assert reason(fields | {"ops": ops}) == "proof"

    def test_an_op_that_is_left_out(self, account: Account) -> None:
        fields = fields_of(account.create("a", "b"))
        for op in fields["ops"]:
            assert reason(fields | {"ops": [op]}) == "proof"
        assert reason(fields | {"ops": []}) == "proof"

    def test_a_delete_that_was_not_made(self, revision: Revision) -> None:
        fields = fields_of(revision)
        forged = {"action": "delete", "path": f"{NOTE}/7", "cid": None, "prev": cid_of(b"x")}
        assert reason(fields | {"ops": [forged]}) == "proof"
        assert reason(fields | {"ops": [forged]}, full=False) == "proof"


class TestTree:
    def test_another_tree_before(self, revision: Revision) -> None:
        assert reason(fields_of(revision, prevData=cid_of(b"other"))) == "proof"

    def test_another_root_in_the_commit(self, revision: Revision) -> None:
        assert reason(fields_of(resigned(revision, cid_of(b"other")))) == "proof"

    def test_no_nodes(self, revision: Revision) -> None:
        assert reason(fields_of(revision._replace(nodes=()))) == "proof"

    def test_a_commit_that_does_not_name_the_tree_before_is_legacy(self, account: Account) -> None:
        for writes in ([("create", "a", "")], [("update", "a", "x")], [("delete", "a", "")]):
            fields = fields_of(account.write(*writes))
            without = {name: value for name, value in fields.items() if name != "prevData"}
            assert examine_commit(without).before is Before.LEGACY
            forged = [
                {"action": "create", "path": f"{NOTE}/none", "cid": fields["ops"][0]["cid"] or cid_of(b"")}
            ]
            assert reason(without | {"ops": forged}) in {"proof", "record"}

    def test_an_op_that_does_not_name_the_record_before_is_legacy(self, account: Account) -> None:
        for action in ("update", "delete"):
            fields = fields_of(account.write((action, "3", "changed")))
            ops = [{name: value for name, value in fields["ops"][0].items() if name != "prev"}]
            assert examine_commit(fields | {"ops": ops}).before is Before.LEGACY

    def test_nodes_that_only_undoing_needs_may_be_missing(self, account: Account) -> None:
        """Whether that is acceptable depends on the state."""
        found = set()
        for number in range(40):
            revision = account.create(f"new{number}")
            whole = examine_commit(fields_of(revision))
            for node in revision.nodes:
                others = tuple(each for each in revision.nodes if each != node)
                with suppress(Refused):
                    evidence = examine_commit(fields_of(revision._replace(nodes=others)))
                    assert evidence._replace(before=Before.PROVEN) == whole
                    found.add(evidence.before)
        assert Before.INCOMPLETE in found


class TestClaimed:
    def test_only_the_commit_block_is_looked_at(self, revision: Revision) -> None:
        fields = fields_of(revision)
        blocks = fields["blocks"].replace(revision.nodes[0][1][-20:], bytes(20))
        assert claimed(fields | {"blocks": blocks}).root == examine_commit(fields).root

    def test_one_that_is_far_from_the_end_is_found(self, revision: Revision) -> None:
        records = (Block(cid_of(bytes(20_000)), bytes(20_000)),)
        assert claimed(fields_of(revision._replace(records=records))).rev == revision.rev

    @pytest.mark.parametrize(
        ("changed", "why"),
        [
            ({"blocks": None}, "root"),
            ({"commit": None}, "root"),
            ({"commit": cid_of(b"")}, "commit"),
            ({"rev": rev(99)}, "envelope"),
            ({"repo": "did:web:a.example"}, "envelope"),
        ],
    )
    def test_what_is_refused(self, changed: dict[str, Any], why: str, revision: Revision) -> None:
        with pytest.raises(Refused) as refused:
            claimed(fields_of(revision, **changed))
        assert refused.value.reason == why
