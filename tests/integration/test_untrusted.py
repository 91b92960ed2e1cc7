"""What anybody on the network may send: it is bounded, answered in a sentence, counted, logged in a line."""

from __future__ import annotations

import asyncio
import json
import logging
import resource
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.builders import identity
from tests.relay import Relay
from tests.serving import Start, figures, get, process, published, until
from tests.subscriber import subscribe
from websockets.frames import Frame, Opcode

from jetstream import __version__
from jetstream.app import Service
from jetstream.delivery.catch_up import CatchUp
from jetstream.limits import Limits, WebLimits
from jetstream.token_bucket import Rate
from jetstream.web import dialect as dialect_module
from jetstream.web import subscribe as subscribe_module

HANDSHAKE = (
    b"GET /subscribe HTTP/%b\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: %b\r\nSec-WebSocket-Key: %b\r\n\r\n"
)
KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


@pytest.fixture
async def service(start: Start) -> Service:
    return await start()


def web(**limits: Any) -> Limits:
    return Limits(web=WebLimits(**limits))


async def ask(port: int, *parts: bytes) -> bytes:
    """Send bytes, and return all that comes until the server ends the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        async with asyncio.timeout(20):
            for part in parts:
                writer.write(part)
                await asyncio.sleep(0)
            return await reader.read()
    finally:
        writer.close()


def message(text: bytes = b"{}") -> bytes:
    return Frame(Opcode.TEXT, text).serialize(mask=True)


def update(count: int, salt: int = 0) -> bytes:
    dids = [f"did:plc:{salt:04d}{n:020d}" for n in range(count)]
    return message(json.dumps({"type": "options_update", "payload": {"wantedDids": dids}}).encode())


# Requests

BAD = [
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 200, 400, "malformed"),
    (b"A" * 900_000 + b"\r\n\r\n", 400, "malformed"),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505, "version"),
    (b"GET /health HTTP/1.1\nHost: x\n\n", 400, "malformed"),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nX: \x01" + b"c" * 900_000 + b"\r\n\r\n", 431, "too_long"),
    (b"GET /health HTTP/1.1\r\nHost: x\r\nX: \x01\r\n\r\n", 400, "malformed"),
    (b"GET /" + b"x" * (1 << 21) + b" HTTP/1.1\r\n\r\n", 414, "too_long"),
    (b"GET / HTTP/1.1\r\n" + b"x:y\r\n" * 50_000 + b"\r\n", 431, "too_long"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", 400, "malformed"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhello", 413, "body"),
    (b"GET / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 413, "body"),
]


async def test_junk_is_answered_in_a_sentence_counted_and_logged_once(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    for data, status, _ in BAD * 2:
        answer = await ask(service.port, data)
        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 %d " % status), data[:40]
        assert f"Server: jetstream/{__version__}".encode() in head.split(b"\r\n")
        assert b"Connection: close" in head
        assert (body.count(b"\n"), len(body) < 200) == (1, True)
    seen = await figures(service.port)
    for reason in {reason for *_, reason in BAD}:
        count = 2 * sum(reason == each for *_, each in BAD)
        assert seen[f'jetstream_bad_requests_total{{reason="{reason}"}}'] == count
    lines = [line for line in capsys.readouterr().out.splitlines() if "request: not served" in line]
    assert len(lines) == len({reason for *_, reason in BAD})
    assert all("info" in line and len(line) < 500 for line in lines)


@pytest.mark.parametrize("size", [1, 7, 60])
async def test_a_request_may_come_in_pieces(size: int, service: Service) -> None:
    data = b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = await ask(service.port, *(data[at : at + size] for at in range(0, len(data), size)))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")


async def test_pipelined_requests_are_answered_in_order(service: Service) -> None:
    one, last = (
        b"GET /%b HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
    )
    answer = await ask(service.port, one % b"health" + one % b"nothing" + one % b"health" + last)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"404", b"200", b"200"]
    assert answer.endswith(b"\r\n\r\n")  # the last one without its body


async def test_a_flood_of_requests_on_one_connection_ends_with_429(start: Start) -> None:
    service = await start(limits=web(requests=Rate(0, 5)))
    answer = await ask(service.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n" * 50)
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200"] * 5 + [b"429"]
    assert (await figures(service.port))['jetstream_bad_requests_total{reason="flood"}'] == 1


@pytest.mark.parametrize("accept", [b"text/plain", b"application/openmetrics-text"])
async def test_no_version_of_a_metrics_format_is_an_error(accept: bytes, service: Service) -> None:
    request = b"GET /metrics HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAccept: %b; version=%b\r\n\r\n"
    for version in (b"", b"x", b"-1", b"9" * 5_000, b"1.0.0"):
        answer = await ask(service.port, request % (accept, version))
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b"\r\nContent-Type: " + accept in answer


@pytest.mark.parametrize("path", [b"/", b"/health", b"/metrics", b"/subscribe", b"/nothing", b"*"])
async def test_a_body_is_never_taken_for_a_request(path: bytes, service: Service) -> None:
    """Behind a proxy that reuses connections, its answer would go to another client."""
    body = b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n"
    bodies = [
        b"Content-Length: %d\r\n\r\n%b" % (len(body), body),
        b"Transfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body),
    ]
    for method in (b"GET", b"HEAD", b"OPTIONS", b"POST", b"PUT", b"DELETE", b"TRACE", b"ANY"):
        for rest in bodies:
            answer = await ask(service.port, b"%b %b HTTP/1.1\r\nHost: x\r\n%b" % (method, path, rest))
            assert answer.count(b"HTTP/1.1 ") == 1, (method, path)
            assert b"\r\nConnection: close\r\n" in answer


async def test_another_method_is_told_which_to_use(service: Service) -> None:
    answer = await ask(service.port, b"POST /health HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: GET, HEAD, OPTIONS\r\n" in answer


async def test_each_request_of_a_connection_must_be_whole_in_time(start: Start) -> None:
    service = await start(limits=web(request_timeout_s=0.05, deadline_check_s=0.01))
    answer = await ask(service.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\nGET /hea")
    assert [part[:3] for part in answer.split(b"HTTP/1.1 ")[1:]] == [b"200", b"408"]


async def test_unfinished_requests_are_bounded_together(start: Start) -> None:
    service = await start(limits=web(pending_bytes_max=50_000))
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(3):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            stack.callback(writer.close)
            writer.write(b"GET /" + b"x" * 20_000)
            readers.append(reader)
        async with asyncio.timeout(20):
            assert (await readers[0].read()).startswith(b"HTTP/1.1 503 ")
    assert (await get(service.port, "/health"))[0] == 200


async def test_an_idle_connection_is_closed_without_a_response(start: Start) -> None:
    service = await start(limits=web(keep_alive_s=0.05, deadline_check_s=0.01))
    answer = await ask(service.port, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n")
    assert answer.count(b"HTTP/1.1") == 1


async def test_with_too_many_connections_the_longest_waiting_goes(start: Start) -> None:
    service = await start(limits=web(connections_max=2))
    async with AsyncExitStack() as stack:
        readers = []
        for _ in range(4):
            reader, writer = await asyncio.open_connection("127.0.0.1", service.port)
            stack.callback(writer.close)
            readers.append(reader)
        async with asyncio.timeout(20):
            assert await readers[0].read() == b""
        assert (await get(service.port, "/health"))[0] == 200
        assert (await figures(service.port))["jetstream_evicted_total"] >= 2


async def test_silent_sockets_do_not_lock_others_out(relay: Relay, tmp_path: Path) -> None:
    limits = {resource.RLIMIT_NOFILE: (64, 64)}
    async with (
        process(relay.url, tmp_path, limits=limits) as server,
        subscribe(server.port) as subscriber,
        AsyncExitStack() as stack,
    ):
        for n in range(200):
            _, writer = await asyncio.open_connection("127.0.0.1", server.port)
            stack.callback(writer.close)
            if n % 2:
                writer.write(b"GET /health HTTP/1.1\r\n")
        assert (await get(server.port, "/health"))[0] == 200
        async with subscribe(server.port):
            pass
        seen = await figures(server.port)
        assert seen["jetstream_evicted_total"] > 100
        assert seen['jetstream_bad_requests_total{reason="timeout"}'] == 0  # nobody had to wait for it
        await (await subscriber.connection.ping())  # and no subscriber was closed for it


# Handshakes


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (HANDSHAKE % (b"1.1", b"8", KEY), 426),
        (HANDSHAKE % (b"1.1", b"", KEY), 426),
        (HANDSHAKE % (b"1.0", b"13", KEY), 400),
        (HANDSHAKE % (b"1.1", b"13", b"short"), 400),
    ],
)
async def test_a_bad_handshake_is_refused(data: bytes, status: int, service: Service) -> None:
    answer = await ask(service.port, data)
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (b"\r\nSec-WebSocket-Version: 13\r\n" in answer) == (status == 426)
    seen = await figures(service.port)
    assert seen['jetstream_bad_requests_total{reason="handshake"}'] == 1
    assert seen['jetstream_refused_total{reason="handshake"}'] == 1


async def test_only_our_own_name_is_told(service: Service) -> None:
    requests = [
        b"GET /%b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % path for path in (b"", b"nothing")
    ]
    for data in [*requests, b"\x00junk", HANDSHAKE % (b"1.1", b"13", KEY) + b"\x89\x00"]:
        head = (await ask(service.port, data)).partition(b"\r\n\r\n")[0].lower()
        assert head.startswith(b"http/1.1 ")
        assert b"\r\nserver: jetstream/" in head
        assert b"python" not in head
        assert b"aiohttp" not in head


# Messages


async def test_an_unmasked_frame_closes_with_1002(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        subscriber.connection.transport.write(b"\x81\x02{}")
        code, text, _ = await subscriber.ended_at()
        assert (code, text) == (1002, "a frame of the client is not masked: mask every frame")


FLOODS = [
    (message() * 1_000, "flood: more messages than a client may send: send less"),
    (
        Frame(Opcode.PING, b"x").serialize(mask=True) * 1_000,
        "flood: more control frames than a client may send: send less",
    ),
    (
        Frame(Opcode.TEXT, b"x", False).serialize(mask=True)
        + Frame(Opcode.CONT, b"x", False).serialize(mask=True) * 10_000,
        "flood: more fragments than a client may send: send less",
    ),
]


@pytest.mark.parametrize("query", [{}, {"cursor": 1}, {"requireHello": "true"}])
async def test_a_flood_closes_with_1008(query: dict[str, Any], service: Service) -> None:
    for data, reason in FLOODS:
        async with subscribe(service.port, **query) as subscriber:
            subscriber.connection.transport.write(data)
            code, text, _ = await subscriber.ended_at()
            assert (code, text) == (1008, reason)
    await until(lambda: not len(service.subscribe))
    assert (await figures(service.port))['jetstream_disconnects_total{reason="flood"}'] == 3


async def test_bytes_have_a_budget_too(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        subscriber.connection.transport.write(message(b'{"type":"%b"}' % (b"x" * 900_000)) * 12)
        code, text, _ = await subscriber.ended_at()
        assert (code, text) == (1008, "flood: more bytes than a client may send: send less")


@pytest.mark.parametrize(
    "data",
    [b"\x81", message()[:-1], Frame(Opcode.TEXT, b"{", False).serialize(mask=True), update(99)[:-1]],
    ids=["half a head", "a text without its end", "the first of several parts", "an update without its end"],
)
async def test_a_message_that_does_not_end_is_closed(data: bytes, start: Start) -> None:
    service = await start(limits=web(message_timeout_s=0.05, deadline_check_s=0.01))
    async with subscribe(service.port) as subscriber:
        subscriber.connection.transport.write(data)
        ping = Frame(Opcode.PING, b"").serialize(mask=True)
        if data == FRAGMENT:
            subscriber.connection.transport.write(ping)  # which is no progress of the message
        code, text, _ = await subscriber.ended_at()
        assert (code, text) == (1008, "a message was not whole within 0.05 s: send it faster")
    assert (await figures(service.port))['jetstream_disconnects_total{reason="slow_message"}'] == 1


FRAGMENT = Frame(Opcode.TEXT, b"{", False).serialize(mask=True)


@pytest.mark.parametrize(
    "data",
    [message(), update(10), message() * 40, FRAGMENT + Frame(Opcode.CONT, b"}").serialize(mask=True)],
    ids=["a message", "an update", "many messages", "fragments"],
)
async def test_a_client_that_has_sent_whole_messages_may_be_silent(data: bytes, start: Start) -> None:
    service = await start(limits=web(message_timeout_s=3_600.0))
    async with subscribe(service.port) as subscriber:
        subscriber.connection.transport.write(data)
        await (await subscriber.connection.ping())  # read behind the messages
        # Nothing is left that a deadline applies to.
        await until(lambda: not service.subscribe._inbound.pending._entries)


async def test_what_is_held_of_all_messages_is_bounded(start: Start) -> None:
    service = await start(limits=web(pending_bytes_max=50_000))
    async with subscribe(service.port) as one, subscribe(service.port) as other:
        one.connection.transport.write(update(1_000)[:-1])
        await until(lambda: len(service.subscribe._inbound.pending._entries) == 1)
        other.connection.transport.write(update(1_000)[:-1])
        code, reason = await one.ended()
        assert (code, reason.startswith("flood: ")) == (1008, True)
        other.connection.transport.abort()


async def test_what_a_client_sent_before_it_left_is_not_worked_on(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes: list[object] = []
    monkeypatch.setattr(service.delivery, "change", lambda *change: changes.append(change))
    async with subscribe(service.port):
        await until(lambda: len(service.delivery) == 1)
        (member,) = service.delivery._subscribers
        socket: Any = member.sink
        socket.data_received(update(10_000) * 5)
        socket._transport.abort()
        await until(lambda: len(service.subscribe) == 0)
    await until(lambda: not len(service.subscribe._inbound.messages))
    assert changes == []
    assert socket.held == 0


async def test_clients_that_leave_while_their_updates_wait_cause_no_error(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    waiting = service.subscribe._inbound.messages
    monkeypatch.setattr(waiting, "_scheduled", True)  # nothing is worked on before `_turn` is called here
    async with AsyncExitStack() as stack:
        for _ in range(3):
            await stack.enter_async_context(subscribe(service.port, requireHello="true"))
        clients = list(service.subscribe._clients)
        for n, client in enumerate(clients):
            client.sink.data_received(update(10_000, n) * 2)
        await until(lambda: len(waiting) == 3)
        for client in clients:
            client.sink._transport.abort()
        await until(lambda: len(service.subscribe) == 0)
        waiting._turn()
    assert not len(waiting)


async def test_updates_of_ten_thousand_dids_take_effect_one_after_another(
    service: Service, relay: Relay
) -> None:
    async with AsyncExitStack() as stack:
        readers = [await stack.enter_async_context(subscribe(service.port)) for _ in range(5)]
        for n, reader in enumerate(readers):
            reader.connection.transport.write(
                update(10_000, n) + update(9_999, 10 + n) + update(10_000, 20 + n)
            )
        for reader in readers:
            await (await reader.connection.ping())
        relay.publish([(n + 1, identity(n + 1, did=f"did:plc:{20 + n:04d}{0:020d}")) for n in range(5)])
        for n, reader in enumerate(readers):
            assert (await reader.event())["identity"]["seq"] == n + 1


async def test_a_client_that_does_not_read_is_kept_one_pong(service: Service) -> None:
    async with subscribe(service.port) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        (member,) = service.delivery._subscribers
        socket: Any = member.sink
        socket.pause_writing()
        for n in range(50):
            subscriber.connection.transport.write(Frame(Opcode.PING, b"%d" % n).serialize(mask=True))
        await until(lambda: socket._pong == b"49")
        pong = await subscriber.connection.ping(b"last")
        await until(lambda: socket._pong == b"last")
        socket.resume_writing()
        await pong


async def test_a_client_that_pings_and_leaves_is_no_error(
    service: Service, caplog: pytest.LogCaptureFixture
) -> None:
    for count in (1, 10, 100):
        for _ in range(5):
            async with subscribe(service.port) as subscriber:
                subscriber.connection.transport.write(Frame(Opcode.PING, b"x").serialize(mask=True) * count)
                subscriber.connection.transport.abort()
    await until(lambda: len(service.subscribe) == 0)
    assert [record for record in caplog.records if record.levelno > logging.INFO] == []


def test_what_is_promised_is_in_the_budget() -> None:
    limits = WebLimits()
    assert limits.messages.per_s >= 11
    assert limits.control_frames.per_s >= 10
    assert limits.message_bytes.per_s >= 360_000 + 10 * 3_600
    assert len(update(10_000)) < 400_000


# Errors of the server itself


def broken(*_args: object) -> None:
    raise ArithmeticError("a fault of ours")


async def failures(service: Service, doing: str, event: str, logs: list[Any]) -> None:
    """Check that ten errors were counted, and one was logged with its traceback."""
    name = f'jetstream_internal_errors_total{{doing="{doing}"}}'
    assert (await figures(service.port))[name] == 10
    lines = [line for line in logs if line["log_level"] == "error"]
    assert [(line["event"], line["exc_info"]) for line in lines] == [(event, True)]


async def test_errors_while_requests_are_answered(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subscribe_module.Subscribe, "_check_room", broken)
    with capture_logs() as logs:
        for _ in range(10):
            assert b" 500 " in await ask(service.port, HANDSHAKE % (b"1.1", b"13", KEY))
        await failures(service, "request", "request: could not be answered", logs)


async def test_errors_while_messages_are_read(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialect_module, "parse_message", broken)
    with capture_logs() as logs:
        for _ in range(10):
            async with subscribe(service.port) as subscriber:
                subscriber.connection.transport.write(message())
                assert (await subscriber.ended())[0] == 1011
        await failures(service, "message", "subscriber: a message could not be read", logs)


async def test_errors_while_subscribers_are_fed(
    relay: Relay, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    relay.publish([(1, identity(1))])
    service = await start(upstream_cursor=0)
    await published(service, 1)
    monkeypatch.setattr(CatchUp, "_advance", broken)
    with capture_logs() as logs:
        for _ in range(10):
            async with subscribe(service.port, cursor=1) as subscriber:
                assert (await subscriber.ended())[0] == 1011
        await failures(service, "feed", "subscriber: could not be fed", logs)
