"""`/ready`: its status, and its reasons."""

from __future__ import annotations

from dataclasses import replace

import orjson
from tests.unit.web.test_pages import ASKED, STATUS

from jetstream.web import ready


def test_a_server_that_is_ready() -> None:
    answer = ready.page(lambda: STATUS)(ASKED)
    assert answer.status == 200
    assert orjson.loads(answer.body) == {"ready": True, "not_ready": []}


def test_a_server_that_is_not_ready_says_why_and_what_to_do() -> None:
    status = replace(STATUS, ready_idle_s=60.0)
    answer = ready.page(lambda: status)(ASKED)
    assert answer.status == 503
    body = orjson.loads(answer.body)
    assert body["ready"] is False
    (reason,) = body["not_ready"]
    assert reason["check"] == "upstream_idle"
    assert reason["text"] == "no frame has come from upstream since the start"
    assert "--ready-idle" in reason["hint"]
