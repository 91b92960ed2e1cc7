"""The Python programs in the README and the documentation, run as they stand there."""

from __future__ import annotations

import ast
import io
import re
import sys
from pathlib import Path

import pytest
from tests.builders import DID, commit, create
from tests.programs import program
from tests.relay import Relay, numbered
from tests.serving import Start, until

ROOT = Path(__file__).resolve().parents[2]
POST = "app.bsky.feed.post"
LARGE = "x" * 980_000  # nearly as long as a record may be

# Of each program: where it is, and what it imports beside the standard library.
PROGRAMS = [
    ("README.md", 0, "jetstream"),
    ("README.md", 1, "websockets"),
    ("docs/clients.md", 0, ""),
    ("docs/clients.md", 1, "websockets zstandard"),
    ("docs/clients.md", 2, "jetstream"),
    ("docs/clients.md", 3, "jetstream"),
    ("docs/clients.md", 4, "jetstream"),
]


def python_blocks(page: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE)


def imported(code: str) -> set[str]:
    """Return the packages that a program imports, those of the standard library left out."""
    modules = [
        name
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module])
    ]
    return {str(name).partition(".")[0] for name in modules} - sys.stdlib_module_names


def test_every_program_is_run_here() -> None:
    pages = ["README.md", "docs/clients.md"]
    found = {(page, number) for page in pages for number, _ in enumerate(python_blocks(page))}
    assert found == {(page, number) for page, number, _ in PROGRAMS}


@pytest.mark.parametrize(("page", "number", "package"), PROGRAMS)
async def test_a_program_prints_posts_of_every_size(
    page: str, number: int, package: str, relay: Relay, start: Start, tmp_path: Path
) -> None:
    code = python_blocks(page)[number]
    assert imported(code) == set(package.split())
    service = await start(upstream_cursor=0)
    (tmp_path / "example.py").write_text(code.replace("localhost:6008", f"127.0.0.1:{service.port}"))
    posts = [create(f"{POST}/{n}", {"text": text}) for n, text in enumerate(["hello", LARGE, "bye"])]
    example = program(sys.executable, tmp_path / "example.py", cwd=tmp_path, unbuffered=True)
    async with example as printing:
        await until(lambda: len(service.subscribe))
        await until(lambda: len(service.delivery))
        relay.publish(numbered([commit(seq, [post]) for seq, post in enumerate(posts, 1)]))
        lines = await printing.lines(3)
    assert [DID in line for line in lines] == [True] * 3
    assert ["hello" in lines[0], LARGE in lines[1], "bye" in lines[2]] == [True] * 3


def test_a_last_line_of_white_space_is_no_event(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A quiet stream gets a space every 30 s, and may end after one."""
    monkeypatch.setattr("urllib.request.urlopen", lambda _: io.BytesIO(b'{"did":"did:plc:a"}\n '))
    exec(python_blocks("docs/clients.md")[0], {})
    assert capsys.readouterr().out == "did:plc:a None\n"


def test_the_readme_says_what_is_needed() -> None:
    readme = (ROOT / "README.md").read_text()
    for words in ("Python ≥ 3.11", "pip install .", "pip install websockets", "max_size=None"):
        assert words in readme
    assert 'requires-python = ">=3.11"' in (ROOT / "pyproject.toml").read_text()
