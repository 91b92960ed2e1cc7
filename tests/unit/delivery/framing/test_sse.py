from __future__ import annotations

import json

import pytest
from tests.event_streams import SseEvent, SseReader

from jetstream.delivery.framing.sse import SSE

MESSAGES = [b'{"a":1}', b"", b'{"b":"\xc3\xa9: "}']


def read(body: bytes) -> tuple[SseReader, list[SseEvent]]:
    reader = SseReader()
    return reader, reader.feed(body.decode())


def test_each_message_is_an_event_with_its_position_as_id() -> None:
    _, events = read(b"".join(SSE.frames(MESSAGES, [5, 6, 1725516666833633])))

    assert events == [
        SseEvent("message", '{"a":1}', "5"),
        SseEvent("message", '{"b":"é: "}', "1725516666833633"),
    ]


def test_what_is_no_event_of_ours_leaves_the_last_id_as_it_is() -> None:
    _, events = read(b"".join(SSE.frames([b"{}"], [5]) + SSE.frames([b'{"info":1}', b""])))

    assert events == [SseEvent("message", "{}", "5"), SseEvent("message", '{"info":1}', "5")]


def test_the_start_says_when_to_come_back_and_keep_alives_are_comments() -> None:
    reader, events = read(SSE.start + SSE.keep_alive * 2)

    assert (reader.retry_ms, reader.comments, events) == (2000, 2, [])


@pytest.mark.parametrize(
    ("cursor", "reason"), [(None, 'slow: "read" faster\n'), (7, 'slow: "read" faster\n; cursor=7')]
)
def test_the_end_is_an_event_of_its_own_type(cursor: int | None, reason: str) -> None:
    _, (event,) = read(SSE.end(1008, 'slow: "read" faster\n', cursor))

    assert (event.type, event.id) == ("close", "")
    assert json.loads(event.data) == {"code": 1008, "reason": reason}
