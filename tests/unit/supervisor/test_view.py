"""What processes say together. These have not started, and answer what a test says."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from structlog.testing import capture_logs
from tests.unit.supervisor.test_bodies import figures

from jetstream.history import Step
from jetstream.limits import Limits, WebLimits
from jetstream.supervisor.acceptor import Acceptor
from jetstream.supervisor.channel import ChannelError, ChannelMessage
from jetstream.supervisor.process import Place, Process
from jetstream.supervisor.view import METRICS, SNAPSHOT, SPEND, STATUS, UPLOAD, View
from jetstream.token_bucket import Rate

NO_HISTORY: dict[str, Any] = {"step_s": 10, "end_us": None, **{name: [] for name in Step._fields}}
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


class Nobody:
    """Owns processes that do not start."""

    def began(self, process: Process, passing: socket.socket) -> ChannelMessage:
        raise AssertionError

    def ready(self, process: Process) -> None: ...

    def told(self, process: Process, message: ChannelMessage) -> None: ...

    async def asked(self, process: Process, message: ChannelMessage) -> ChannelMessage:
        raise AssertionError

    def ended(self, process: Process) -> None: ...


class Answering(Process):
    """A process that is ready, and answers with what it says."""

    def __init__(self, place: Place) -> None:
        super().__init__(place, Nobody())
        self.is_ready.set()
        self.says: Mapping[str, Any] = snapshot()
        self.asked: list[str] = []

    async def ask(self, message: ChannelMessage, within_s: float) -> ChannelMessage:
        if not self.is_ready.is_set():
            raise ChannelError("the process is not ready")
        self.asked.append(message.kind)
        return ChannelMessage("", self.says, b'{"id": "a-list"}') if message.kind == SNAPSHOT else READ


READ = ChannelMessage("", {"status": 200}, b'{"id": "a-list"}')


def snapshot(per_s: float = 5.0, **more: Any) -> dict[str, Any]:
    given: dict[str, Any] = {
        "upstreams": [],
        "edge": None,
        "events": {"per_s": per_s, "total": 0},
        "history": NO_HISTORY,
    }
    return {
        "families": [["jetstream_events", "counter", "Events", [["x", {"kind": "create"}, per_s]]]],
        "status": figures(**given | more),
        "newest_step": None,
        "health": {"status": "ok", "reasons": [], "subscribers": 0},
        "healthy": True,
        "ready": [],
    }


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Server:
    """An ingest and two edges."""

    def __init__(self, limits: Limits = Limits()) -> None:
        self.clock = Clock()
        self.ingest = Answering(Place("ingest"))
        self.edges = [Answering(Place("edge", number)) for number in (1, 2)]
        acceptor = Acceptor(2, limits.supervisor, self.clock)
        self.view = View(self.ingest, self.edges, acceptor, limits, now_us=0, clock=self.clock)

    async def status(self) -> Any:
        return orjson.loads((await self.view.answer(ChannelMessage(STATUS, {"accept": ""}))).body)

    async def metrics(self, accept: str = "") -> ChannelMessage:
        return await self.view.answer(ChannelMessage(METRICS, {"accept": accept}))


@pytest.fixture
async def server() -> Server:
    return Server()


async def test_what_takes_long_is_answered_once_of_the_same_figures(server: Server) -> None:
    first = await server.metrics()
    assert await server.metrics() is first
    server.clock.now += 0.4
    assert await server.metrics() is first
    in_another_format = await server.metrics(OPENMETRICS)
    assert in_another_format.body.endswith(b"# EOF\n")
    assert await server.metrics(OPENMETRICS) is in_another_format
    server.ingest.says = snapshot(6.0)
    server.clock.now += 0.2
    assert b'x{kind="create"} 6.0' in (await server.metrics()).body
    assert server.ingest.asked == [SNAPSHOT, SNAPSHOT]


async def test_many_who_ask_at_once_cost_one_look_at_each_process(server: Server) -> None:
    await asyncio.gather(*(server.status() for _ in range(50)))
    assert [each.asked for each in (server.ingest, *server.edges)] == [[SNAPSHOT]] * 3


async def test_what_a_process_says_that_makes_no_sense_is_counted_and_the_others_are_shown(
    server: Server,
) -> None:
    server.edges[0].says = {"families": 7}
    with capture_logs() as logs:
        status = await server.status()
        server.clock.now += 1.0
        await server.status()
    assert [each["events_per_s"] for each in status["processes"]] == [5.0, None, 5.0]
    assert [line["event"] for line in logs] == ["supervisor: the figures of a process cannot be read"]
    server.clock.now += 1.0
    assert b'jetstream_internal_errors_total{doing="supervise"} 3.0' in (await server.metrics()).body


async def test_each_process_is_shown_with_its_own_figures(server: Server) -> None:
    server.edges[0].says = snapshot(edge={"lag_s": 0.25, "writer_silent_s": 0.1})
    await server.status()
    server.edges[1].ends["died"] = 2
    server.edges[1].is_ready.clear()  # it is being replaced
    server.clock.now += 1.0
    status = await server.status()
    assert status["processes"] == [
        {"name": "ingest", "role": "ingest", "pid": None, "ready": True, "ended": 0, **OF_ONE, "lag_s": None},
        {"name": "edge-1", "role": "edge", "pid": None, "ready": True, "ended": 0, **OF_ONE, "lag_s": 0.25},
        {"name": "edge-2", "role": "edge", "pid": None, "ready": False, "ended": 2, **dict.fromkeys(OF_ONE)}
        | {"lag_s": None},
    ]


OF_ONE = {"cpu": 0.5, "rss_bytes": 100, "subscribers": 0, "events_per_s": 5.0, "messages_per_s": 0.0}


async def spent(server: Server, rate: str) -> bool:
    return bool((await server.view.answer(ChannelMessage(SPEND, {"rate": rate}))).fields["spent"])


@pytest.mark.parametrize("rate", ["did_lists_read", "explanations", "gap_pages"])
async def test_a_rate_of_all_processes_has_tokens_of_its_own(rate: str) -> None:
    rates: Any = {"did_lists_read": Rate(1, 2), "explanations": Rate(1, 2), "gap_pages": Rate(1, 2)}
    server = Server(Limits(web=WebLimits(**rates)))
    assert [await spent(server, rate) for _ in range(3)] == [True, True, False]
    (other, *_) = rates.keys() - {rate}
    assert await spent(server, other)
    server.clock.now += 1.0
    assert [await spent(server, rate) for _ in range(2)] == [True, False]


async def test_every_edge_reads_an_upload_and_one_that_starts_later_gets_it(server: Server) -> None:
    server.edges[1].is_ready.clear()
    answer = await server.view.answer(ChannelMessage(UPLOAD, body=b"did:plc:a"))
    assert answer.fields["status"] == 200
    assert server.edges[0].asked == [UPLOAD]
    assert list(server.view.uploads.bodies()) == [b"did:plc:a"]
