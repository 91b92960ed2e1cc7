"""The one queue between all sources and the judge, in which messages are examined.

    source A ─┐ offer                        ┌─ Run: messages, their findings, the cursors after them
    source B ─┼──────▶ queue ──▶ examine ──▶ runs ──▶ admission judges the first that is examined
    source C ─┘ (waits)

A *run* is what is examined, judged and stored at once: the batches that wait, up to a limit. While one run is
judged and stored, the next ones are examined. The order is that of arrival, from the queue to the log.

A batch without messages only moves the cursor of its source: all of it was known, as nearly everything is
that a second relay sends. It waits for the next batch that has messages, or for `flush`, so it costs no run
and no append of its own. If the process ends before that, these frames come again, and are known again.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from jetstream.admission.examiners.examination import Task, blocks_bytes
from jetstream.admission.message import Message, did_of
from jetstream.admission.parts import Examine
from jetstream.limits import AdmissionLimits
from jetstream.scheduling import Notifier
from jetstream.upstream.pipeline import DecodedBatch

# Returns the task of a message; None: it has none. May wait until the keys that are on disk are in memory.
Prepare = Callable[[list[Message]], Awaitable[list[Task | None]]]


class Reached(NamedTuple):
    """How far a source was read: the numbers of its tracker after a batch (`upstream.seq_tracker`)."""

    # The cursor to resume after; None while nothing is known.
    seq: int | None
    # A number above it that was accepted and is not confirmed.
    provisional: int | None
    # What the cursor was before the numbers fell, while frames from before that may come again.
    fell_from: int | None


class _Offer(NamedTuple):
    """A batch that waits to be examined."""

    source: str
    batch: DecodedBatch
    # When the oldest of its frames was received, in monotonic seconds.
    received_at: float
    # Bytes of the blocks of its messages, which count for the limit of the queue.
    size: int
    # That of a source that is a PDS (`Message.host`); None: it is a relay.
    host: str | None


@dataclass(slots=True, eq=False)
class Run:
    """What is judged and stored at once."""

    # In the order of arrival: of the batches, and of the messages in each.
    messages: list[Message] = field(default_factory=list)
    # How far each source was read when its messages here were accepted.
    reached: dict[str, Reached] = field(default_factory=dict)
    # When the oldest frame of a batch with messages was received, in monotonic seconds.
    received_at: float = float("inf")
    # How many batches of sources this is, and how many ops the messages have.
    offers: int = 0
    ops: int = 0
    # Sets the findings of the messages. Done: the run can be judged.
    examining: asyncio.Task[None] | None = None


class InputQueue:
    """The queue and its examination. `on_ready` is called when the first run may be ready.

    `prepare` makes the task of each message, and `examine` has tasks examined: both are called by the
    task of `run`, for one run at a time. `clock` gives monotonic seconds.
    """

    def __init__(
        self,
        prepare: Prepare,
        examine: Examine,
        on_ready: Callable[[], None],
        limits: AdmissionLimits = AdmissionLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._prepare = prepare
        self._examine = examine
        self._on_ready = on_ready
        self._limits = limits
        self._clock = clock
        # Batches that were accepted and are not in a run, oldest first, and their bytes.
        self._offers: deque[_Offer] = deque()
        self._bytes = 0
        # Whether they must be examined now. False while none of them has messages.
        self._is_due = False
        # Runs that are examined, or are and wait to be judged, oldest first: `runs_max` at most.
        self._runs: deque[Run] = deque()
        # How many batches were ever offered, and how many of them were judged and stored.
        self._offered = 0
        self._stored = 0
        # Notified when a batch was offered, taken from the queue, or stored.
        self._changed = Notifier()

    async def offer(
        self, source: str, batch: DecodedBatch, received_at: float, host: str | None = None
    ) -> None:
        """Add a batch. Waits while the queue is full; gives the event loop a turn in any case.

        Full is `queue_bytes_max` bytes of blocks, or `queue_batches_max` batches. A source offers its
        batches one after another, so this keeps their order. `host` is that of a source that is a PDS
        (`Message.host`).
        """
        await asyncio.sleep(0)
        limits = self._limits
        while self._bytes > limits.queue_bytes_max or len(self._offers) >= limits.queue_batches_max:
            await self._changed.wait()
        size = sum(blocks_bytes(envelope.fields) for _, envelope in batch.accepted_messages)
        self._offers.append(_Offer(source, batch, received_at, size, host))
        self._bytes += size
        self._offered += 1
        if batch.accepted_messages or len(self._offers) >= limits.queue_batches_max // 2:
            self.flush()

    def flush(self) -> None:
        """Have what was offered examined, even if it has no messages."""
        self._is_due = bool(self._offers)
        self._changed.notify()

    async def wait_stored(self) -> None:
        """Return when all that was offered before is judged, and stored unless it waits for something.

        Needs the tasks of `Admission.running`; without them it does not return.
        """
        self.flush()
        offered = self._offered
        while self._stored < offered:
            await self._changed.wait()

    def first_examined(self) -> Run | None:
        """Return the oldest run and remove it, if it is examined; else None.

        Raises what its examination has raised, such as WorkerError. `note_stored` must follow, or
        `wait_stored` does not return.
        """
        if not self._runs or (task := self._runs[0].examining) is None or not task.done():
            return None
        task.result()
        run = self._runs.popleft()
        self._changed.notify()
        return run

    def note_stored(self, run: Run) -> None:
        """Note that a run is judged and stored."""
        self._stored += run.offers
        self._changed.notify()

    async def run(self) -> None:
        """Examine what is offered, until cancelled; at most `runs_max` runs at a time.

        The keys of a run are read before its examination begins, so runs are prepared in order and
        examined side by side. When it ends, examinations that are not done are cancelled.
        """
        try:
            while True:
                while not self._is_due or len(self._runs) >= self._limits.runs_max:
                    await self._changed.wait()
                run = self._next_run()
                tasks = await self._prepare(run.messages)
                run.examining = asyncio.create_task(self._find(run, tasks))
                run.examining.add_done_callback(lambda _: self._on_ready())
                self._runs.append(run)
        finally:
            for run in self._runs:
                if run.examining is not None:
                    run.examining.cancel()

    def _next_run(self) -> Run:
        """Return the batches that wait, up to a limit, as a run. The first one has its place in any case."""
        run = Run()
        while self._offers and (not run.offers or self._fits(run)):
            offer = self._offers.popleft()
            source, batch = offer.source, offer.batch
            run.offers += 1
            run.ops += batch.ops
            run.messages += _messages(offer, self._clock())
            run.reached[source] = Reached(batch.seq, batch.provisional, batch.fell_from)
            if batch.accepted_messages:
                run.received_at = min(run.received_at, offer.received_at)
            self._bytes -= offer.size
        self._is_due = bool(self._offers)
        self._changed.notify()
        return run

    def _fits(self, run: Run) -> bool:
        """Return whether the next batch may be part of a run."""
        batch, limits = self._offers[0].batch, self._limits
        fits = len(run.messages) + len(batch.accepted_messages) <= limits.run_messages_max
        return fits and run.ops + batch.ops <= limits.run_ops_max

    async def _find(self, run: Run, tasks: list[Task | None]) -> None:
        """Examine a run: set the findings of its messages that have a task. The others keep theirs."""
        places = [place for place, task in enumerate(tasks) if task is not None]
        findings = await self._examine([task for task in tasks if task is not None])
        for place, finding in zip(places, findings, strict=True):
            run.messages[place].finding = finding


def _messages(offer: _Offer, now: float) -> Iterable[Message]:
    """Return the messages of a batch, which arrive now: the time for which they may wait begins."""
    source, host, accepted = offer.source, offer.host, offer.batch.accepted_messages
    return [Message(source, seq, envelope, did_of(envelope), now, host) for seq, envelope in accepted]
