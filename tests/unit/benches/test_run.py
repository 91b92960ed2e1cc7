"""What `make bench` writes: the benchmarks' own page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from benches.limits import Limit, number
from benches.run import BEGIN, END, Bench, Entry
from tests.unit.benches.entry import figures

from jetstream.errors import SettingError


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    entries = {
        "met": Entry("Within", figures, (Limit("p99_ms", 20),)),
        "missed": Entry("Beyond", figures, (Limit("p99_ms", 20, least=True),), timed=True),
    }
    (tmp_path / "benchmarks.md").write_text(f"before\n{BEGIN}old\n{END}after\n")
    return Bench(entries, tmp_path, decode_us=lambda: 1.5)


def test_figures_are_written_between_the_marks_and_kept_until_the_next_run(bench: Bench) -> None:
    bench.run(["met"], 2, None, write=True)
    bench.run(["missed"], 1, 3, write=True)
    page = (bench.docs / "benchmarks.md").read_text()
    assert page.startswith(f"before\n{BEGIN}")
    assert page.endswith(f"{END}after\n")
    assert "old" not in page
    assert "| p99_ms | 12.5 | 12.5 | 12.5 | ≤ 20 | met |" in page
    assert "| p99_ms | 12.5 | 12.5 | 12.5 | ≥ 20 | **missed** |" in page
    kept = json.loads((bench.docs / "benchmarks.json").read_text())["entries"]
    assert kept["met"]["runs"] == [{"p99_ms": 12.5, "seconds": 60}] * 2
    assert kept["missed"]["median"] == {"p99_ms": 12.5, "seconds": 3}


def test_a_run_that_is_not_to_be_written_changes_nothing(bench: Bench) -> None:
    bench.run(["met"], 1, None, write=False)
    assert "old" in (bench.docs / "benchmarks.md").read_text()
    assert not (bench.docs / "benchmarks.json").exists()


def test_an_unknown_name_is_refused_with_those_there_are(bench: Bench) -> None:
    with pytest.raises(SettingError, match="'slow' is not a benchmark; there are met, missed"):
        bench.run(["slow"], 1, None, write=True)


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
