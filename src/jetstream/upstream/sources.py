"""All upstreams of a server: one source each, which are added and removed while the server runs.

    upstreams ──apply──▶ Sources ──build──▶ Source ──▶ store
    (settings, file)        │                 ▲
                            └── a Link each ──┘

A source knows of no other. What several share is in the `Link` of each: PDSes, of which there may be
hundreds, connect one after another, and share a throttled log. `apply` starts and stops sources until there
is one for each upstream that is wanted. A source that is removed is forgotten: its connection, its cursor,
and its conditions.

An error of the server itself, by what one upstream sends, ends only that connection: a new source begins at
what is stored. Nothing that the one before has read and not stored is lost, and nothing of its state is used.
If the same message comes again each time, the upstream is stuck there, which is a condition. Errors that are
raised on purpose, such as those of the log, end the server.

A relay that is gone for a minute is a condition, and so is it when all are gone. Of PDSes only their number
is shown: among hundreds, some are always gone.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Final, NamedTuple

import structlog

from jetstream.clock import unix_us
from jetstream.conditions import Conditions
from jetstream.errors import JetstreamError
from jetstream.limits import SourceLimits
from jetstream.logging_setup import Throttled
from jetstream.retry import backoff_s
from jetstream.status import PdsStatus, UpstreamStatus
from jetstream.upstream.reconnecting import Link, Reconnecting
from jetstream.upstreams import Upstream, named

# Makes a source that was not started. And removes the cursors of sources by their names, after they have
# ended.
Build = Callable[[Upstream, Link], Reconnecting]
Forget = Callable[[Collection[str]], Awaitable[None]]

# Names of the conditions. The second is of one source, by its name.
ALL_GONE: Final = "upstreams_gone"
ONE_GONE: Final = "upstream_gone"
STUCK: Final = "upstream_stuck"

logger = structlog.get_logger(__name__)


class Applied(NamedTuple):
    """What `Sources.apply` did: names of sources."""

    # Not there before.
    added: list[str]
    # Not wanted any more: their cursors are gone.
    removed: list[str]
    # Another URL or kind; the name and the cursor stayed.
    replaced: list[str]
    # The others, whose connections go on.
    unchanged: list[str]


@dataclass(slots=True)
class _Running:
    """A source of `Sources`, with what it was built from and the task that reads it."""

    upstream: Upstream
    link: Link
    # Replaced after each error of the server itself.
    source: Reconnecting
    # Such errors in a row, after which the source began at the same cursor; and that cursor.
    faults: int = 0
    resumed_after: int | None = None
    # The cursor of the source that has failed last: what it had taken, which it may not have stored.
    failed_after: int | None = None
    # When the source was first seen with its connection, by the clock of `Sources`. None: it has none, or has
    # failed since.
    seen_at: float | None = None
    # Since it was started; None: `Sources.start` was not called yet.
    task: asyncio.Task[None] | None = field(default=None)

    def is_unstuck(self, now: float, after_s: float) -> bool:
        """Return whether the source has come further than the one that has failed, or its connection lasts.

        What the one before had taken and not stored comes again, and is no progress. A sequence that
        restarts has lower numbers: then it counts that the connection has lasted for `after_s`. To be
        called every second or so.
        """
        if not self.source.is_connected:
            self.seen_at = None
            return False
        if self.seen_at is None:
            self.seen_at = now
        seq, failed_after = self.source.seq, self.failed_after
        is_beyond = seq is not None and (failed_after is None or seq > failed_after)
        return is_beyond or now - self.seen_at >= after_s


class Sources:
    """The sources of one server, in the order in which they are wanted.

    `build` makes a source. `forget` removes the cursors of sources by their names. `on_change` is called
    whenever `connected` may have changed. `is_awaited` tells whether a subscriber waits for events. `clock`
    gives monotonic seconds, `now_us` unix microseconds.
    """

    def __init__(
        self,
        build: Build,
        forget: Forget,
        conditions: Conditions,
        limits: SourceLimits = SourceLimits(),
        *,
        on_change: Callable[[], None] = lambda: None,
        is_awaited: Callable[[], bool] = lambda: True,
        clock: Callable[[], float] = time.monotonic,
        now_us: Callable[[], int] = unix_us,
    ) -> None:
        self._build = build
        self._forget = forget
        self._conditions = conditions
        self._limits = limits
        self._on_change = on_change
        self._is_awaited = is_awaited
        self._clock = clock
        self._now_us = now_us
        # Each source by its name, in order. `apply` replaces it.
        self._all: dict[str, _Running] = {}
        # Runs the tasks of the sources; None before `start`.
        self._tasks: asyncio.TaskGroup | None = None
        # Whose turn it is to connect, and what is logged of connections, of all PDSes.
        self._turns = Turns(limits.pds_connects_per_s, clock)
        self._pds_logger = Throttled(structlog.get_logger("jetstream.upstream.source"))
        # What `connected` returns; None: it must be made again.
        self._connected: list[str] | None = None
        # What `pds` returned last, and when that was.
        self._pds: tuple[float, PdsStatus | None] = (float("-inf"), None)
        # When the number of PDSes without a connection was logged last.
        self._reported_at = clock()

    def __iter__(self) -> Iterator[Reconnecting]:
        """Iterate over the sources, in order."""
        return (each.source for each in self._all.values())

    def __len__(self) -> int:
        """Return how many sources there are."""
        return len(self._all)

    @property
    def connected(self) -> list[str]:
        """The names of the sources that have a connection, in order. Not to be changed."""
        if self._connected is None:
            self._connected = [name for name, each in self._all.items() if each.source.is_connected]
        return self._connected

    def start(self, tasks: asyncio.TaskGroup) -> None:
        """Read all upstreams, also those that come later, in tasks of a group. To be called once."""
        self._tasks = tasks
        for each in self._all.values():
            self._start(each, tasks)

    async def apply(self, wanted: Sequence[Upstream]) -> Applied:
        """Let there be a source for each of these upstreams, whose names are unique, and for no other.

        Those that are unchanged go on. One that has another URL or kind is replaced, and goes on after
        its cursor. Returns once the cursors of those that are removed are gone. Not to be called twice at
        a time. Sources end before others are built, so that no two of one name run. Raises what `forget`
        raises.
        """
        before, after = self._all, {each.name: each for each in wanted}
        await asyncio.sleep(0)  # each of these looks at thousands, and takes some milliseconds
        kept = {name: each for name, each in before.items() if after.get(name) == each.upstream}
        ended = {name: each for name, each in before.items() if name not in kept}
        await asyncio.sleep(0)
        await self._end(ended.values())
        self._all = {name: kept.get(name) or await self._built(each) for name, each in after.items()}
        self._changed()
        await asyncio.sleep(0)
        removed = [name for name in ended if name not in after]
        if removed:
            await self._forget(removed)
        added = [name for name in after if name not in before]
        return Applied(added, removed, [name for name in ended if name in after], list(kept))

    def relays(self) -> tuple[UpstreamStatus, ...]:
        """Return where the server stands with each upstream that is no PDS."""
        return tuple(each.status() for each in self._of_relays())

    def pds(self) -> PdsStatus | None:
        """Return how many PDSes are in which state, at most a second ago; None: there are none."""
        at, status = self._pds
        if self._clock() - at > self._limits.pds_status_s:
            status = self._count_pds()
            self._pds = self._clock(), status
        return status

    def check(self) -> None:
        """Begin and end the conditions of upstreams that are gone. To be called every second or so."""
        gone_s = self._limits.gone_s
        all_gone = bool(self._all) and not self.connected and all(each.gone_s >= gone_s for each in self)
        self._conditions.set(ALL_GONE, self._all_gone() if all_gone else None)
        for source in self._of_relays():
            is_gone = source.gone_s >= gone_s and not all_gone
            self._conditions.set(ONE_GONE, self._one_gone(source) if is_gone else None, source.name)
        for each in self._all.values():
            if each.faults and each.is_unstuck(self._clock(), self._limits.unstuck_s):
                each.faults = 0
                self._conditions.end(STUCK, each.upstream.name)
        self._report()

    def _of_relays(self) -> list[Reconnecting]:
        """Return the sources that are no PDSes, in order: relays, and Jetstreams."""
        return [source for source in self if source.kind != "pds"]

    async def _built(self, upstream: Upstream) -> _Running:
        """Return a source for an upstream, which is started if the others are.

        PDSes share a logger and take turns to connect; a relay has a logger of its own, and connects
        whenever it is due.
        """
        await asyncio.sleep(0)  # to build hundreds takes longer than one turn of the event loop may
        is_pds = upstream.kind == "pds"
        throttled = (
            self._pds_logger if is_pds else Throttled(structlog.get_logger("jetstream.upstream.source"))
        )
        turn = self._turns.wait if is_pds else _at_once
        link = Link(
            throttled.bind(upstream=upstream.name), turn, self._changed, self._is_awaited, self._now_us
        )
        built = _Running(upstream, link, self._build(upstream, link))
        if self._tasks is not None:
            self._start(built, self._tasks)
        return built

    def _start(self, each: _Running, tasks: asyncio.TaskGroup) -> None:
        """Have an upstream read, until its task is cancelled."""
        each.task = tasks.create_task(self._read(each))

    async def _read(self, each: _Running) -> None:
        """Read an upstream until cancelled, with a new source after each error of the server itself.

        Raises JetstreamError.
        """
        while True:
            try:
                await each.source.run()
            except JetstreamError:
                raise
            except Exception as error:
                kind = type(error).__name__
                each.source.count_fault()
                each.link.logger.exception("upstream: an error of the server itself", url=each.source.url)
            await self._begin_again(each, kind)

    async def _begin_again(self, each: _Running, kind: str) -> None:
        """Replace a source after an error of a kind by one that begins at what is stored."""
        limits, before = self._limits, each.source
        each.failed_after, each.seen_at = before.seq, None
        await asyncio.sleep(backoff_s(each.faults, limits.fault_pause_s, limits.fault_pause_max_s))
        each.source = self._build(each.upstream, each.link)
        each.source.take_over(before)
        is_stuck = each.faults > 0 and each.source.seq == each.resumed_after
        each.faults = each.faults + 1 if is_stuck else 1
        each.resumed_after = each.source.seq
        if is_stuck:
            text = f"{each.source.name}: nothing after {each.resumed_after} is taken: an error of the server"
            problem = f"{text} itself ({kind}) has ended the connection {each.faults} times in a row"
            self._conditions.begin(STUCK, problem, each.upstream.name)

    async def _end(self, ended: Collection[_Running]) -> None:
        """Stop sources, and wait until none of them stores anything any more."""
        tasks = [each.task for each in ended if each.task is not None]
        for number, task in enumerate(tasks, 1):
            task.cancel()
            if number % self._limits.ends_per_turn == 0:
                await asyncio.sleep(0)
        if tasks:
            await asyncio.wait(tasks)
        for each in ended:
            self._conditions.end_all(each.upstream.name)

    def _changed(self) -> None:
        """Forget what was computed from the connections, which have changed. It is computed when asked for.

        Called by a source when its connection has begun or ended (`Link.changed`), and when there are
        other sources.
        """
        self._connected = None
        self._pds = float("-inf"), None
        self._on_change()

    def _count_pds(self) -> PdsStatus | None:
        """Return how many PDSes are in which state, as of now; None: there are none.

        It looks at each: `pds` keeps the result for `pds_status_s`.
        """
        sources = [source for source in self if source.kind == "pds"]
        if not sources:
            return None
        gone = (source.name for source in sources if not source.is_connected)
        ages = (age for source in sources if (age := source.last_frame_age_s) is not None)
        return PdsStatus(
            Counter(source.state for source in sources),
            tuple(islice(gone, self._limits.named_max)),
            min(ages, default=None),
        )

    def _all_gone(self) -> str:
        """Return the reason for `upstreams_gone`, with what one of the sources has met, if any has."""
        names = named([source.name for source in self], self._limits.named_max)
        text = f"no upstream is connected, for {self._limits.gone_s:g} s and more: {names}"
        return text + next((_problem(source) for source in self if source.problem), "")

    def _one_gone(self, source: Reconnecting) -> str:
        """Return the reason for `upstream_gone` of a source."""
        others = f"{len(self.connected)} of {len(self)} upstreams are connected"
        gone = f"{source.name} ({source.url}) has been gone for {source.gone_s:.0f} s"
        return f"{gone}; {others}{_problem(source)}"

    def _report(self) -> None:
        """Log once a minute how many PDSes have no connection, if there are any."""
        if self._clock() - self._reported_at < self._limits.report_every_s:
            return
        self._reported_at = self._clock()
        status = self.pds()
        if status is not None and status.states["reconnecting"]:
            logger.warning(
                "upstream: PDSes are not connected",
                not_connected=status.states["reconnecting"],
                of=status.states.total(),
                such_as=", ".join(status.gone),
            )


def _problem(source: Reconnecting) -> str:
    """Return why the last attempt of a source to connect has failed, to be appended; empty: none has."""
    return f"; {source.name}: {source.problem}" if source.problem else ""


class Turns:
    """Lets sources connect one after another, so many a second on average. `clock` gives seconds.

    Hundreds of PDSes would else connect at once after a start or a network failure. Turns that nobody
    takes are not saved up.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._mean_s = 1 / per_s
        self._clock = clock
        # When the next turn is.
        self._next_at = clock()

    def take(self) -> float:
        """Take the next turn; return how many seconds it is from now. The time to the one after it varies."""
        now = self._clock()
        at = max(self._next_at, now)
        self._next_at = at + self._mean_s * random.uniform(0.5, 1.5)  # noqa: S311 - jitter
        return at - now

    async def wait(self) -> None:
        """Take the next turn, and wait for it."""
        await asyncio.sleep(self.take())


async def _at_once() -> None:
    """Return: a relay may connect whenever it is due."""
