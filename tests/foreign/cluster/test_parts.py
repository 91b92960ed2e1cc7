"""What judges the soak is right by itself: it sees what is lost, repeated, different or erased."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.foreign.cluster.facts import V2_KINDS, Fact, Wanted, of_v1, of_v2
from tests.foreign.cluster.faults import KINDS, schedule
from tests.foreign.cluster.mutants import MUTANTS, Mutant, apply
from tests.foreign.cluster.verdict import Problem, Stream, against_truth
from tests.foreign.cluster.wire import ASKS, FIRST, Messages, Session

DID = "did:plc:a"
RELAYS = ["a", "b"]


def commit(
    number: int, operation: str = "create", did: str = DID, collection: str = "app.bsky.feed.like"
) -> dict[str, Any]:
    body: dict[str, Any] = {
        "rev": f"{number:013}",
        "operation": operation,
        "collection": collection,
        "rkey": str(number),
    }
    if operation != "delete":
        body |= {"record": {"n": number}, "cid": f"bafy{number}"}
    return {"did": did, "kind": "commit", "commit": body}


def account(status: str | None = "deleted", did: str = DID, **more: Any) -> dict[str, Any]:
    body = {"active": False, "did": did, "time": "2026-01-01T00:00:00Z", **more}
    return {"did": did, "kind": "account", "account": body | ({"status": status} if status else {})}


class Seen:
    """A stream that some events were noted in, at 10, 20, …"""

    def __init__(self, *events: dict[str, Any]) -> None:
        self.problems: list[Problem] = []
        self.stream = Stream(self.problems.append)
        for number, event in enumerate(events, 1):
            self.stream.note(10 * number, of_v1(event), "reader")

    @property
    def kinds(self) -> list[str]:
        return [each.kind for each in self.problems]


# Events of any wire


def test_both_wires_and_the_truth_say_the_same() -> None:
    event = commit(1)
    payload = {
        "$type": "network.bsky.jetstream.subscribeEvents#commit",
        "did": DID,
        "seq": 5,
        "time": "",
        **event["commit"],
    }
    assert of_v1({"time_us": 5, **event}) == of_v2(payload) == of_v1(event)


def test_numbers_of_relays_make_no_difference_and_all_else_does() -> None:
    assert of_v1(account(seq=1)) == of_v1(account(seq=2)) == of_v1(account())
    assert of_v1(account("takendown")) != of_v1(account())
    other = commit(1)
    other["commit"]["record"] = {"n": 2}
    assert of_v1(other) != of_v1(commit(1))


@pytest.mark.parametrize(
    ("wanted", "event", "expected"),
    [
        (Wanted(), commit(1), True),
        (Wanted(collections=("app.bsky.feed.*",)), commit(1), True),
        (Wanted(collections=("app.bsky.feed.post",)), commit(1), False),
        (Wanted(collections=("app.bsky.feed.post",)), account(), True),
        (Wanted(excluded=("app.bsky.feed.like",)), commit(1), False),
        (Wanted(operations=frozenset({"delete"})), commit(1), False),
        (Wanted(operations=frozenset({"delete"})), commit(1, "delete"), True),
        (Wanted(dids=frozenset({"did:plc:b"})), account(), False),
        (Wanted(frozenset({"identity"})), account(), False),
    ],
)
def test_a_filter_wants_what_the_server_sends(
    wanted: Wanted, event: dict[str, Any], *, expected: bool
) -> None:
    assert wanted.wants(of_v1(event)) is expected


def test_syncs_are_of_the_newest_wire_only() -> None:
    sync = Fact(DID, "sync", "", "", False, b"")
    assert Wanted(V2_KINDS).wants(sync)
    assert not Wanted().wants(sync)


# Readers among each other


def test_what_a_reader_has_not_got_is_lost() -> None:
    seen = Seen(*map(commit, range(1, 5)))
    assert seen.stream.lost([10, 30], Wanted(), 0, 40) == [20]
    assert seen.stream.lost([10, 30], Wanted(), 0, 41) == [20, 40]
    assert seen.stream.lost([10, 20, 30, 40], Wanted(), 0, 41) == []
    assert not seen.problems


def test_records_of_a_deleted_account_may_be_missing_and_its_deletes_may_not() -> None:
    seen = Seen(commit(1), commit(2, "delete"), account(), commit(3))
    assert seen.stream.lost([], Wanted(), 0, 100) == [20, 30, 40]


def test_one_commit_at_two_positions_is_told() -> None:
    assert Seen(commit(1), commit(2), commit(1)).kinds == ["twice"]


def test_two_events_at_one_position_are_told() -> None:
    seen = Seen(commit(1))
    seen.stream.note(10, of_v1(commit(1)), "another")
    assert not seen.kinds
    seen.stream.note(10, of_v1(commit(2)), "another")
    assert seen.kinds == ["differs"]


# Against the truth


def judged(
    truth: list[dict[str, Any]], *seen: dict[str, Any], lost: list[dict[str, Any]] | None = None
) -> list[Problem]:
    return list(against_truth(Seen(*seen).stream, truth, lost or [], RELAYS))


def test_accounts_may_be_interleaved_in_any_way() -> None:
    truth = [commit(1), commit(2), commit(1, did="did:plc:b"), commit(2, did="did:plc:b")]
    assert not judged(truth, truth[2], truth[0], truth[3], truth[1])


def test_a_commit_that_nobody_has_got_is_told() -> None:
    (problem,) = judged([commit(1), commit(2)], commit(1))
    assert problem.kind == "truth"
    assert "1 lost" in problem.text


def test_commits_of_an_account_in_another_order_are_told() -> None:
    assert judged([commit(1), commit(2)], commit(2), commit(1))


def test_a_commit_that_never_happened_is_told() -> None:
    assert judged([commit(1)], commit(1), commit(2))


def test_erased_records_may_be_missing_and_not_in_disorder() -> None:
    truth = [commit(1), commit(2), commit(3), account()]
    assert not judged(truth, commit(1), commit(3), account())
    assert judged(truth, commit(3), commit(1), account())


def test_an_account_event_that_the_first_relay_has_lost_is_not_told_and_no_other_is_missing() -> None:
    truth = [commit(1), account("takendown")]
    lost = [{"relay": "a", "level": "frame", "events": [{"index": 1}]}]
    assert not judged(truth, commit(1), lost=lost)
    assert judged(truth, commit(1))
    assert judged(truth, *truth, account("takendown", time="2026-01-02T00:00:00Z"))


# PostgreSQL's protocol


def message(kind: bytes, body: bytes = b"") -> bytes:
    return kind + (len(body) + 4).to_bytes(4, "big") + body


STARTUP = (8).to_bytes(4, "big") + (196_608).to_bytes(4, "big")
SSL = (8).to_bytes(4, "big") + (80_877_103).to_bytes(4, "big")
APPEND = b"WITH mine AS (SELECT 1) INSERT INTO tail_a (id) SELECT 1 RETURNING id"


@given(st.lists(st.integers(1, 40), max_size=40))
def test_messages_are_the_same_however_the_bytes_come(cuts: list[int]) -> None:
    data = SSL + STARTUP + message(b"Q", b"SELECT 1\0") + message(b"S")
    messages = Messages(of_client=True)
    found: list[tuple[bytes, bytes]] = []
    for size in [*cuts, len(data)]:
        found += messages.feed(data[:size])
        data = data[size:]
    assert [kind for kind, _ in found] == [ASKS, FIRST, b"Q", b"S"]
    assert found[2][1] == message(b"Q", b"SELECT 1\0")


def test_an_answer_of_one_byte_is_no_message() -> None:
    messages = Messages(of_client=False)
    messages.expect_byte()
    assert list(messages.feed(b"N" + message(b"Z", b"I"))) == [(b"1", b"N"), (b"Z", message(b"Z", b"I"))]


def prepared(session: Session, statement: bytes = APPEND) -> None:
    assert not session.sent(b"P", message(b"P", b"one\0" + statement + b"\0\0\0"))
    assert not session.sent(b"S", message(b"S"))
    session.received(b"Z", message(b"Z", b"I"))


def bound(session: Session) -> bool:
    """Execute the statement; return whether that commits an append."""
    assert not session.sent(b"B", message(b"B", b"\0one\0\0\0"))
    assert not session.sent(b"E", message(b"E", b"\0\0\0\0\0"))
    return session.sent(b"S", message(b"S"))


def test_an_append_by_itself_is_committed_by_its_sync() -> None:
    session = Session()
    prepared(session)
    assert bound(session)
    assert not session.sent(b"S", message(b"S"))


def test_an_append_in_a_transaction_is_committed_by_its_end() -> None:
    session = Session()
    prepared(session)
    assert not session.sent(b"Q", message(b"Q", b"BEGIN;\0"))
    session.received(b"Z", message(b"Z", b"T"))
    assert not bound(session)
    session.received(b"Z", message(b"Z", b"T"))
    assert session.sent(b"Q", message(b"Q", b"COMMIT;\0"))
    session.received(b"Z", message(b"Z", b"I"))
    assert not session.sent(b"Q", message(b"Q", b"COMMIT;\0"))


def test_another_statement_commits_no_append() -> None:
    session = Session()
    prepared(session, b"INSERT INTO tail_b SELECT * FROM tail_a")
    assert not bound(session)


# Faults and mutants


def test_each_fault_is_there_as_often_as_was_asked_for() -> None:

    faults = schedule(2, random.Random(1), 25)
    assert len(faults) == 25
    assert all(faults.count(kind) >= 2 for kind in KINDS)
    assert faults == schedule(2, random.Random(1), 25)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda each: each.name)
def test_each_mutant_can_be_made(mutant: Mutant, tmp_path: Any) -> None:
    assert (apply(mutant, tmp_path) / "jetstream" / "__init__.py").exists()
