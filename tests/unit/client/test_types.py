"""A type checker knows what an event has in it, by its kind, operation and collection."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, cast, get_args

import pytest
from mypy import api
from tests.fixtures import json_lines

from jetstream.client import classic, notices, v1

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
    out, _, _ = api.run(["--strict", "--python-version=3.11", f"--cache-dir={cache}", str(path)])
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


def records_of(wire: object) -> dict[str, type]:
    """Return the types of records by collection, from the type of commits of a wire."""
    puts = [get_args(each) for each in get_args(wire) if get_args(each)]
    return {get_args(collection)[0]: record for collection, record in puts if get_args(collection)}


def fits(kind: type, value: dict[str, Any]) -> bool:
    """Tell whether an object has the keys of its type, and no others."""
    required = cast("frozenset[str]", kind.__required_keys__)  # type: ignore[attr-defined]
    return required <= value.keys() <= kind.__annotations__.keys()


def test_captured_events_have_the_keys_of_their_types() -> None:
    """Records of the common lexicons too, as real accounts have written them."""
    kinds = {get_args(kind.__annotations__["kind"])[0]: kind for kind in get_args(v1.Event)}
    bodies = {"identity": notices.IdentityBody, "account": notices.AccountBody}
    known = records_of(v1.Commit)
    for event in json_lines("firehose/events.v1.jsonl"):
        assert fits(kinds[event["kind"]], event)
        if event["kind"] != "commit":
            assert fits(bodies[event["kind"]], event[event["kind"]])
            continue
        commit = event["commit"]
        assert fits(v1.Delete if commit["operation"] == "delete" else v1.Put, commit)
        if "record" in commit and commit["collection"] in known:
            assert fits(known[commit["collection"]], commit["record"]), commit["record"]


def test_both_wires_have_the_types_of_the_same_collections() -> None:
    known = records_of(v1.Commit)
    assert known == records_of(classic.Commit)
    for collection, record in known.items():
        assert get_args(record.__annotations__["$type"]) == (collection,)
