"""Small servers that are not what they should be, on real sockets."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import pytest
from aiohttp import web
from tests.builders import commit, error
from tests.relay import PATH

from jetstream.doctor.firehose import Seen
from jetstream.doctor.probe import Patience, is_private, look_at
from jetstream.upstreams import Upstream

PATIENCE = Patience(connect_s=10, message_s=0.05, question_s=10)
DESCRIBE = "/xrpc/com.atproto.server.describeServer"
HOST_STATUS = "/xrpc/com.atproto.sync.getHostStatus"
EVENT = '{"did":"did:plc:a","time_us":1,"kind":"commit"}'
NOW_S = 1_800_000_000.0

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def sends(*messages: str | bytes, close: bool = False) -> Handler:
    """Accept a WebSocket, send messages, and wait for its end or close it."""

    async def handler(request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for message in messages:
            await (socket.send_str(message) if isinstance(message, str) else socket.send_bytes(message))
        if not close:
            await socket.receive()
        return socket

    return handler


def answers(value: object, status: int = 200) -> Handler:
    """Answer with JSON."""

    async def handler(_request: web.Request) -> web.StreamResponse:
        return web.json_response(value, status=status)

    return handler


async def page(_request: web.Request) -> web.StreamResponse:
    return web.Response(text="<h1>Hello</h1>", content_type="text/html")


@asynccontextmanager
async def serving(routes: dict[str, Handler]) -> AsyncIterator[int]:
    """Serve on a free port; give it."""
    app = web.Application()
    for path, handler in routes.items():
        app.router.add_get(path, handler)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


async def look(routes: dict[str, Handler], path: str = PATH, relay: str = "http://127.0.0.1:9") -> Seen:
    async with serving(routes) as port:
        upstream = Upstream("it", f"ws://127.0.0.1:{port}{path}")
        (seen,) = await look_at([upstream], PATIENCE, relay, time.time)
    return seen


def now() -> str:
    return datetime.now(UTC).isoformat()


async def test_a_firehose_with_a_clock() -> None:
    seen = await look({PATH: sends(commit(1, time=now()))})
    assert (seen.answer, seen.is_pds) == ("frame", False)
    assert seen.date_offset_s == pytest.approx(0, abs=2)
    assert seen.time_offset_s == pytest.approx(0, abs=2)


@pytest.mark.parametrize(
    "date",
    [
        "Wed, 21 Oct 99999999999 07:28:00 GMT",
        "Wed, 21 Oct 2015 07:28:00 +99999999999999999999",
        "soon",
    ],
)
async def test_a_date_that_is_none_is_passed_over(date: str) -> None:
    async def dated(_request: web.Request) -> web.Response:
        return web.Response(headers={"Date": date})

    seen = await look({PATH: dated})
    assert seen.date_offset_s is None


async def test_the_offset_is_that_of_the_given_clock() -> None:
    async with serving({PATH: sends(commit(1, time="not a time"))}) as port:
        upstreams = [Upstream(name, f"ws://127.0.0.1:{port}{PATH}") for name in ("a", "b")]
        both = await look_at(upstreams, PATIENCE, "http://127.0.0.1:9", lambda: NOW_S)
    assert [each.name for each in both] == ["a", "b"]
    for each in both:
        assert each.date_offset_s == pytest.approx(time.time() - NOW_S, abs=30)
        assert each.time_offset_s is None


@pytest.mark.parametrize("path", ["/subscribe", PATH])
async def test_a_jetstream_is_recognised_by_its_events_and_where_it_has_no_firehose(path: str) -> None:
    assert (await look({"/subscribe": sends(EVENT)}, path)).answer == "jetstream"


@pytest.mark.parametrize(
    ("handler", "answer"),
    [
        (sends(), "silent"),
        (sends(close=True), "closed"),
        (sends("hello"), "text"),
        (sends("[" * 100_000), "text"),
        (sends(b"\xff\xff"), "unreadable"),
        (sends(error("FutureCursor")), "error"),
        (page, "status"),
        (answers({}, 503), "status"),
    ],
)
async def test_other_answers_are_named(handler: Handler, answer: str) -> None:
    assert (await look({PATH: handler})).answer == answer


async def test_an_answer_in_pieces_is_read_to_its_end() -> None:
    async def slowly(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for piece in (b'{"availableUser', b'Domains": [".exa', b'mple"]}'):
            await response.write(piece)
            await asyncio.sleep(0)
        return response

    seen = await look({PATH: sends(commit(1)), DESCRIBE: slowly})
    assert seen.is_pds


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("localhost", True),
        ("pds.localhost", True),
        ("127.0.0.1", True),
        ("10.1.2.3", True),
        ("172.16.0.1", True),
        ("172.32.0.1", False),
        ("192.168.1.1", True),
        ("169.254.0.1", True),
        ("::1", True),
        ("fc00::1", True),
        ("fe80::1", True),
        ("2001:4860::1", False),
        ("8.8.8.8", False),
        ("localhost.example.com", False),
        ("10.example.com", False),
    ],
)
def test_the_public_relay_is_not_told_of_private_hosts(host: str, private: bool) -> None:
    assert is_private(host) == private


async def test_a_web_page_is_told_from_other_responses() -> None:
    assert (await look({PATH: page})).is_page
    seen = await look({PATH: answers({}, 503)})
    assert (seen.is_page, seen.status) == (False, 503)


@pytest.mark.parametrize(
    ("known", "crawled"),
    [
        (answers({"hostname": "127.0.0.1", "status": "active"}), True),
        (answers({"error": "HostNotFound"}, 400), False),
        (answers({"error": "InternalError"}, 500), None),
        (answers([]), None),
        (page, None),
    ],
)
@pytest.mark.parametrize("events", [(commit(1),), ()])
async def test_a_pds_is_recognised_and_the_relay_is_asked_about_it(
    known: Handler, crawled: bool | None, events: tuple[bytes, ...]
) -> None:
    async with serving({HOST_STATUS: known}) as relay:
        routes = {PATH: sends(*events), DESCRIBE: answers({"availableUserDomains": [".example"]})}
        seen = await look(routes, relay=f"http://127.0.0.1:{relay}")
    assert (seen.is_pds, seen.is_crawled) == (True, crawled)
    assert seen.answer == ("frame" if events else "silent")


async def test_what_cannot_be_reached_is_named() -> None:
    async def hang_up(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        urls = [
            f"ws://127.0.0.1:9{PATH}",
            f"ws://nowhere.invalid{PATH}",
            f"ws://127.0.0.1:{port}{PATH}",
        ]
        found = await look_at([Upstream(url, url) for url in urls], PATIENCE)
    assert [each.answer for each in found] == ["connect", "name", "connect"]
    assert "refused" in found[0].detail.lower()
    assert all(each.date_offset_s is None for each in found)


async def test_a_server_without_tls_is_named() -> None:
    async with serving({}) as port:
        (seen,) = await look_at([Upstream("it", f"wss://127.0.0.1:{port}{PATH}")], PATIENCE)
    assert seen.answer == "tls"


async def test_an_answer_that_does_not_come_is_not_waited_for() -> None:
    accepted: list[asyncio.StreamWriter] = []

    async def silent(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.append(writer)

    async with await asyncio.start_server(silent, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        (seen,) = await look_at([Upstream("it", f"ws://127.0.0.1:{port}{PATH}")], Patience(0.05, 0.05, 0.05))
        for writer in accepted:
            writer.close()
    assert seen.answer == "connect"
    assert seen.detail == "no answer in 0 s"
