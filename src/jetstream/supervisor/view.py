"""One view of all processes: what any edge answers for the whole server.

    client ─▶ an edge ─ question ─▶ `View` ─ question ─▶ every process
           ◀─         ◀─ answer ──        ◀─ answers ──

Figures are gathered at most twice a second, however many ask for them.
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

SNAPSHOT: Final = "snapshot"
# Questions of edges, and what their answers have.
METRICS, HEALTH, READY, STATUS = "metrics", "health", "ready", "status"
LIST, KICK, UPLOAD, SPEND = "list", "kick", "upload", "spend"
# The rates of `WebLimits` that hold for all edges together.
_SHARED_RATES: Final = ("did_lists_read", "explanations", "gap_pages")
_EMPTY_HEALTH: Final = {"status": "ok", "reasons": [], "subscribers": 0}


class Unanswered(Exception):
    """A question cannot be answered now."""


class View:
    """What all processes say together. `clock` gives monotonic seconds, `now_us` unix microseconds."""

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
        self.uploads = Uploads(limits, clock)
        # Set when the server stops.
        self.stopping = False
        self._ingest = ingest
        self._edges = edges
        self._limits = limits.supervisor
        self._clock = clock
        self._began_us = now_us
        # One token for each upload that is read, each explanation and each page of gaps, by all edges.
        rates: dict[str, Rate] = {name: getattr(limits.web, name) for name in _SHARED_RATES}
        self._budgets = {name: TokenBucket(*rate, clock()) for name, rate in rates.items()}
        # The last snapshot of each process that runs, by the name of its place. That of an ingest that has
        # ended is kept until there is another one, without its counters.
        self._snapshots: dict[str, Mapping[str, Any]] = {}
        # Those that are of processes which have ended.
        self._ended: set[str] = set()
        self._kept = Kept()
        self._past = Past()
        # When the snapshots were taken, and held while they are.
        self._gathered_at = float("-inf")
        self._gathering = asyncio.Lock()
        # What was answered of these snapshots, by kind and format, and when they were taken.
        self._answers: dict[tuple[str, str], ChannelMessage] = {}
        self._answers_of = self._gathered_at
        self._throttled = Throttled(structlog.get_logger(__name__), clock=clock)
        self._own = CollectorRegistry()
        self._own_figures = OwnFigures([ingest, *edges], acceptor)
        ProcessCollector(registry=self._own)
        self._own.register(self._own_figures)

    def note_failure(self, event: str) -> None:
        """Count and log the error that is being handled: it does not end the server."""
        self._own_figures.failures += 1
        self._throttled.exception(event)

    # --- snapshots ---

    async def gather(self) -> None:
        """Take a snapshot of every process, unless the last ones are not older than `view_kept_s`.

        Of one that does not answer, the last one stays.
        """
        async with self._gathering:
            if self._clock() - self._gathered_at < self._limits.view_kept_s:
                return
            await asyncio.gather(*(self._snapshot(each) for each in (self._ingest, *self._edges)))
            self._gathered_at = self._clock()

    async def _snapshot(self, process: Process) -> None:
        try:
            answer = await process.ask(ChannelMessage(SNAPSHOT), self._limits.snapshot_s)
            if process.is_ready.is_set() and "families" in answer.fields:
                self.keep(process, answer)
        except ChannelError:
            return
        except Exception:  # noqa: BLE001 - it is counted and logged
            self.note_failure("supervisor: the figures of a process cannot be read")

    def keep(self, process: Process, snapshot: ChannelMessage) -> None:
        """Keep the snapshot of a process that runs."""
        name, fields = str(process.place), snapshot.fields
        self._past.add(name, fields[STATUS]["history"], fields["newest_step"])
        self._snapshots[name] = {**fields, "families": unpack(fields["families"])}
        self._ended.discard(name)

    def end(self, process: Process) -> None:
        """Note that a process has ended: its counters are kept."""
        name, is_ingest = str(process.place), process is self._ingest
        snapshot = self._snapshots.get(name)
        if snapshot is not None and name not in self._ended:
            self._ended.add(name)
            if not is_ingest:
                del self._snapshots[name]
            self._kept.add(snapshot["families"], is_ingest=is_ingest)

    def _families(self) -> dict[str, Family]:
        """Return the families of all processes together."""
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
        names = [str(each.place) for each in self._edges]
        return [self._snapshots[name] for name in names if name in self._snapshots]

    # --- what is shown ---

    def metrics(self, accept: str) -> tuple[bytes, str]:
        """Return the families as text, and its content type, for the field `Accept` of a request."""
        encode, content_type = exposition.choose_encoder(accept)
        return encode(Collected(self._families().values())), content_type

    def not_ready(self) -> list[dict[str, str]]:
        """Return why no client should be sent to the server."""
        ingest = self._snapshots.get(str(self._ingest.place))
        checks = None if ingest is None or not self._ingest.is_ready.is_set() else ingest[READY]
        return bodies.not_ready(checks, [each[READY] for each in self._of_edges()], stopping=self.stopping)

    def health(self) -> tuple[int, dict[str, Any]]:
        """Return the status code and the body of `/health`."""
        ingest = self._snapshots.get(str(self._ingest.place), {HEALTH: _EMPTY_HEALTH, "healthy": True})
        body = bodies.health(ingest[HEALTH], [each[HEALTH] for each in self._of_edges()], self._reasons())
        return (200 if ingest["healthy"] else 503), body

    def status(self) -> dict[str, Any]:
        """Return the body of `/status.json`. Raises Unanswered while the ingest has never been ready."""
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
        """Return what is wrong with processes."""
        return [
            f"{each.place} is not ready: it starts, or is being replaced"
            for each in (self._ingest, *self._edges)
            if not each.is_ready.is_set()
        ]

    def _process(self, process: Process) -> dict[str, Any]:
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
        """Answer a question of an edge. Raises Unanswered."""
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
        """Return what takes long as it was gathered last: thousands of clients may ask for it at once."""
        if self._answers_of != self._gathered_at:
            self._answers_of = self._gathered_at
            self._answers.clear()
        key = question.kind, question.fields.get("accept", "")
        if key not in self._answers:
            self._answers[key] = self._figures(question)
        return self._answers[key]

    def _figures(self, question: ChannelMessage) -> ChannelMessage:
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
        """Have every edge read a list of DIDs. The last answer counts: they are alike."""
        answers = await self._ask_each(question, self._limits.upload_s)
        found = max(answers.values(), key=lambda each: each.fields["status"])
        if found.fields["status"] == 200:
            self.uploads.add(orjson.loads(found.body)["id"], question.body)
            for edge in self._edges:
                if str(edge.place) not in answers:  # it may have become ready meanwhile
                    edge.tell(ChannelMessage("list", body=question.body))
        return found

    async def _ask_edges(self, question: ChannelMessage, within_s: float) -> list[ChannelMessage]:
        """Ask all edges that are ready, and return their answers. Raises Unanswered if there are none."""
        return list((await self._ask_each(question, within_s)).values())

    async def _ask_each(self, question: ChannelMessage, within_s: float) -> dict[str, ChannelMessage]:
        """Ask all edges that are ready, and return their answers by place. Raises Unanswered without any.

        One that does not answer is left out: it is being replaced, or will be.
        """
        answers: dict[str, ChannelMessage] = {}

        async def ask(edge: Process) -> None:
            with suppress(ChannelError):
                answers[str(edge.place)] = await edge.ask(question, within_s)

        await asyncio.gather(*map(ask, self._edges))
        if not answers:
            raise Unanswered("no process that serves subscribers is ready")
        return answers


def _uncached(answer: ChannelMessage) -> ChannelMessage:
    return answer._replace(fields={**answer.fields, "headers": {"Cache-Control": "no-store"}})


def _json(status: int, body: object, *, indented: bool = True) -> ChannelMessage:
    option = orjson.OPT_APPEND_NEWLINE | (orjson.OPT_INDENT_2 if indented else 0)
    return ChannelMessage(
        "", {"status": status, "type": "application/json"}, orjson.dumps(body, option=option)
    )
