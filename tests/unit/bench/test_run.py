"""What `make bench` writes: the benchmarks' own page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benches import run
from benches.limits import Limit, number
from benches.run import BEGIN, END, Entry, main

from jetstream.errors import SettingError


def figures(seconds: float = 60) -> dict[str, float]:
    return {"p99_ms": 12.5, "seconds": seconds}


@pytest.fixture
def docs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    entries = {
        "met": Entry("Within", figures, (Limit("p99_ms", 20),)),
        "missed": Entry("Beyond", figures, (Limit("p99_ms", 20, least=True),), timed=True),
    }
    monkeypatch.setattr(run, "ENTRIES", entries)
    monkeypatch.setattr(run, "DOCS", tmp_path)
    monkeypatch.setattr("benches.machine.decode_us", lambda: 1.5)
    (tmp_path / "benchmarks.md").write_text(f"before\n{BEGIN}old\n{END}after\n")
    return tmp_path


def test_figures_are_written_between_the_marks_and_kept_until_the_next_run(docs: Path) -> None:
    main("met", runs=2)
    main("missed", runs=1, seconds=3)
    page = (docs / "benchmarks.md").read_text()
    assert page.startswith(f"before\n{BEGIN}")
    assert page.endswith(f"{END}after\n")
    assert "old" not in page
    assert "| p99_ms | 12.5 | 12.5 | 12.5 | ≤ 20 | met |" in page
    assert "| p99_ms | 12.5 | 12.5 | 12.5 | ≥ 20 | **missed** |" in page
    kept = json.loads((docs / "benchmarks.json").read_text())["entries"]
    assert kept["met"]["runs"] == [{"p99_ms": 12.5, "seconds": 60}] * 2
    assert kept["missed"]["median"] == {"p99_ms": 12.5, "seconds": 3}


def test_a_run_that_is_not_to_be_written_changes_nothing(docs: Path) -> None:
    main("met", runs=1, write=False)
    assert "old" in (docs / "benchmarks.md").read_text()
    assert not (docs / "benchmarks.json").exists()


@pytest.mark.usefixtures("docs")
def test_an_unknown_name_is_refused_with_those_there_are() -> None:
    with pytest.raises(SettingError, match="'slow' is no benchmark; there are met, missed"):
        main("slow")


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (0, "0"),
        (20, "20"),
        (0.736, "0.736"),
        (12.34, "12.3"),
        (999.96, "1,000.0"),
        (4_900_000.4, "4,900,000"),
    ],
)
def test_numbers_have_the_places_that_say_something(value: float, words: str) -> None:
    assert number(value) == words
