"""Messages are examined in turns, and divided among processes. Real processes: `tests/processes`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.admission.examiners.examination import Task, examine
from jetstream.admission.examiners.pool import Examiners
from jetstream.errors import WorkerError
from jetstream.limits import WorkerLimits
from jetstream.metrics import Metrics


def task(did: str, size: int = 0) -> Task:
    """Return a message that is refused at once."""
    return Task("commit", {"repo": did, "rev": "3", "ops": [], "blocks": bytes(size)})


class Ticking:
    """A clock on which each look takes a while."""

    def __init__(self, step_s: float) -> None:
        self._step_s = step_s
        self.now = 0.0

    def __call__(self) -> float:
        self.now += self._step_s
        return self.now


@pytest.mark.parametrize(("step_s", "turns"), [(0.002, 5), (0.001, 3), (1.0, 10), (0.0, 1)])
async def test_the_event_loop_has_its_turn_between_two_steps(step_s: float, turns: int) -> None:
    """Ten messages: the turn ends after the message that takes it past 4 ms."""
    others = 0

    def count() -> None:
        nonlocal others
        others += 1
        asyncio.get_running_loop().call_soon(count)

    count()
    async with Examiners("full", clock=Ticking(step_s)) as examiners:
        before = others
        await examiners.examine([task("a")] * 10)
        assert others - before == turns


async def test_calls_share_the_turns_and_end_in_order() -> None:
    ended: list[int] = []
    async with Examiners("full", clock=Ticking(1.0)) as examiners:

        async def call(number: int, count: int) -> None:
            tasks = [task("a")] * count
            assert await examiners.examine(tasks) == [examine(each, "full") for each in tasks]
            ended.append(number)

        await asyncio.gather(*(call(number, 5 - number) for number in range(5)))
    assert ended == list(range(5))


async def test_nothing_is_done_for_no_messages() -> None:
    async with Examiners("full") as examiners:
        assert await examiners.examine([]) == []


@given(
    dids=st.lists(st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 3_000)), max_size=60),
    count=st.integers(1, 4),
)
def test_messages_are_divided_by_their_repositories(dids: list[tuple[str, int]], count: int) -> None:
    limits = WorkerLimits(parcel_tasks=5, parcel_bytes=9_000)
    examiners = Examiners("full", count, Metrics().workers(), limits=limits)
    tasks = [task(*each) for each in dids]
    sent: dict[Any, list[int]] = {}
    for worker, places in examiners._divided(tasks):
        assert 0 < len(places) <= 5
        assert sum(1_000 + len(tasks[place].fields["blocks"]) for place in places[:-1]) < 9_000
        sent.setdefault(worker, []).extend(places)
    assert sorted(place for places in sent.values() for place in places) == list(range(len(tasks)))
    assert all(places == sorted(places) for places in sent.values())
    owners = {(tasks[place].did, worker) for worker, places in sent.items() for place in places}
    assert len(owners) == len({each.did for each in tasks})


@pytest.mark.parametrize("blocks", [None, 1, True, 0.5, "text", [b""], {}])
def test_what_a_peer_sends_in_place_of_blocks_has_no_bytes(blocks: object) -> None:
    examiners = Examiners("full", 1, Metrics().workers())
    message = Task("commit", {"repo": "a", "rev": "3", "ops": [], "blocks": blocks})
    assert [places for _, places in examiners._divided([message])] == [[0]]


async def test_a_closed_one_examines_nothing() -> None:
    examiners = Examiners("full", 1, Metrics().workers())
    await examiners.close()
    with pytest.raises(WorkerError):
        await examiners.examine([task("a")])
