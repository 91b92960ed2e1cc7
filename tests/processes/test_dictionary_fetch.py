"""`jetstream dictionary fetch` as a process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest
from tests.integration.test_compression import Source, public, source

from jetstream.dictionary.file import FILE

__all__ = ["public", "source"]


async def test_the_command_fetches_and_says_where_to_or_why_not(
    public: bytes, source: Source, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")  # so that pip finds no package
    command = (sys.executable, "-m", "jetstream", "dictionary", "fetch", "--data-dir", str(tmp_path))

    async def run() -> tuple[int | None, str, str]:
        process = await asyncio.create_subprocess_exec(
            *command, "--url", source.url, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, problem = await process.communicate()
        return process.returncode, out.decode(), problem.decode()

    source.status = 404
    status, out, problem = await run()
    assert (status, out) == (1, "")
    assert problem.startswith("jetstream: the public zstd dictionary cannot be fetched: http://127.0.0.1")
    assert problem.count("\n") == 1
    source.status, source.body = 200, public
    assert await run() == (0, f"the public zstd dictionary is in {tmp_path / FILE}\n", "")
