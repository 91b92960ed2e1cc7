from __future__ import annotations

import json

from jetstream.delivery.framing.ndjson import NDJSON

MESSAGES = [b'{"a":1}', b"", b'{"b":"\\n"}']


def test_each_message_is_a_line_and_a_declined_event_is_nothing() -> None:
    frames = NDJSON.frames(MESSAGES, [1, 2, 3])

    assert frames == [b'{"a":1}\n', b"", b'{"b":"\\n"}\n']
    assert NDJSON.frames(MESSAGES) == frames


def test_a_keep_alive_makes_no_line_of_its_own() -> None:
    first, _, second = NDJSON.frames(MESSAGES)
    body = NDJSON.start + first + NDJSON.keep_alive * 3 + second + NDJSON.end(1001, "bye", 7)

    assert [json.loads(line) for line in body.splitlines()] == [{"a": 1}, {"b": "\n"}]
