"""What a process has not answered, and which message is to blame when it ends."""

from __future__ import annotations

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.admission.examiners.examination import Finding, Task
from jetstream.admission.examiners.in_flight import HEAD, Outstanding, Parcel, packed, unpacked
from jetstream.upstream.lenient import DAMAGED

FOUND = Finding(None, None, None)


def tasks(*names: str) -> list[Task]:
    return [Task("commit", {"repo": name}) for name in names]


class Caller:
    """Sends parcels, and takes what is found."""

    def __init__(self) -> None:
        self.outstanding = Outstanding(deaths_max=2, kills_max=4)
        self.found: dict[int, Finding] = {}
        self.sent = 0

    def send(self, *names: str) -> None:
        places = range(self.sent, self.sent + len(names))
        self.sent += len(names)
        self.outstanding.add(Parcel(tasks(*names), places, self.take))

    def take(self, place: int, finding: Finding) -> None:
        assert place not in self.found
        self.found[place] = finding

    def end(self, *, killed: bool = False) -> None:
        self.outstanding.process_ended(killed=killed)

    def names(self) -> list[list[str]]:
        return [[task.did for task in parcel.tasks] for parcel in self.outstanding]

    def answer(self) -> None:
        oldest = next(iter(self.outstanding))
        self.outstanding.answered([FOUND] * len(oldest.tasks))

    def refused(self) -> list[int]:
        return [place for place, finding in self.found.items() if finding.refused is not None]


@pytest.fixture
def caller() -> Caller:
    return Caller()


def test_answers_are_for_the_oldest_parcel(caller: Caller) -> None:
    caller.send("a", "b")
    caller.send("c")
    caller.answer()
    assert caller.found == {0: FOUND, 1: FOUND}
    assert caller.names() == [["c"]]


def test_bytes_are_those_of_what_is_not_answered(caller: Caller) -> None:
    assert caller.outstanding.bytes == len(caller.outstanding) == 0
    caller.send("a", "b")
    assert caller.outstanding.bytes == len(packed(tasks("a", "b")))
    caller.end()
    assert caller.outstanding.bytes == 2 * len(packed(tasks("a")))
    caller.answer()
    caller.answer()
    assert caller.outstanding.bytes == 0


def test_an_idle_process_that_ends_has_no_consequence(caller: Caller) -> None:
    caller.end()
    assert caller.names() == []


def test_the_oldest_parcel_is_taken_apart_when_its_process_ends(caller: Caller) -> None:
    caller.send("a", "b")
    caller.send("c", "d")
    caller.end()
    assert caller.names() == [["a"], ["b"], ["c", "d"]]
    assert caller.found == {}


def test_a_task_that_ends_its_process_twice_alone_is_refused(caller: Caller) -> None:
    caller.send("a", "b", "c")
    caller.end()
    caller.answer()
    caller.end()
    assert caller.names() == [["b"], ["c"]]
    caller.end()
    assert caller.names() == [["c"]]
    verdict = caller.found[1].refused
    assert verdict is not None
    assert verdict.label == "refused: crash"
    assert verdict.detail == "examining it has ended a process 2 times"
    caller.answer()
    assert caller.refused() == [1]


def test_a_task_is_not_refused_because_its_processes_were_killed(caller: Caller) -> None:
    caller.send("a")
    for killed in (True, True, False, True):
        caller.end(killed=killed)
    assert (caller.names(), caller.found) == ([["a"]], {})
    caller.answer()
    assert caller.refused() == []


def test_a_task_whose_processes_are_killed_again_and_again_is_refused(caller: Caller) -> None:
    caller.send("a")
    caller.send("b")
    for _ in range(4):
        caller.end(killed=True)
    assert (caller.names(), caller.refused()) == ([["b"]], [0])


@given(
    sizes=st.lists(st.integers(1, 4), max_size=8),
    steps=st.lists(st.sampled_from(["answer", "end", "kill"]), max_size=60),
)
def test_each_task_is_answered_once_whatever_happens(sizes: list[int], steps: list[str]) -> None:
    caller = Caller()
    for size in sizes:
        caller.send(*"abcd"[:size])
    for step in [*steps, *["answer"] * sum(sizes)]:
        if caller.outstanding:
            caller.answer() if step == "answer" else caller.end(killed=step == "kill")
    assert sorted(caller.found) == list(range(sum(sizes)))
    assert caller.outstanding.bytes == 0
    assert len(caller.refused()) <= steps.count("end") // 2 + steps.count("kill") // 4


def test_values_are_sent_after_their_length() -> None:
    data = packed({"a": [1]})
    assert HEAD.unpack_from(data) == (len(data) - HEAD.size,)
    assert unpacked(memoryview(data)[HEAD.size :]) == {"a": [1]}


def test_what_is_damaged_is_still_that_in_another_process() -> None:
    assert pickle.loads(pickle.dumps([DAMAGED]))[0] is DAMAGED


def test_a_task_that_is_nested_too_deeply_cannot_be_sent(caller: Caller) -> None:
    nested: object = 0
    for _ in range(1_200):
        nested = [nested]
    with pytest.raises(RecursionError):
        Parcel([Task("commit", {"repo": "a", "ops": nested})], [0], caller.take)
