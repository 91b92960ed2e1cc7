"""Queues of messages that wait: nothing is lost, each repository is in order, all limits hold."""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.admission.repo_queues import RepoQueues


def limited(
    wait_s: float = 2.0, repo_max: int = 4, messages_max: int = 100, bytes_max: int = 1000
) -> RepoQueues[str]:
    return RepoQueues(wait_s, repo_max, messages_max, bytes_max)


def test_a_queue_comes_out_in_the_order_of_arrival() -> None:
    queues = limited()
    for number, text in enumerate("abc"):
        assert queues.hold("did:1", text, 10, number) == []
    assert queues.hold("did:2", "z", 10, 3.0) == []
    assert ("did:1" in queues, "did:3" in queues) == (True, False)
    assert (len(queues), queues.size) == (4, 40)
    assert queues.release("did:1") == ["a", "b", "c"]
    assert queues.release("did:1") == []
    assert (len(queues), queues.size) == (1, 10)


def test_with_revs_it_comes_out_in_their_order() -> None:
    queues = limited()
    for text, rev in [("third", "r3"), ("account", ""), ("first", "r1"), ("again", "r3")]:
        queues.hold("did:1", text, 10, 0.0, rev)
    assert queues.release("did:1") == ["first", "third", "account", "again"]


def test_a_message_is_due_with_those_before_it() -> None:
    queues = limited()
    assert queues.next_due() is None
    queues.hold("did:1", "third", 10, 0.0, "r3")
    queues.hold("did:1", "second", 10, 1.5, "r2")
    queues.hold("did:1", "fourth", 10, 1.0, "r4")
    queues.hold("did:2", "other", 10, 0.5)
    assert queues.next_due() == 2.0
    assert queues.due(1.9) == []
    assert queues.due(2.0) == [("did:1", "second"), ("did:1", "third")]
    assert queues.due(2.9) == [("did:2", "other")]
    assert queues.next_due() == 3.0


def test_one_that_is_held_again_waits_no_longer() -> None:
    queues = limited()
    queues.hold("did:1", "a", 10, 1.0)
    queues.hold("did:2", "b", 10, 0.0)
    assert queues.due(2.0) == [("did:2", "b")]


def test_the_first_of_a_queue_makes_room_in_it() -> None:
    queues = limited(repo_max=2)
    queues.hold("did:1", "b", 10, 0.0, "r2")
    queues.hold("did:1", "c", 10, 0.0, "r3")
    assert queues.hold("did:1", "a", 10, 1.0, "r1") == [("did:1", "a")]
    assert queues.hold("did:1", "d", 10, 1.0, "r4") == [("did:1", "b")]


@pytest.mark.parametrize(
    ("limits", "size", "held", "let_go_count"),
    [
        ({"repo_max": 50, "messages_max": 20}, 1, 60, 41),
        ({"bytes_max": 1000}, 150, 20, 14),
    ],
)
def test_those_with_the_most_make_room_and_the_others_go_on_waiting(
    limits: dict[str, int], size: int, held: int, let_go_count: int
) -> None:
    queues = limited(**limits)
    queues.hold("did:little", "little", 10, 0.0)
    let_go = []
    for number in range(held):
        let_go += queues.hold(f"did:much:{number % 5}", f"{number}", size, 1.0)
    assert len(let_go) == let_go_count
    assert {did for did, _ in let_go} == {f"did:much:{number}" for number in range(5)}
    assert queues.release("did:little") == ["little"]


def test_of_equal_queues_the_oldest_makes_room() -> None:
    queues = limited(messages_max=2)
    queues.hold("did:2", "a", 10, 0.0)
    queues.hold("did:1", "b", 10, 1.0)
    assert queues.hold("did:3", "c", 10, 2.0) == [("did:2", "a")]


def test_one_that_is_larger_than_all_room() -> None:
    queues = limited()
    queues.hold("did:1", "a", 10, 0.0)
    assert queues.hold("did:1", "b", 1001, 1.0) == [("did:1", "a"), ("did:1", "b")]
    assert queues.size == 0


class _Message(NamedTuple):
    did: str
    number: int
    size: int
    since: float
    rev: str


DIDS = st.sampled_from(["a", "b", "c"])
HOLD = st.tuples(DIDS, st.integers(1, 40), st.floats(0, 9), st.sampled_from(["", "", "r1", "r2", "r3"]))
STEPS = st.lists(HOLD | DIDS | st.floats(0, 12), max_size=80)
REPO_MAX, MESSAGES_MAX, BYTES_MAX, WAIT_S = 5, 9, 200, 2.0


@given(STEPS)
def test_each_comes_out_once_and_in_order_and_limits_hold(
    steps: list[tuple[str, int, float, str] | str | float],
) -> None:
    queues: RepoQueues[_Message] = RepoQueues(WAIT_S, REPO_MAX, MESSAGES_MAX, BYTES_MAX)
    inside: list[_Message] = []
    held = 0
    for step in steps:
        if isinstance(step, tuple):
            did, size, since, rev = step
            # One without a rev is in the place of the last one.
            place = rev or max((each.rev for each in inside if each.did == did), default="")
            message = _Message(did, held, size, since, place)
            held += 1
            inside.append(message)
            out = queues.hold(did, message, size, since, rev)
        elif isinstance(step, str):
            out = [(step, message) for message in queues.release(step)]
            assert [message for _, message in out] == sorted(
                (each for each in inside if each.did == step), key=lambda each: (each.rev, each.number)
            )
        else:
            out = queues.due(step)
        for did, message in out:
            assert did == message.did
            behind = [each for each in inside if each.did == did]
            assert message == min(behind, key=lambda each: (each.rev, each.number))
            inside.remove(message)
        if isinstance(step, float):
            assert all(each.since + WAIT_S > step for each in inside)
        assert (len(queues), queues.size) == (len(inside), sum(each.size for each in inside))
        assert len(inside) <= MESSAGES_MAX
        assert queues.size <= BYTES_MAX
        counts = Counter(each.did for each in inside)
        assert max(counts.values(), default=0) <= REPO_MAX
        assert queues.next_due() == min((each.since + WAIT_S for each in inside), default=None)


def test_what_waits_no_more_is_not_remembered() -> None:
    queues = limited()
    queues.hold("did:1", "stays", 1, 0.0)
    for _ in range(1000):
        queues.hold("did:2", "goes", 1, 1.0)
        queues.release("did:2")
    assert len(queues._oldest) < 100
    assert queues.due(2.0) == [("did:1", "stays")]
