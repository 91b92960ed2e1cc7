"""The states of repositories, in memory and in the log."""

from __future__ import annotations

from tests.signed import rev

from jetstream.admission.states import States
from jetstream.atproto.compact_did import compact_did
from jetstream.verify.chain import State

DIDS = [f"did:plc:{letter * 24}" for letter in "abcdefgh"]
OLD, NEW = State(rev(1), b"o" * 16), State(rev(2), b"n" * 16)


class Log:
    """The states of a log, which counts how often it was asked."""

    def __init__(self, *dids: str) -> None:
        self.repos = {compact_did(did): OLD.packed() for did in dids}
        self.asked = 0

    def repo(self, did: bytes) -> bytes | None:
        self.asked += 1
        return self.repos.get(did)

    def store(self, states: States) -> None:
        for did, state in states.changes().items():
            if state is None:
                self.repos.pop(did, None)
            else:
                self.repos[did] = state
        states.stored()


def test_the_log_is_asked_once_for_what_it_has() -> None:
    log = Log(DIDS[0])
    states = States(log.repo, 4)
    assert [states.get(DIDS[0]) for _ in range(3)] == [OLD] * 3
    assert log.asked == 1
    assert states.get(DIDS[1]) is None


def test_the_newest_state_counts_before_and_after_it_is_stored() -> None:
    log = Log(DIDS[0])
    states = States(log.repo, 4)
    states.put(DIDS[0], NEW)
    assert states.get(DIDS[0]) == NEW
    log.store(states)
    assert states.get(DIDS[0]) == NEW
    assert (log.asked, states.changes()) == (0, {})
    states.put(DIDS[0], None)
    assert states.get(DIDS[0]) is None
    log.store(states)
    assert states.get(DIDS[0]) is None


def test_no_state_is_lost_when_there_are_more_than_are_kept() -> None:
    log = Log(*DIDS)
    states = States(log.repo, 2)
    for did in DIDS:
        states.put(did, NEW)
    assert [states.get(did) for did in DIDS] == [NEW] * len(DIDS)
    states.put(DIDS[0], None)
    assert states.get(DIDS[0]) is None
    log.store(states)
    assert [states.get(did) for did in DIDS] == [None] + [NEW] * (len(DIDS) - 1)


def test_a_log_that_has_states_elsewhere_is_asked_for_those_at_hand_only() -> None:
    log = Log(*DIDS)
    at_hand = {compact_did(DIDS[0])}
    states = States(log.repo, 4, at_hand.__contains__)
    assert [states.has(did) for did in DIDS[:3]] == [True, False, False]
    assert states.get(DIDS[0]) == OLD
    at_hand.clear()
    states.put(DIDS[1], None)
    assert [states.has(did) for did in DIDS[:3]] == [True, True, False]
    assert (states.get(DIDS[0]), states.get(DIDS[1]), log.asked) == (OLD, None, 1)
