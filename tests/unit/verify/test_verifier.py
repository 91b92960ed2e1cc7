from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from tests.fixtures import captured_frames, from_scenario, json_of
from tests.signed import DID, KEY, START_US, Account, fields_of, public, rev

from jetstream.atproto.encoded_key import parse_multikey
from jetstream.atproto.keys import PublicKey, public_key
from jetstream.identity.documents import document_key
from jetstream.simulator.signing import K256Key
from jetstream.upstream.envelope import read_envelope
from jetstream.verify.chain import State, latest_rev, root_of
from jetstream.verify.verifier import Verifier

LATEST = latest_rev(START_US)


def known(_did: str, _rev: str) -> Sequence[PublicKey]:
    return (public(),)


def unknown(_did: str, _rev: str) -> Sequence[PublicKey]:
    return ()


def label(verifier: Verifier, fields: dict[str, Any]) -> str:
    return verifier.verify_commit(fields, LATEST).verdict.label


def test_a_history_is_ok_and_its_repetition_is_a_replay() -> None:
    account, verifier = Account(), Verifier(known)
    history = [fields_of(account.create(f"{number}")) for number in range(30)]
    assert {label(verifier, fields) for fields in history} == {"ok"}
    assert {label(verifier, fields) for fields in history} == {"replay"}
    assert verifier.states == {DID: State(account.repo.rev or "", root_of(account.repo.tree.cid))}


def test_a_lost_commit_is_a_gap_and_the_next_one_follows(account: Account) -> None:
    verifier = Verifier(known)
    revisions = [account.create(f"new{number}") for number in range(4)]
    assert label(verifier, fields_of(revisions[0])) == "ok"
    judged = verifier.verify_commit(fields_of(revisions[2]), LATEST)
    assert (judged.verdict.label, judged.missing_after) == ("gap", revisions[0].rev)
    assert label(verifier, fields_of(revisions[3])) == "ok"


def test_what_is_refused_does_not_move_the_state(account: Account) -> None:
    verifier = Verifier(known)
    first, second = (fields_of(account.create(name)) for name in ("a", "b"))
    assert label(verifier, first) == "ok"
    before = dict(verifier.states)
    assert label(verifier, second | {"ops": []}) == "refused: proof"
    assert label(Verifier(lambda *_: (public(K256Key(b"\x09" * 32)),)), second) == "refused: signature"
    assert label(verifier, fields_of(account.write(at=400_000_000))) == "refused: future_rev"
    assert verifier.states == before
    assert label(verifier, second) == "ok"


def test_any_of_several_keys_may_have_signed(account: Account) -> None:
    others = [public(K256Key(bytes((number,)) * 32)) for number in range(1, 4)]
    verifier = Verifier(lambda *_: [*others, public()])
    assert label(verifier, fields_of(account.create("a"))) == "ok"


def test_two_trees_under_one_rev_are_equivocation(account: Account) -> None:
    verifier = Verifier(known)
    one, other = Account(), Account()
    assert label(verifier, fields_of(one.create("a"))) == "ok"
    judged = verifier.verify_commit(fields_of(other.create("b")), LATEST)
    assert judged.verdict.label == "refused: equivocation"
    assert judged.verdict.detail == f"{DID} signed another tree at {rev(1)}"
    assert verifier.states == {DID: judged.state}


@pytest.mark.parametrize(("passes", "then"), [(True, "replay"), (False, "unverified")])
def test_without_a_key_the_setting_decides_whether_it_was_passed_on(
    account: Account, passes: bool, then: str
) -> None:
    verifier = Verifier(unknown, pass_unverified=passes)
    fields = fields_of(account.create("a"))
    assert label(verifier, fields) == "unverified"
    assert label(verifier, fields) == then
    assert label(verifier, fields_of(account.create("b")) | {"ops": []}) == "refused: proof"


def test_a_sync_moves_the_state(account: Account) -> None:
    verifier = Verifier(known)
    assert label(verifier, fields_of(account.create("a"))) == "ok"
    assert verifier.verify_sync(account.sync(), LATEST).verdict.label == "replay"
    account.repo.resign(K256Key(b"\x09" * 32), rev(7))
    assert verifier.verify_sync(account.sync(), LATEST).verdict.label == "refused: signature"
    account.repo.resign(KEY, rev(8))
    assert verifier.verify_sync(account.sync(), LATEST).verdict.label == "ok"
    account.create("b")
    account.repo.resign(KEY, rev(9))
    assert verifier.verify_sync(account.sync(), LATEST).verdict.label == "gap"
    assert label(verifier, fields_of(account.write(("create", "c", ""), at=10))) == "ok"


def test_a_deleted_account_may_begin_again() -> None:
    verifier, account = Verifier(known), Account()
    account.create("a")
    assert label(verifier, fields_of(account.create("b"))) == "ok"
    again = fields_of(Account().create("a"))
    assert label(verifier, again) == "replay"
    verifier.forget(DID)
    assert label(verifier, again) == "ok"
    verifier.forget("did:web:unknown.example")


def test_signature_mode_keeps_no_states(account: Account) -> None:
    verifier = Verifier(known, full=False)
    fields = fields_of(account.create("a", "b"))
    assert [label(verifier, fields) for _ in range(2)] == ["ok", "ok"]
    assert label(verifier, fields | {"ops": fields["ops"][:1]}) == "ok"
    assert (
        label(verifier, fields | {"ops": [fields["ops"][0] | {"path": "a.test.note/x"}]}) == "refused: proof"
    )
    assert verifier.states == {}


def test_the_captured_frames_are_ok() -> None:
    documents = json_of("firehose/did_docs.json")
    verifier = Verifier(lambda did, _: (public_key(document_key(did, documents[did])),))
    fields = [read_envelope(frame).fields for frame in captured_frames()]
    latest = max(each["rev"] for each in fields)
    assert {verifier.verify_commit(each, latest).verdict.label for each in fields} <= {"ok", "gap"}
    assert sum(len(each["ops"]) for each in fields) == 92


@pytest.mark.parametrize(
    ("name", "labels"),
    [
        ("post_lifecycle", ["ok"] * 6),
        # The second one follows a commit that is not among them.
        ("post_lifecycle_legacy", ["legacy", "gap", *["legacy"] * 4]),
        ("legacy", ["legacy"]),
        # The second one's rev is below the first one's, the third one's is not what is signed.
        ("rev_ordering", ["ok", "replay", "refused: envelope", "ok"]),
        ("seq_ordering", ["legacy", "replay"]),
    ],
)
def test_the_relay_scenarios_have_their_verdicts(name: str, labels: list[str]) -> None:
    messages, multibase = from_scenario(name)
    verifier = Verifier(lambda *_: (public_key(parse_multikey(multibase)),))
    latest = latest_rev(START_US)
    commits = [fields for kind, fields in messages if kind == "#commit"]
    assert [verifier.verify_commit(fields, latest).verdict.label for fields in commits] == labels
