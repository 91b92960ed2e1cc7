"""A type checker knows what an event of the client has in it, by its kind, operation and collection."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = """
from __future__ import annotations

from jetstream.client import FileCursor, subscribe, subscribe_sync, v1

async def count() -> None:
    async with subscribe("localhost", wire="v1", kinds=["commit"], store=FileCursor("x.cursor")) as events:
        async for message in events:
            reveal_type(message)  # 1
            event = message.v1
            if event["kind"] == "commit":
                commit = event["commit"]
                if commit["operation"] == "delete":
                    reveal_type(commit["rkey"])  # 2
                    commit["record"]  # error 1
                elif commit["collection"] == "app.bsky.feed.post":
                    reveal_type(commit["record"]["text"])  # 3
                    commit["record"]["txet"]  # error 2
                elif commit["collection"] == "com.example.thing":
                    reveal_type(commit["record"])  # 4
            elif event["kind"] == "identity":
                reveal_type(event["identity"].get("handle"))  # 5
                event["account"]  # error 3
            else:
                reveal_type(event["account"]["active"])  # 6

def classic() -> None:
    for message in subscribe_sync("localhost", wire="classic", cursor=0):
        event = message.classic
        if event["type"] == "com" and event["commit"]["type"] == "d":
            reveal_type(event["commit"]["collection"])  # 7
    subscribe_sync("localhost", kind=["commit"])  # error 4
    subscribe("localhost", kinds=["comit"])  # error 5
"""


def checked(directory: Path, cache: Path, program: str) -> tuple[dict[int, str], list[str]]:
    """Check a program with mypy. Return what it reveals, and its errors, by line."""
    path = directory / "program.py"
    path.write_text(program)
    flags = ["--strict", "--python-version=3.11", f"--cache-dir={cache}", str(path)]
    # As a process: mypy raises the recursion limit of its own, for good.
    command = [sys.executable, "-m", "mypy", *flags]
    out = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    revealed = {int(line): text for line, text in re.findall(r':(\d+): note: Revealed type is "(.*)"', out)}
    return revealed, re.findall(r"program.py:(\d+): error", out)


@pytest.mark.timeout(300)
def test_a_type_checker_narrows_events(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    kept = getattr(pytestconfig, "cache", None)  # what was found of the imported modules; None: turned off
    revealed, errors = checked(tmp_path, kept.mkdir("mypy") if kept else tmp_path, EXAMPLE)
    lines = EXAMPLE.splitlines()
    types = {int(lines[line - 1].rpartition("# ")[2]): text for line, text in revealed.items()}
    assert types == {
        1: "jetstream.client.message.Message",
        2: "str",
        3: "str | Any",
        4: "dict[str, Any]",
        5: "str | None",
        6: "bool",
        7: "str",
    }
    assert [lines[int(line) - 1].rpartition("# ")[2] for line in errors] == [
        f"error {n}" for n in range(1, 6)
    ]
