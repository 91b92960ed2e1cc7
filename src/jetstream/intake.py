"""What a server reads: its upstreams by the settings, a `Source` for each, and the writer that stores them.

    settings ─▶ upstreams ─▶ Sources ─▶ Source: Pipeline, SeqTracker ─┐
                   ▲                    Source: Pipeline, SeqTracker ─┼─▶ (Admission) ─▶ Ingest ─▶ log
    file ──────────┘ again at SIGHUP    …                             ┘

The upstreams of `--upstream` are the same while the server runs. Those of the file can change. There is
an `Admission` if messages are verified or upstreams are merged.

A pipeline decodes and checks the frames of one upstream, and its SeqTracker knows where to resume. What
it decodes goes to admission, which judges it and puts together what several upstreams deliver, or
directly to `Ingest`. Of a Jetstream, which alone is read then, `MirrorSource` takes the place of both.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import AsyncExitStack, nullcontext
from typing import TYPE_CHECKING

import structlog

from jetstream.conditions import Conditions
from jetstream.errors import SettingError
from jetstream.eventlog import Cursors, ReadWriteLog
from jetstream.ingest import Ingest, Stamper
from jetstream.limits import Limits, UpstreamLimits
from jetstream.metrics import Metrics, UpstreamMetrics
from jetstream.settings import Settings
from jetstream.token_bucket import TokenBucket
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import MESSAGE_TYPES
from jetstream.upstream.pipeline import Pipeline
from jetstream.upstream.reconnecting import Link, Reconnecting
from jetstream.upstream.seq_tracker import SeqTracker
from jetstream.upstream.source import Source
from jetstream.upstream.sources import Applied, Sources
from jetstream.upstreams import PDS_LABEL, Upstream, all_upstreams, cursors_of, is_empty, named
from jetstream.verify_modes import SIGNED_MODES

if TYPE_CHECKING:
    from jetstream.admission.admission import Admission

logger = structlog.get_logger(__name__)


def starts_of(settings: Settings, upstreams: Sequence[Upstream]) -> dict[str, int]:
    """Return where upstreams start instead of where the log says, by name. Raises SettingError.

    Raises it also for a name that is no upstream, and for a number without a name where there are
    several upstreams.
    """
    return cursors_of(settings.upstream_cursor, upstreams, may_change=settings.upstream_file is not None)


def upstreams_of(settings: Settings, limits: Limits) -> tuple[Upstream, ...]:
    """Return the upstreams of the settings, and of the file as it is now. Raises SettingError.

    Reads the file each time, in the thread that calls: 10,000 lines take 0.1 s.
    """
    return all_upstreams(settings.upstream, settings.upstream_file, limits.sources)


class Intake:
    """The upstreams of one server, and what becomes of their frames. Call `open`, then `run`, then `close`.

    `now_us` gives unix microseconds. `is_awaited` tells whether a subscriber waits for events. An
    intake that `takes_over` goes on after the cursors of the log, whatever the settings say of these
    sources.

    A server that reads upstream has one. A process that leads a log in PostgreSQL makes another one for
    each term.
    """

    def __init__(
        self,
        settings: Settings,
        log: ReadWriteLog,
        now_us: Callable[[], int],
        metrics: Metrics,
        conditions: Conditions,
        limits: Limits,
        is_awaited: Callable[[], bool] = lambda: True,
        *,
        takes_over: bool = False,
    ) -> None:
        self._settings = settings
        # Read for the cursors at the beginning, and written only by `_ingest` and by admission.
        self._log = log
        self._metrics = metrics
        self._conditions = conditions
        self._limits = limits
        # The only writer of events of this log.
        self._ingest = Ingest(log, Stamper(log.tip, now_us), metrics, conditions)
        if settings.mirrored is None:  # else the positions of events are those of the upstream
            log.next_position = self._ingest.next_position
        # What is read now. `apply` changes it, at the start and after each SIGHUP.
        self.sources = Sources(
            self._source,
            self._forget,
            conditions,
            limits.sources,
            on_change=self._connections_changed,
            is_awaited=is_awaited,
            now_us=now_us,
        )
        # Whether the cursors of the log come before those of the settings, which were for the first
        # start.
        self._takes_over = takes_over
        self._now_us = now_us
        # What judges messages; None: they are stored as they come. Set by `open`.
        self.admission: Admission | None = None
        # What `open` has opened, and `close` closes: the parts of admission.
        self._closing = AsyncExitStack()
        # The counters of upstreams by their label. They stay when an upstream is removed, so that none falls.
        self._labels: dict[str, UpstreamMetrics] = {}
        # Where a source starts instead of where the log says, until it has stored a cursor or is forgotten;
        # and the cursors of the log before that. Set by `open`.
        self._starts: dict[str, int] = {}
        self._before: Cursors = {}

    async def open(self) -> None:
        """Build the sources that the settings and the file name. Raises SettingError.

        Nothing is read yet. If it raises, what was opened is closed by `close`.
        """
        settings, upstreams = self._settings, self._upstreams()
        starts = starts_of(settings, upstreams)
        known = self._log.cursors if self._takes_over else ()
        self._starts = {name: seq for name, seq in starts.items() if name not in known}
        self._before = dict(self._log.cursors)
        if settings.mirrored is None:
            self._warn_of_others({each.name for each in upstreams})
        self._tell_of_mirror()
        self._warn_of_empty_file(upstreams)
        merged = settings.upstream_file is not None or len(upstreams) > 1
        if settings.mirrored is None and (merged or settings.verify in SIGNED_MODES):
            self.admission = await self._open_admission(upstreams, merged=merged)
        await self._apply(upstreams)

    async def _open_admission(self, upstreams: Sequence[Upstream], *, merged: bool) -> Admission:
        """Build what judges messages, with its keys and the states of repositories.

        `merged` tells whether several upstreams may deliver the same event.
        """
        # What it uses takes 18 MB of memory. A server that needs none of it does not load it.
        from jetstream.admission.opening import Server, opened  # noqa: PLC0415

        server = Server(
            self._log,
            self._ingest.admit,
            self._metrics,
            self._conditions,
            lambda: self.sources.connected,
            self._now_us,
        )
        opening = opened(self._settings, upstreams, server, self._limits, merged=merged)
        return await self._closing.enter_async_context(opening)

    async def close(self) -> None:
        """Close what `open` has opened. Nothing is read any more."""
        await self._closing.aclose()

    async def run(self, reload: asyncio.Event) -> None:
        """Read all upstreams until cancelled. Whenever `reload` is set, read the file again, and clear it.

        An error ends all of them, and is raised in an exception group. SIGHUPs that come
        faster than `SourceLimits.reloads` count as one: the file is read once after the pause, when
        `reload` is cleared.
        """
        judging = nullcontext() if self.admission is None else self.admission.running()
        async with judging, asyncio.TaskGroup() as tasks:
            self.sources.start(tasks)
            budget = TokenBucket(*self._limits.sources.reloads, time.monotonic())
            while await reload.wait():
                if not budget.spend(time.monotonic()):
                    await asyncio.sleep(1 / self._limits.sources.reloads.per_s)
                    budget.spend(time.monotonic())
                reload.clear()
                await self._reload()

    @property
    def waiting(self) -> int | None:
        """How many messages wait to be judged; None: none is judged."""
        return None if self.admission is None else self.admission.waiting

    def check(self) -> None:
        """Do what is due now and then. To be called every second or so.

        It updates conditions of the sources, and has cursors stored of sources that bring nothing new.
        """
        self.sources.check()
        self._connections_changed()

    async def _reload(self) -> None:
        """Read the file again, and use what it names. If it cannot be used, log why and change nothing.

        It is read in a thread, since that takes a while.
        """
        try:
            upstreams = await asyncio.to_thread(self._upstreams)  # 10,000 lines take 0.1 s
        except SettingError as error:
            event = "upstreams: the file cannot be used; all stay as they were"
            logger.error(event, error=str(error))  # noqa: TRY400 - the operator's mistake has no traceback
        else:
            self._warn_of_empty_file(upstreams)
            self._log_changes(await self._apply(upstreams))

    async def _apply(self, upstreams: Sequence[Upstream]) -> Applied:
        """Make the sources those of a list, and return what has changed.

        Admission is told after that. It returns when all is forgotten that removed sources have said of
        accounts: until then, none of them may be in use again.
        """
        changes = await self.sources.apply(upstreams)
        if self.admission is not None:
            await self.admission.use(upstreams)
            await self.admission.settle()
        return changes

    async def _forget(self, names: Collection[str]) -> None:
        """Remove the cursors of sources that are not in use any more.

        `Sources` calls it when removed sources have ended. With admission, messages that wait may be of
        these sources, so it does it in its turn.
        """
        await (self._ingest if self.admission is None else self.admission).forget(names)
        for name in names:
            self._starts.pop(name, None)

    def _connections_changed(self) -> None:
        """Have admission look at which sources are connected. Called at each change, and every second."""
        if self.admission is not None:
            self.admission.check()

    def fields(self) -> dict[str, object]:
        """Return what the log says of the upstreams when the server starts.

        With one upstream it is its URL, without secrets, and its cursor; with several, their names.
        """
        if len(self.sources) == 1:
            (source,) = self.sources
            return {"upstream": source.url, "cursor": source.seq}
        return {"upstreams": self._named(source.name for source in self.sources)}

    def _upstreams(self) -> tuple[Upstream, ...]:
        """Return the upstreams of the settings, and of the file as it is now. Raises SettingError."""
        return upstreams_of(self._settings, self._limits)

    def _source(self, upstream: Upstream, link: Link) -> Reconnecting:
        """Build the source of an upstream, which `Sources` starts and ends. `link` is how it connects.

        A PDS has limits of its own, and shares the counters of all PDSes. Without admission, batches
        are stored as they come. With it, admission decides which frames were judged already
        (`knows`), and stores the cursors.
        """
        if upstream.kind == "jetstream":
            return self._mirror_source(upstream, link)
        is_pds = upstream.kind == "pds"
        limits = self._limits.sources.pds if is_pds else self._limits.upstream
        tracker = self._tracker(upstream.name, limits)
        admission = self.admission
        check_cid = self._settings.verify != "off"
        knows = None if admission is None else admission.knows
        pipeline = Pipeline(tracker, time.monotonic, check_cid=check_cid, limits=limits, knows=knows)
        if admission is None:
            store = self._ingest.join(upstream.name)
        else:
            store = admission.join(upstream.name, upstream.url if is_pds else None)
        metrics = self._counters(PDS_LABEL if is_pds else upstream.name)
        conditions = self._conditions.of(upstream.name)
        return Source(upstream, link, pipeline, store, metrics, conditions, admission or self._log, limits)

    def _mirror_source(self, upstream: Upstream, link: Link) -> Reconnecting:
        """Build the source of a Jetstream, whose events keep their positions.

        A log without events begins at the position from which on they would be kept, or at that of
        `--upstream-cursor`.
        """
        from jetstream.upstream.mirror.parts import Beginning, Stores  # noqa: PLC0415 - for mirrors only
        from jetstream.upstream.mirror.source import MirrorSource  # noqa: PLC0415

        name, ingest = upstream.name, self._ingest
        return MirrorSource(
            upstream,
            link,
            Stores(ingest.mirror(name), ingest.join(name), ingest.report_gap),
            self._counters(name),
            self._conditions.of(name),
            self._log,
            self._limits.upstream,
            Beginning(
                lambda: int(self._now_us() - self._settings.retention * 1_000_000),
                self._start(name),
            ),
        )

    @property
    def erases(self) -> frozenset[str]:
        """The statuses of accounts whose records are erased.

        Of a mirror, these may become more while it runs: those that its upstream erases for.
        """
        return self._log.erases

    def _counters(self, label: str) -> UpstreamMetrics:
        """Return the counters under a label, which all PDSes share."""
        found = self._labels.get(label)
        if found is None:
            found = self._labels[label] = self._metrics.upstream(label, MESSAGE_TYPES, DROP_REASONS)
        return found

    def _tracker(self, name: str, limits: UpstreamLimits) -> SeqTracker:
        """Return where to resume: what the setting says, else the log.

        Without either, the source begins at the live end.
        """
        start, stored = self._start(name), self._log.cursors.get(name)
        if start is None and stored is not None:
            return SeqTracker(*stored, resumed=True, limits=limits)
        return SeqTracker(start, limits=limits)

    def _start(self, name: str) -> int | None:
        """Return where a source starts by the setting; None: the log decides, as soon as it was stored in.

        A source may be built several times before it has stored a cursor: after an error, or when the file
        has changed. The setting counts each time until then.
        """
        return self._starts.get(name) if self._log.cursors.get(name) == self._before.get(name) else None

    def _warn_of_others(self, names: set[str]) -> None:
        """Warn of stored cursors that are of no upstream any more, if an upstream has none.

        Typically the name of an upstream was changed: then it begins at the live end, and events are
        missing.
        """
        stored = self._log.cursors.keys()
        new = names - stored - self._starts.keys()
        if new and not stored <= names:
            logger.warning(
                "stored cursor belongs to another upstream; starting at the live end",
                stored=self._named(sorted(stored - names)),
                upstream=self._named(sorted(new)),
                hint="the stored one is removed; to keep it, give the upstream its old name: name=url",
            )

    def _tell_of_mirror(self) -> None:
        """Log that nothing is verified where a Jetstream is read."""
        if (mirrored := self._settings.mirrored) is not None:
            ignored = self._settings.unused_by_mirror
            logger.info(
                "upstream: a Jetstream, which has verified what it sends: --verify does not apply",
                upstream=mirrored.name,
                **({"ignored": ignored} if ignored else {}),
            )

    def _warn_of_empty_file(self, upstreams: Sequence[Upstream]) -> None:
        """Warn of a file without a PDS. It may get some: that is the operator's choice."""
        if is_empty(path := self._settings.upstream_file, upstreams):
            event = "upstreams: the file names no PDS"
            hint = "write one a line, such as pds.example.com, and send SIGHUP"
            logger.warning(event, file=str(path), others=len(upstreams), hint=hint)

    def _log_changes(self, changes: Applied) -> None:
        """Log what a new list of upstreams has changed, in one line."""
        changed = {name: names for name, names in changes._asdict().items() if names and name != "unchanged"}
        shown = {name: f"{len(names)}: {self._named(names)}" for name, names in changed.items()}
        logger.info("upstreams: the file was read again", **shown, unchanged=len(changes.unchanged))

    def _named(self, names: Iterable[str]) -> str:
        """Return names as a text for a log line: the first few, and how many others there are."""
        return named(names, self._limits.sources.named_max)
