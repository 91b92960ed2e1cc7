"""Every close of a WebSocket by the server: how it is provoked, its code, its label and its reason."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.builders import identity
from tests.relay import Relay
from tests.serving import Start, figures, published, until
from tests.subscriber import Subscriber, subscribe
from tests.unit.test_api_docs import GONE, closes
from websockets.frames import Frame, Opcode

from jetstream.app import Service
from jetstream.limits import Limits, WebLimits

EVENTS = "/xrpc/network.bsky.jetstream.subscribeEvents"
SLOW = WebLimits(message_timeout_s=0.05, deadline_check_s=0.01)
SHORT = WebLimits(hello_timeout_s=0.01)
FLOOD = "flood: more {} than a client may send: send less"
FIRST = Frame(Opcode.TEXT, b"x", False).serialize(mask=True)
Provoke = Callable[[Service, Subscriber], None]


def stop(service: Service, _subscriber: Subscriber) -> None:
    service.stop()


def nothing(_service: Service, _subscriber: Subscriber) -> None:
    """Do nothing: the request is enough."""


def sends(data: bytes) -> Provoke:
    """Return what sends bytes as they are."""
    return lambda _service, subscriber: subscriber.connection.transport.write(data)


def says(message: bytes, count: int = 1) -> Provoke:
    """Return what sends messages."""
    return sends(Frame(Opcode.TEXT, message).serialize(mask=True) * count)


class Row(NamedTuple):
    """A close."""

    code: int
    label: str
    reason: str
    provoke: Provoke
    path: str = "/subscribe"
    limits: WebLimits = WebLimits()


ROWS = [
    Row(
        1000,
        "done",
        "done: the limit is reached, to go on connect with this cursor",
        nothing,
        "/subscribe?cursor=0&limit=1",
    ),
    Row(
        1000,
        "done",
        "done: until is reached, to go on connect with this cursor",
        nothing,
        "/subscribe?cursor=0&until=1",
    ),
    Row(1001, "shutdown", "the server is shutting down: connect again", stop),
    Row(1001, "shutdown", "the server is shutting down: connect again", stop, "/v1/subscribe"),
    Row(1012, "shutdown", "the server is shutting down: connect again", stop, EVENTS),
    Row(1002, "protocol", "a frame of the client is not masked: mask every frame", sends(b"\x81\x02{}")),
    Row(1002, "protocol", "not the WebSocket protocol: use a WebSocket client", sends(b"\xf1\x80\0\0\0\0")),
    Row(1007, "bad_json", "a message is not JSON: ", says(b"hello")),
    Row(
        1008,
        "bad_options",
        "wantedDids: '1' is not a list",
        says(b'{"type":"options_update","payload":{"wantedDids":1}}'),
    ),
    Row(
        1008,
        "no_hello",
        "no options_update within 0.01 s: send one, or leave requireHello out",
        nothing,
        "/subscribe?requireHello=true",
        SHORT,
    ),
    Row(
        1008,
        "slow_message",
        "a message was not whole within 0.05 s: send it faster",
        sends(b"\x81"),
        limits=SLOW,
    ),
    Row(1008, "flood", FLOOD.format("messages"), says(b"{}", 1_000)),
    Row(1008, "flood", FLOOD.format("bytes"), says(b'{"type":"%b"}' % (b"x" * 900_000), 12)),
    Row(
        1008,
        "flood",
        FLOOD.format("control frames"),
        sends(Frame(Opcode.PING, b"x").serialize(mask=True) * 1_000),
    ),
    Row(
        1008,
        "flood",
        FLOOD.format("fragments"),
        sends(FIRST + Frame(Opcode.CONT, b"x", False).serialize(mask=True) * 10_000),
    ),
    Row(
        1008,
        "flood",
        "flood: the server holds too much that clients have begun to send: ",
        sends(FIRST + Frame(Opcode.CONT, b"x" * 20_000, False).serialize(mask=True)),
        limits=WebLimits(pending_bytes_max=10_000),
    ),
    Row(
        1008,
        "unexpected_data",
        "this stream takes no messages: change the URL instead",
        says(b"{}"),
        EVENTS,
    ),
    Row(1009, "message_too_big", "a message is longer than 1000000 bytes: send less", says(b"x" * 1_000_001)),
]
# Those that need more than a row: the file and the name of the test.
ELSEWHERE = {
    (1008, "kicked"): ("test_subscribers.py", "test_a_subscriber_is_disconnected_by_its_id"),
    (1008, "slow"): (
        "test_subscribe.py",
        "test_a_reader_that_reads_nothing_is_closed_with_1008_and_gets_what_was_sent",
    ),
    (1008, "overtaken"): (
        "test_subscribe.py",
        "test_a_reader_that_the_retention_overtakes_is_closed_with_1008",
    ),
    (1011, "error"): ("test_untrusted.py", "test_errors_while_messages_are_read"),
}


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.code}-{row.label}-{row.reason[:40]}" for row in ROWS])
async def test_a_close_says_why_and_where_to_go_on(row: Row, relay: Relay, start: Start) -> None:
    relay.publish([(1, identity(1)), (2, identity(2))])
    service = await start(upstream_cursor=0, limits=Limits(web=row.limits))
    await published(service, 2)
    async with subscribe(service.port, row.path) as subscriber:
        row.provoke(service, subscriber)
        code, reason, cursor = await subscriber.ended_at()
        assert 0 < cursor <= service.log.tip + 1
        assert (code, reason[: len(row.reason)]) == (row.code, row.reason)
    if row.label != "shutdown":  # else the server has gone
        label = f'jetstream_disconnects_total{{reason="{row.label}"}}'
        await until(lambda: not len(service.subscribe))
        assert (await figures(service.port))[label] == 1


def test_every_close_has_a_row() -> None:
    assert {(row.code, row.label) for row in ROWS} | set(ELSEWHERE) == closes() - GONE


def test_what_is_elsewhere_is_there() -> None:
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in Path(__file__).with_name(file).read_text()
