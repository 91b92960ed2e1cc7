"""Between the sources and the log: what they have accepted is examined, judged in order, and stored.

    sources ─offer─▶ InputQueue ──examined runs──▶ Judge ──events, changes──▶ Ingest ─▶ log
                                                    │  ▲
                                                    ▼  │ what steps aside
                                            Suspended, held

A message that needs more than what is at hand steps aside, and so do those of its repository that come after
it. No other repository waits. Each of them is in the cursor of its source as one that is not stored. So a
crash loses none of them, and what did not wait is not stored twice.

    no key is known                    until the key comes, 10 s at most; then `--unresolved` decides
    it is signed by another key        until the earlier keys of the account are there
    a copy of it was examined, and     until it is examined itself
    was not passed on
    it does not prove its ops, and     until another source brings it with a proof, 2 s at most
    another source is connected
    messages before it are missing,    until another source brings them, 2 s at most; then it is passed on,
    and another source is connected    with a gap

What is judged and not stored is lost with the process, and judged again by the next one.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial

from jetstream.admission.accounts import Difference
from jetstream.admission.input_queue import InputQueue, Run
from jetstream.admission.judge import Judge
from jetstream.admission.message import Message
from jetstream.admission.output import Output
from jetstream.admission.parts import Parts
from jetstream.admission.rules import Rules
from jetstream.atproto.compact_did import compact_did
from jetstream.eventlog import Changes
from jetstream.identity.addresses import endpoint
from jetstream.limits import Limits
from jetstream.model.event import Key
from jetstream.scheduling import Notifier
from jetstream.upstream.envelope import Envelope
from jetstream.upstream.pipeline import DecodedBatch
from jetstream.upstreams import PDS_LABEL, Upstream


class Admission:
    """What all sources have in common: their messages are judged together, in one order.

    Used by the event loop's thread only. `clock` gives monotonic seconds. Sources call `join` and
    `offer`; nothing is judged before `running` is entered. An error of the log or of the processes that
    examine ends `running` with it: it goes to the task group of its caller.
    """

    def __init__(
        self,
        rules: Rules,
        parts: Parts,
        limits: Limits = Limits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._parts = parts
        self._limits = limits.admission
        self._clock = clock
        # Set when there may be something to do: by the queue, by a task that is done, by a change of
        # sources. Cleared at the start of each turn of `_judge_all`.
        self._wake = asyncio.Event()
        # Notified after each append. `forget` waits for it.
        self._stored = Notifier()
        # Whether the connections of the sources may have changed since `Accounts.update` was told of
        # them.
        self._must_look = True
        # What is being stored; empty while nothing is. It is neither with the judge nor in the log, so
        # `holds` looks here as well.
        self._storing = Output()
        self._judge = Judge(rules, parts, self._wake, limits, clock)
        # The queue knows nothing of keys: it has the task of each message made here.
        prepare = self._judge.signatures.prepare
        self._queue = InputQueue(prepare, parts.examine, self._wake.set, self._limits, clock)

    # --- for the sources ---

    async def use(self, upstreams: Sequence[Upstream]) -> None:
        """Set the sources that are in use, in their order: those of the settings, as they are now.

        The order of the relays decides which of them speaks for an account first (`accounts`). Called
        after the sources were started and ended, and at the start. Not to be called twice at a time.
        """
        relays = [each.name for each in upstreams if each.kind == "relay"]
        hosts = {each.name: each.url for each in upstreams if each.kind == "pds"}
        for _ in self._judge.hosting.use(relays, hosts, self._limits.hosts_per_turn):
            await asyncio.sleep(0)
        self._parts.accounts.set_sources(relays, hosts, self._clock())
        self.check()

    async def settle(self) -> None:
        """Return when all is forgotten that removed sources have said of accounts.

        Until then, none of them may be in use again.
        """
        has_more = True
        while has_more:
            has_more = self._parts.accounts.forget_some(self._limits.accounts_per_turn)
            await asyncio.sleep(0)
        self._wake.set()  # to store that

    def join(
        self, source: str, pds_url: str | None = None
    ) -> Callable[[DecodedBatch, float], Awaitable[None]]:
        """Let a source be in use, by its name; return what takes its batches. Its stored cursor stays.

        `pds_url` is the URL of a PDS; None: the source is a relay. The function that is returned takes a
        batch and when the oldest of its frames was received, in monotonic seconds, and waits while the
        queue is full: that is the backpressure of this source.
        """
        self._judge.marks.add(source, self._parts.log.cursors.get(source))
        return partial(self.offer, source, None if pds_url is None else endpoint(pds_url))

    async def forget(self, sources: Collection[str]) -> None:
        """Return when the cursors of sources that are not in use any more are removed.

        It waits for an append, which removes each cursor that `Changes` does not have. The sources must
        have ended.
        """
        await self._queue.wait_stored()  # a run that has some of their messages would bring a cursor back
        for source in sources:
            self._judge.marks.remove(source)
        self._wake.set()
        while not self._parts.log.cursors.keys().isdisjoint(sources):
            await self._stored.wait()

    def check(self) -> None:
        """Look at which sources are connected, and store the cursors of those that bring nothing new.

        To be called when a connection changes, and every second or so.
        """
        self._must_look = True
        self._queue.flush()
        self._wake.set()

    def knows(self, envelope: Envelope) -> bool | None:
        """Return whether a commit or #sync was judged before: see `upstream.pipeline.Knows`."""
        return self._judge.knows(envelope)

    async def offer(self, source: str, host: str | None, batch: DecodedBatch, received_at: float) -> None:
        """Take what a source has accepted. Waits while too much is queued. `host` is that of a PDS."""
        if batch.known:
            self._parts.metrics.verdicts["replay", ""].inc(batch.known)
        await self._queue.offer(source, batch, received_at, host)

    @property
    def floor(self) -> int:
        """The lowest position from which nothing is missing in the log."""
        return self._parts.log.floor

    @property
    def tip(self) -> int:
        """The newest position of the log."""
        return self._parts.log.tip

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        """Return the keys of all that was taken: stored, each with a position, or not yet, with 0.

        First it waits until all that was offered before is judged and stored, as far as it does not wait.
        A source asks this about frames in doubt (`upstream.pipeline`). Raises LogError.
        """
        await self._queue.wait_stored()
        stored_next = {event.key for event in self._storing.events}.intersection(keys)
        waiting = dict.fromkeys(self._judge.waiting_among(keys) | stored_next, 0)
        rest = [key for key in keys if key not in waiting]
        return waiting | (await self._parts.log.holds(rest) if rest else {})

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        """Return the keys of the oldest events of the log in `[position, stop)`."""
        return await self._parts.log.keys_from(position, stop)

    @property
    def waiting(self) -> int:
        """How many messages wait, for a key or for those before them."""
        return len(self._judge)

    # --- the judge's loop ---

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Examine, judge and store. At the end, what was offered is stored; what waits then is not.

        The end is not waited for longer than `finish_s`. What waits is in the cursors as not stored, so
        the next process gets it again.
        """
        async with asyncio.TaskGroup() as tasks:
            work = [tasks.create_task(self._queue.run()), tasks.create_task(self._judge_all())]
            try:
                yield
                with suppress(TimeoutError):
                    async with asyncio.timeout(self._limits.finish_s):
                        await self._queue.wait_stored()
            finally:
                for task in work:
                    task.cancel()
                self._judge.close()

    async def _judge_all(self) -> None:
        """Judge and store, turn after turn, until cancelled.

        `_wake` is cleared before the work, so that what is set meanwhile begins another turn. It is
        waited for only after a turn without a run in which nothing was stored.
        """
        while True:
            self._wake.clear()
            run = await self._judge_some()
            has_stored = await self._store()
            if run is not None:
                self._queue.note_stored(run)
            elif not has_stored:
                await self._wait()

    async def _judge_some(self) -> Run | None:
        """Judge what is due or ready, and the first run if it is examined; return the run.

        The order keeps messages of one repository in order: what has waited comes before what has arrived
        since. What changes accounts comes between the two.
        """
        turn = Turn(self._limits.turn_s, self._clock)
        judge = self._judge
        judge.begin(self._parts.now_us())
        if self._must_look:
            self._must_look = False
            self._parts.accounts.update(self._parts.connected(), self._clock())
        # What has waited for too long goes first: it may be all that keeps a cursor back.
        judge.take_due(self._limits.due_per_turn)
        await self._judge_in_hand(turn)
        await turn.pause()
        # Then repositories whose key or finding has come, one at a time, until there are enough events
        # for one append.
        while judge.has_ready and len(judge.output.events) < self._limits.run_ops_max:
            judge.take_ready()
            await self._judge_in_hand(turn)
        # Then what readers must be told of accounts because another source decides.
        differences = judge.changed_accounts(self._limits.accounts_per_turn)
        await self._load(differences)
        judge.tell_accounts(differences)
        if not self._parts.accounts.is_settled:
            self._wake.set()  # to look at the others, after a turn of everybody else
            await asyncio.sleep(0)
        # Last, what has arrived. A run that is still being examined waits for another turn.
        run = self._queue.first_examined()
        if run is not None:
            await self._judge_run(run, turn)
        return run

    async def _judge_in_hand(self, turn: Turn) -> None:
        """Judge messages that have waited."""
        await self._load(self._judge.in_hand)
        for _ in self._judge.judge_in_hand():
            await turn.pause()

    async def _load(self, judged_next: Sequence[Message | Difference]) -> None:
        """Have the states at hand of what is judged next, if the log does not always have them."""
        if judged_next and self._parts.ahead is not None:
            await self._parts.ahead.load_repos({compact_did(each.did) for each in judged_next})

    async def _judge_run(self, run: Run, turn: Turn) -> None:
        """Judge the messages of a run that is examined.

        The cursors move on after all of them, when those that wait are marked.
        """
        judge = self._judge
        await self._load(run.messages)
        for message in run.messages:
            judge.take(message)
            if turn.is_over:
                await turn.pause()
        if run.messages:
            judge.output.note_received(run.received_at)
        for source, reached in run.reached.items():
            judge.marks.advance(source, *reached)

    async def _store(self) -> bool:
        """Store what was judged; return whether there was anything.

        Cursors that have moved are something. Events, states of repositories and accounts, gaps and
        cursors are one transaction of the log, so a crash leaves all of them or none. Returns when the
        readers that the log waits for are ready for more.
        """
        output = self._storing = self._judge.output
        # What is judged while this is stored belongs to the next append.
        self._judge.output = Output()
        self._count(output)
        repos, accounts = self._judge.states.changes(), self._judge.account_changes()
        cursors = self._judge.marks.cursors
        if not output.events and not repos and not accounts and cursors == self._parts.log.cursors:
            return False

        def changes(first_us: int) -> Changes:
            """Return what is stored with the events, given the position of the first one."""
            return Changes(cursors, repos, [gap.at(first_us + gap.place) for gap in output.gaps], accounts)

        await self._parts.append(output.events, changes, output.received_at)
        self._storing = Output()
        self._judge.states.stored()
        self._stored.notify()
        return True

    async def _wait(self) -> None:
        """Wait until something is ready or due, or a run is examined."""
        due = self._judge.next_due()
        timeout_s = None if due is None else max(0.0, due - self._clock())
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()

    def _count(self, output: Output) -> None:
        """Count verdicts, gaps and drops, once for each output, before it is stored."""
        metrics = self._parts.metrics
        self._judge.reports.count(output.verdicts)
        for verdict, count in output.verdicts.items():
            metrics.verdicts[verdict].inc(count)
        for gap in output.gaps:
            metrics.gaps[gap.cause].inc()
        for (source, reason), count in output.drops.items():
            # Relays stay the same. Any other source is a PDS, in use or not.
            label = source if source in self._parts.accounts.relays else PDS_LABEL
            metrics.drops(label)[reason].inc(count)


class Turn:
    """One turn of the event loop: up to `turn_s` seconds of work, which begins when it is made.

    It bounds what judging adds to the delay of everything else on the event loop.
    """

    def __init__(self, turn_s: float, clock: Callable[[], float]) -> None:
        self._turn_s = turn_s
        self._clock = clock
        # When this turn is over, in seconds of the clock. `pause` begins the next one.
        self._until = clock() + turn_s

    @property
    def is_over(self) -> bool:
        """Whether others should have their turn."""
        return self._clock() >= self._until

    async def pause(self) -> None:
        """Give others their turn, if this one is over."""
        if self.is_over:
            await asyncio.sleep(0)
            self._until = self._clock() + self._turn_s
