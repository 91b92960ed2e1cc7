"""One view of all processes: what any edge answers for the whole server.

    client ─▶ an edge ─ question ─▶ `View` ─ question ─▶ every process
           ◀─         ◀─ answer ──        ◀─ answers ──

Figures are gathered at most twice a second, however many ask for them.

What is counted by processes that have ended is kept, so totals never fall. Everything runs in the event
loop of the supervisor. The work of one answer is bounded by the number of processes, and the longest
ones, `/metrics` and `/status.json`, are made once for all that ask in the same half second.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

import orjson
import structlog
from prometheus_client import CollectorRegistry, ProcessCollector, exposition

from jetstream.conditions import HINTS
from jetstream.limits import Limits
from jetstream.logging_setup import Throttled
from jetstream.supervisor import bodies
from jetstream.supervisor.acceptor import Acceptor
from jetstream.supervisor.channel import ChannelError, ChannelMessage
from jetstream.supervisor.families import Collected, Family, Kept, merged, pack, unpack
from jetstream.supervisor.own_figures import OwnFigures
from jetstream.supervisor.past import Past
from jetstream.supervisor.process import Process
from jetstream.supervisor.uploads import Uploads
from jetstream.token_bucket import Rate, TokenBucket

# The question of the supervisor for the figures of a process; others are of edges.
SNAPSHOT: Final = "snapshot"
# Questions of edges, and what their answers have.
METRICS, HEALTH, READY, STATUS = "metrics", "health", "ready", "status"
LIST, KICK, UPLOAD, SPEND = "list", "kick", "upload", "spend"
# The rates of `WebLimits` that hold for all edges together.
_SHARED_RATES: Final = ("did_lists_read", "explanations", "gap_pages")
# The body of the ingest while none has ever been ready. Its absence is a reason of its own, of the
# supervisor.
_EMPTY_HEALTH: Final = {"status": "ok", "reasons": [], "subscribers": 0}


class Unanswered(Exception):
    """A question cannot be answered now.

    Its text is for the client, which gets it with status 503.
    """


class View:
    """What all processes say together. `clock` gives monotonic seconds, `now_us` unix microseconds.

    `now_us` is when the server began. The acceptor is only read.
    """

    def __init__(
        self,
        ingest: Process,
        edges: Sequence[Process],
        acceptor: Acceptor,
        limits: Limits,
        *,
        now_us: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Lists of DIDs that clients have uploaded, for edges that become ready later.
        self.uploads = Uploads(limits, clock)
        # Set when the server stops, and never cleared: `/ready` says so from then on.
        self.stopping = False
        # Places, whose processes change. Their snapshots are below.
        self._ingest = ingest
        self._edges = edges
        self._limits = limits.supervisor
        self._clock = clock
        # When the server began, in unix microseconds: `started_us` of `/status.json`.
        self._began_us = now_us
        # One token for each upload that is read, each explanation and each page of gaps, by all edges.
        rates: dict[str, Rate] = {name: getattr(limits.web, name) for name in _SHARED_RATES}
        self._budgets = {name: TokenBucket(*rate, clock()) for name, rate in rates.items()}
        # The last snapshot of each process that runs, by the name of its place. That of an ingest that has
        # ended is kept until there is another one, without its counters.
        self._snapshots: dict[str, Mapping[str, Any]] = {}
        # Those that are of processes which have ended.
        self._ended: set[str] = set()
        # Counters of processes that have ended, and the history of an hour of all places.
        self._kept = Kept()
        self._past = Past()
        # When the snapshots were taken, in monotonic seconds. The lock is held while they are.
        self._gathered_at = float("-inf")
        self._gathering = asyncio.Lock()
        # What was answered of these snapshots, by kind and format, and when they were taken.
        self._answers: dict[tuple[str, str], ChannelMessage] = {}
        self._answers_of = self._gathered_at
        self._throttled = Throttled(structlog.get_logger(__name__), clock=clock)
        # The families of the supervisor itself: its memory and files, and what it counts of processes.
        self._own = CollectorRegistry()
        self._own_figures = OwnFigures([ingest, *edges], acceptor)
        ProcessCollector(registry=self._own)
        self._own.register(self._own_figures)

    def note_failure(self, event: str) -> None:
        """Count and log the error that is being handled: it does not end the server.

        To be called in an `except` clause: the traceback is logged. `event` is a literal.
        """
        self._own_figures.failures += 1
        self._throttled.exception(event)

    # --- snapshots ---

    async def gather(self) -> None:
        """Take a snapshot of every process, unless the last ones are not older than `view_kept_s`.

        Of one that does not answer, the last one stays.

        It waits for the slowest process, for `snapshot_s` seconds at most. A caller that comes
        meanwhile waits for the same snapshots. Raises nothing.
        """
        async with self._gathering:
            if self._clock() - self._gathered_at < self._limits.view_kept_s:
                return
            await asyncio.gather(*(self._snapshot(each) for each in (self._ingest, *self._edges)))
            self._gathered_at = self._clock()

    async def _snapshot(self, process: Process) -> None:
        """Ask one process for its figures, and keep them. Without an answer, the last ones stay.

        The process may have ended while its answer was on the way: then `end` has kept its counters,
        and they must not be added a second time.
        """
        try:
            answer = await process.ask(ChannelMessage(SNAPSHOT), self._limits.snapshot_s)
            if process.is_ready.is_set() and "families" in answer.fields:
                self.keep(process, answer)
        except ChannelError:
            return
        except Exception:  # noqa: BLE001 - it is counted and logged
            self.note_failure("supervisor: the figures of a process cannot be read")

    def keep(self, process: Process, snapshot: ChannelMessage) -> None:
        """Keep the snapshot of a process that runs.

        It is an answer to `snapshot`, or the last message of a process. Raises KeyError for one that
        lacks a part.
        """
        name, fields = str(process.place), snapshot.fields
        self._past.add(name, fields[STATUS]["history"], fields["newest_step"])
        self._snapshots[name] = {**fields, "families": unpack(fields["families"])}
        self._ended.discard(name)

    def end(self, process: Process) -> None:
        """Record that a process has ended: its counters are kept.

        The snapshot of an edge is forgotten; that of the ingest goes on to say how the log was. A
        process without a snapshot has counted nothing that is known.
        """
        name, is_ingest = str(process.place), process is self._ingest
        snapshot = self._snapshots.get(name)
        if snapshot is not None and name not in self._ended:
            self._ended.add(name)
            if not is_ingest:
                del self._snapshots[name]
            self._kept.add(snapshot["families"], is_ingest=is_ingest)

    def _families(self) -> dict[str, Family]:
        """Return the families of all processes together.

        `jetstream_ready` and the condition `process` are those of the whole server, whatever single
        processes say.
        """
        ingest = self._snapshots.get(str(self._ingest.place), {}).get("families", [])
        if str(self._ingest.place) in self._ended:  # its counters are among those that are kept
            ingest = [each for each in ingest if each.type == "gauge" and each.name.startswith("jetstream_")]
        others = [each["families"] for each in self._of_edges()]
        found = merged(ingest, [*others, unpack(pack(self._own))], self._kept)
        if "jetstream_ready" in found:
            found["jetstream_ready"].samples["jetstream_ready", ()] = float(not self.not_ready())
        if "jetstream_condition" in found:
            key = "jetstream_condition", (("condition", "process"),)
            found["jetstream_condition"].samples[key] = float(bool(self._reasons()))
        return found

    def _of_edges(self) -> list[Mapping[str, Any]]:
        """Return the last snapshots of the edges, by their number; an edge without one is left out."""
        names = [str(each.place) for each in self._edges]
        return [self._snapshots[name] for name in names if name in self._snapshots]

    # --- what is shown ---

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the families as text, and its content type, for the field `Accept` of a request.

        `accept` chooses between the text format of Prometheus and OpenMetrics.
        """
        encode, content_type = exposition.choose_encoder(accept)
        return encode(Collected(self._families().values())), content_type

    def not_ready(self) -> list[dict[str, str]]:
        """Return why no client should be sent to the server.

        That is by the last snapshots. Whether the ingest runs is known at once.
        """
        ingest = self._snapshots.get(str(self._ingest.place))
        checks = None if ingest is None or not self._ingest.is_ready.is_set() else ingest[READY]
        return bodies.not_ready(checks, [each[READY] for each in self._of_edges()], stopping=self.stopping)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body of `/health`.

        The status code is 503 while the ingest cannot write the log, as in a server of one process.
        """
        ingest = self._snapshots.get(str(self._ingest.place), {HEALTH: _EMPTY_HEALTH, "healthy": True})
        body = bodies.health(ingest[HEALTH], [each[HEALTH] for each in self._of_edges()], self._reasons())
        return (200 if ingest["healthy"] else 503), body

    def status(self) -> dict[str, Any]:
        """Return the body of `/status.json`. Raises Unanswered while the ingest has never been ready.

        All parts are of the last snapshots. What only the supervisor knows is its own: `processes`,
        `history`, `not_ready` and when the server began.
        """
        ingest = self._snapshots.get(str(self._ingest.place))
        if ingest is None:
            raise Unanswered("the process that reads upstream has not started yet")
        not_ready = self.not_ready()
        health = self.health()[1]["status"]
        own = {
            "role": "all",
            "started_us": self._began_us,
            "health": health,
            "ready": not not_ready,
            "not_ready": not_ready,
            "processes": [self._process(each) for each in (self._ingest, *self._edges)],
            "history": self._past.history(),
        }
        edges = [each[STATUS] for each in self._of_edges()]
        found = bodies.status(ingest[STATUS], edges, self._families(), own)
        found["reasons"] += [
            {"condition": "process", "text": each, "hint": HINTS["process"]} for each in self._reasons()
        ]
        return found

    def _reasons(self) -> list[str]:
        """Return what is wrong with processes.

        Each is a sentence. They are the reasons of the condition `process`.
        """
        return [
            f"{each.place} is not ready: it starts, or is being replaced"
            for each in (self._ingest, *self._edges)
            if not each.is_ready.is_set()
        ]

    def _process(self, process: Process) -> dict[str, Any]:
        """Return the figures of a place for `processes` of `/status.json`.

        Those that the process tells itself are None while it is not ready. `ended` is how many
        processes of this place have ended so far.
        """
        ready, snapshot = process.is_ready.is_set(), self._snapshots.get(str(process.place), {})
        own = {
            "name": str(process.place),
            "role": process.place.role,
            "pid": process.pid,
            "ready": ready,
            "ended": sum(process.ends.values()),
        }
        return own | bodies.figures_of(snapshot.get(STATUS) if ready else None)

    # --- questions of an edge ---

    async def answer(self, question: ChannelMessage) -> ChannelMessage:
        """Answer a question of an edge. Raises Unanswered.

        Figures are gathered first. A token is spent here, so that all edges have one bucket. Lists of
        subscribers and disconnections are asked of every edge. An answer that is not 200 is the answer to the
        client as it is, for example 400 for bad IDs.
        """
        if question.kind in (METRICS, HEALTH, READY, STATUS):
            await self.gather()
            takes_long = question.kind in (METRICS, STATUS)
            return self._kept_answer(question) if takes_long else self._figures(question)
        if question.kind == SPEND:
            spent = self._budgets[question.fields["rate"]].spend(self._clock())
            return ChannelMessage("", {"spent": spent})
        if question.kind == UPLOAD:
            return await self._upload(question)
        answers = await self._ask_edges(question, self._limits.answer_s)
        for each in answers:
            if each.fields["status"] != 200:
                return each
        read = [orjson.loads(each.body) for each in answers]
        if question.kind == LIST:
            return _uncached(_json(200, bodies.listed(read, question.fields["limit"]), indented=False))
        return _json(200, bodies.kicked(read))

    def _kept_answer(self, question: ChannelMessage) -> ChannelMessage:
        """Return what takes long as it was gathered last: thousands of clients may ask for it at once.

        The answers of older snapshots are dropped. There is one for each format of `/metrics`, which
        clients choose among a few.
        """
        if self._answers_of != self._gathered_at:
            self._answers_of = self._gathered_at
            self._answers.clear()
        key = question.kind, question.fields.get("accept", "")
        if key not in self._answers:
            self._answers[key] = self._figures(question)
        return self._answers[key]

    def _figures(self, question: ChannelMessage) -> ChannelMessage:
        """Make the answer to a question for figures, of the snapshots as they are. Raises Unanswered."""
        if question.kind == METRICS:
            text, content_type = self.metrics(question.fields["accept"])
            return ChannelMessage("", {"status": 200, "type": content_type}, text)
        if question.kind == STATUS:
            return _uncached(_json(200, self.status(), indented=False))
        if question.kind == HEALTH:
            return _json(*self.health())
        reasons = self.not_ready()
        return _json(503 if reasons else 200, {"ready": not reasons, "not_ready": reasons})

    async def _upload(self, question: ChannelMessage) -> ChannelMessage:
        """Have every edge read a list of DIDs, and return the answer of the one with the highest status.

        The edges decide alike, so an error of one is mostly that of all. An upload that all have
        accepted is kept for edges that become ready later. Raises Unanswered if no edge is ready.
        """
        answers = await self._ask_each(question, self._limits.upload_s)
        found = max(answers.values(), key=lambda each: each.fields["status"])
        if found.fields["status"] == 200:
            self.uploads.add(orjson.loads(found.body)["id"], question.body)
            for edge in self._edges:
                if str(edge.place) not in answers:  # it may have become ready meanwhile
                    edge.tell(ChannelMessage("list", body=question.body))
        return found

    async def _ask_edges(self, question: ChannelMessage, within_s: float) -> list[ChannelMessage]:
        """Ask all edges that are ready, and return their answers. Raises Unanswered if there are none.

        `within_s` is how many seconds each of them has.
        """
        return list((await self._ask_each(question, within_s)).values())

    async def _ask_each(self, question: ChannelMessage, within_s: float) -> dict[str, ChannelMessage]:
        """Ask all edges that are ready, and return their answers by place. Raises Unanswered without any.

        One that does not answer is left out: it is being replaced, or will be.
        """
        answers: dict[str, ChannelMessage] = {}

        async def ask(edge: Process) -> None:
            """Ask one edge. Without an answer in time it is left out."""
            with suppress(ChannelError):
                answers[str(edge.place)] = await edge.ask(question, within_s)

        await asyncio.gather(*map(ask, self._edges))
        if not answers:
            raise Unanswered("no process that serves subscribers is ready")
        return answers


def _uncached(answer: ChannelMessage) -> ChannelMessage:
    """Return an answer that no cache may keep (RFC 9111, section 5.2.2.5)."""
    return answer._replace(fields={**answer.fields, "headers": {"Cache-Control": "no-store"}})


def _json(status: int, body: object, *, indented: bool = True) -> ChannelMessage:
    """Return an answer with a JSON body that ends with a newline; `indented` is for people who read it."""
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indented else 0)
    return ChannelMessage(
        "", {"status": status, "type": "application/json"}, orjson.dumps(body, option=option)
    )
