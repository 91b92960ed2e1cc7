"""Libraries that read an archive, unmodified. There is none: they show a clear 501."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.foreign.clients import HERE, environment
from tests.programs import program
from tests.relay import Relay
from tests.serving import Start

pytestmark = pytest.mark.timeout(1200)


@pytest.mark.parametrize(
    ("library", "requirements", "shown"),
    [
        ("atproto", "atproto.txt", ["MethodNotImplemented", "keeps no archive"]),
        ("jetstream-lakehouse", "lakehouse.txt", ["JetstreamError", "HTTP 501"]),
    ],
)
async def test_a_replay_is_told_that_there_is_no_archive(
    library: str, requirements: str, shown: list[str], relay: Relay, start: Start, tmp_path: Path
) -> None:
    interpreter = environment(requirements, tmp_path)
    service = await start()
    origin = f"http://127.0.0.1:{service.port}"
    async with program(interpreter, HERE / "python" / "archive.py", library, origin) as asking:
        line = await asking.line()
    assert [text for text in shown if text not in line] == []
