"""Which batches are examined at once, and which wait for others."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest
from tests.signed import DID, TIME
from tests.unit.admission.fakes import message

from jetstream.admission.examiners.examination import Finding, Task
from jetstream.admission.input_queue import InputQueue, Reached, Run
from jetstream.admission.message import Message
from jetstream.limits import AdmissionLimits
from jetstream.simulator import frames
from jetstream.upstream.pipeline import DecodedBatch

LIMITS = AdmissionLimits(queue_batches_max=8)


class Stage:
    """A queue that runs, and what comes out of it."""

    def __init__(self) -> None:
        self.queue = InputQueue(self._prepare, self._examine, lambda: None, LIMITS)
        self.runs: list[Run] = []

    async def offer(self, source: str, seq: int, *, messages: int = 0, at: float = 0.0) -> None:
        accepted = [message(seq, frames.Identity(DID, TIME, "a.test"))] * messages
        await self.queue.offer(source, DecodedBatch(seq=seq, accepted_messages=accepted), at)

    async def settle(self) -> list[dict[str, Reached]]:
        """Return how far the sources were read in each of the runs, once all that is due is examined."""
        for _ in range(20):
            await asyncio.sleep(0)
            while (run := self.queue.first_examined()) is not None:
                self.runs.append(run)
                self.queue.note_stored(run)
        return [run.reached for run in self.runs]

    async def _prepare(self, messages: list[Message]) -> list[Task | None]:
        return [None for _ in messages]

    async def _examine(self, tasks: Sequence[Task]) -> list[Finding]:
        return []


def reached(**seqs: int) -> dict[str, Reached]:
    return {source: Reached(seq, None, None) for source, seq in seqs.items()}


@pytest.fixture
async def stage() -> Stage:
    return Stage()


async def test_what_only_moves_a_cursor_waits_for_messages(stage: Stage) -> None:
    running = asyncio.create_task(stage.queue.run())
    await stage.offer("b", 1, at=5.0)
    await stage.offer("b", 2, at=6.0)
    assert await stage.settle() == []
    await stage.offer("a", 7, messages=1, at=8.0)
    assert await stage.settle() == [reached(a=7, b=2)]
    assert (stage.runs[0].offers, stage.runs[0].received_at) == (3, 8.0)
    running.cancel()


async def test_it_is_stored_when_it_is_flushed_and_when_somebody_waits_for_it(stage: Stage) -> None:
    running = asyncio.create_task(stage.queue.run())
    await stage.offer("b", 1)
    stage.queue.flush()
    assert await stage.settle() == [reached(b=1)]
    await stage.offer("b", 2)
    waiting = asyncio.create_task(stage.queue.wait_stored())
    assert await stage.settle() == [reached(b=1), reached(b=2)]
    await waiting
    stage.queue.flush()
    assert len(await stage.settle()) == 2
    running.cancel()


async def test_it_never_fills_the_queue(stage: Stage) -> None:
    running = asyncio.create_task(stage.queue.run())
    for seq in range(1, 4):
        await stage.offer("b", seq)
    assert await stage.settle() == []
    await stage.offer("b", 4)
    assert await stage.settle() == [reached(b=4)]
    running.cancel()
