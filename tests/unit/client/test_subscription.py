"""A message as received."""

from __future__ import annotations

import pytest

from jetstream.client import Message


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
        Message.parse(raw)
