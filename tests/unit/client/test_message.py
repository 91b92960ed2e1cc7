from __future__ import annotations

import pytest

from jetstream.client.message import Mark, Message, parse


def test_a_message_is_a_dict_with_its_bytes() -> None:
    raw = b'{"did":"did:web:x", "time_us":1725516666734038,"type":"com"}'
    message = Message.parse(raw)
    assert message == {"did": "did:web:x", "time_us": 1725516666734038, "type": "com"}
    assert message.raw == raw
    assert message.time_us == 1725516666734038


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xa1\x00",
        b"[]",
        b"[[1,2]]",
        b"1",
        b"null",
        b'"x"',
        b"{}",
        b'{"time_us":"1"}',
        b'{"time_us":true}',
    ],
)
def test_a_message_that_is_not_an_event_is_an_error(raw: bytes) -> None:
    with pytest.raises((ValueError, TypeError)):
        parse(raw)


@pytest.mark.parametrize("kind", [b'"kind":"heartbeat"', b'"type":"hb"'])
@pytest.mark.parametrize(("live", "is_live"), [(b"true", True), (b"false", False), (b'"yes"', False)])
def test_a_heartbeat_of_either_wire_is_a_mark_after_its_time(kind: bytes, live: bytes, is_live: bool) -> None:
    assert parse(b'{"time_us":7,%b,"live":%b}' % (kind, live)) == Mark(8, live=is_live)


def test_an_event_with_types_is_the_same_dict() -> None:
    v1, classic = Message.parse(b'{"time_us":7,"kind":"x"}'), Message.parse(b'{"time_us":7,"type":"x"}')
    assert v1.v1 is v1
    assert classic.classic is classic


def test_the_types_of_another_wire_are_an_error_that_says_what_to_do() -> None:
    with pytest.raises(TypeError, match="subscribe with wire='v1'"):
        _ = Message.parse(b'{"time_us":7,"type":"com"}').v1
    with pytest.raises(TypeError, match="subscribe with wire='classic'"):
        _ = Message.parse(b'{"time_us":7,"kind":"commit"}').classic
