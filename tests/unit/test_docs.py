"""The documentation against the tree: every file has a line, and every name and link leads somewhere."""

from __future__ import annotations

import ast
import re
import tomllib
from pathlib import Path

import pytest

from jetstream.identity.failures import KEY_FAILURES
from jetstream.metrics import REFUSAL_REASONS
from jetstream.upstream.drops import DROP_REASONS
from jetstream.verify.verdict import REFUSALS, VERDICTS

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "jetstream"
DOCS = ROOT / "docs"
ARCHITECTURE = DOCS / "architecture.md"
DECISIONS = DOCS / "decisions"
METRICS = DOCS / "metrics.md"
VERIFICATION = DOCS / "verification.md"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md")])
# Words that only we use, or that hide who does what. CONTRIBUTING asks for the standard terms.
UNCLEAR = re.compile(r"the interpreter|those who|whoever|head for head|\banew\b", re.IGNORECASE)


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def defines_something(module: Path) -> bool:
    """Tell whether a module has more than a docstring and imports."""
    nodes = ast.parse(module.read_text()).body
    return any(not isinstance(node, ast.Expr | ast.Import | ast.ImportFrom) for node in nodes)


def section(page: str, title: str) -> str:
    """Return the text below a second-level heading of a page."""
    found = re.search(rf"^## {title}\n(.*?)(?=^## |\Z)", page, re.DOTALL | re.MULTILINE)
    assert found is not None, f"no section {title!r}"
    return found.group(1)


def paths(text: str) -> list[str]:
    """Return the files below `src/jetstream` that a text names in backticks."""
    return re.findall(r"`([a-z0-9_/]+\.py)`", text)


class TestArchitecture:
    page = ARCHITECTURE.read_text()

    def test_every_source_file_has_one_line(self) -> None:
        rows = re.findall(r"^\| `([a-z0-9_/]+\.py)` \| [^|]+ \|$", section(self.page, "Files"), re.MULTILINE)
        modules = {
            str(module.relative_to(SOURCE)) for module in SOURCE.rglob("*.py") if defines_something(module)
        }
        assert sorted(rows) == sorted(modules)

    def test_its_layers_are_those_that_the_linter_checks(self) -> None:
        contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
        layers = next(each["layers"] for each in contracts if each["type"] == "layers")
        drawn = re.search(r"```\n(.*?)  ```", section(self.page, "Rules"), re.DOTALL)
        assert drawn is not None
        assert ["__main__", *map(str.strip, drawn.group(1).splitlines())] == layers

    def test_every_file_that_it_names_exists(self) -> None:
        assert [path for path in paths(self.page) if not (SOURCE / path).exists()] == []

    def test_every_place_to_change_exists(self) -> None:
        """Each row of "Where to change what" names files, and names that occur in one of them."""
        rows = re.findall(
            r"^\| (?!to \||-)(.+?) \| (.+) \|$", section(self.page, "Where to change what"), re.MULTILINE
        )
        assert rows
        for task, place in rows:
            text = "".join((SOURCE / path).read_text() for path in paths(place))
            assert text, f"{task}: no file"
            for symbol in re.findall(r"`(?:[A-Z]\w+\.)?(\w+)`", place):
                assert re.search(rf"\b{symbol}\b", text), f"{task}: no {symbol}"


class TestDecisions:
    def test_names_begin_with_a_date(self) -> None:
        names = [page.name for page in DECISIONS.glob("*.md") if page.name != "README.md"]
        assert [each for each in names if not re.fullmatch(r"20\d\d-\d\d-\d\d-[a-z0-9-]+\.md", each)] == []

    def test_the_index_has_each_of_them_once(self) -> None:
        linked = re.findall(r"^\| \[.+?\]\((.+?)\) \|", (DECISIONS / "README.md").read_text(), re.MULTILINE)
        assert sorted(linked) == sorted(page.name for page in DECISIONS.glob("20*.md"))

    @pytest.mark.parametrize("page", sorted(DECISIONS.glob("20*.md")), ids=lambda page: page.stem)
    def test_the_code_that_it_is_about_exists(self, page: Path) -> None:
        about = page.read_text().split("\n\n")[1]
        named = re.findall(r"`([a-z0-9_/]+)`", about)
        assert named
        for module in named:
            assert (SOURCE / module).is_dir() or (SOURCE / f"{module}.py").exists(), module


@pytest.mark.parametrize("page", PAGES, ids=name)
class TestEveryPage:
    def test_links_lead_to_files(self, page: Path) -> None:
        links = re.findall(r"\]\(([^)#:\s]+)(?:#[^)]*)?\)", page.read_text())
        assert [link for link in links if not (page.parent / link).exists()] == []

    def test_links_within_it_lead_to_headings(self, page: Path) -> None:
        text = page.read_text()
        headings = re.findall(r"^#+ (.+)$", text, re.MULTILINE)
        anchors = {re.sub(r"[^a-z0-9 _-]", "", title.lower()).replace(" ", "-") for title in headings}
        assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= anchors

    def test_words_are_clear(self, page: Path) -> None:
        assert UNCLEAR.findall(page.read_text()) == []


def test_every_reason_to_drop_data_is_described() -> None:
    table = section(METRICS.read_text(), "Reasons of `jetstream_dropped`")
    rows = re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)
    assert dict(rows) == DROP_REASONS


def test_every_reason_to_refuse_a_subscription_is_described() -> None:
    table = section(METRICS.read_text(), "Reasons of `jetstream_refused`")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == REFUSAL_REASONS


def test_every_verdict_and_every_reason_to_refuse_a_message_is_described() -> None:
    page = VERIFICATION.read_text()
    for title, names in (("Verdicts", VERDICTS), ("Reasons to refuse", REFUSALS)):
        assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", section(page, title), re.MULTILINE)) == names


def test_every_reason_for_which_there_is_no_key_is_described() -> None:
    table = section((DOCS / "keys.md").read_text(), "Why there is no key")
    assert dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", table, re.MULTILINE)) == KEY_FAILURES


def test_pages_that_the_source_refers_to_exist() -> None:
    named = {
        page for module in SOURCE.rglob("*.py") for page in re.findall(r"[\w./-]+\.md\b", module.read_text())
    }
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


def test_source_words_are_clear() -> None:
    found = {name(file): UNCLEAR.findall(file.read_text()) for file in SOURCE.rglob("*.py")}
    assert {file: words for file, words in found.items() if words} == {}
