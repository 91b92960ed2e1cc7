"""Run benchmarks several times, and write their figures to docs/benchmarks.md and docs/benchmarks.json.

    python -m benches [--runs N] [--seconds S] [ingest fan5000 log …]     (no name: all)

The JSON has every run. The tables in the Markdown are made from it; they stand between two marks, and the
text around them is not changed. Entries that are not run keep their figures.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
from benches import (
    bench_log,
    bench_simulator,
    compression,
    empty,
    fanout,
    handshake,
    ingest,
    ingest_full,
    machine,
    merge,
    replay,
    verify,
    written,
)
from benches.limits import Limit, number
from cyclopts import App, Parameter

from jetstream.errors import SettingError

RUNS: Final = 3
DOCS: Final = Path(__file__).parent.parent / "docs"
BEGIN: Final = "<!-- figures, written by make bench -->\n"
END: Final = "<!-- end of figures -->\n"
_NEW: Final = f"# Benchmarks\n\n{BEGIN}{END}"

app = App(name="benches", help="Run benchmarks, and write docs/benchmarks.md and docs/benchmarks.json.")


@dataclass(frozen=True, slots=True)
class Entry:
    """One benchmark."""

    title: str
    run: Callable[..., dict[str, float]]  # runs it once
    limits: tuple[Limit, ...] = ()
    timed: bool = False  # whether `run` takes `seconds`


@dataclass(frozen=True, slots=True)
class Bench:
    """A set of benchmarks, and the directory in which their figures are kept."""

    entries: Mapping[str, Entry]
    docs: Path
    decode_us: Callable[[], float] = machine.decode_us  # how fast the machine is at the moment

    def run(self, names: Sequence[str], runs: int, seconds: float | None, *, write: bool) -> None:
        """Run entries by name, or all. Raises SettingError for an unknown name."""
        for name in names:
            if name not in self.entries:
                raise SettingError("ARGS", name, f"is not a benchmark; there are {', '.join(self.entries)}")
        kept = self._read()
        kept["machine"] = machine.describe()
        for name in names or self.entries:
            entry = self.entries[name]
            kept["entries"][name] = result = self._repeat(entry, runs, seconds)
            print("\n".join(_table(entry, result)), flush=True)
            if write:
                self._write(kept)

    def _repeat(self, entry: Entry, runs: int, seconds: float | None) -> dict[str, Any]:
        """Run an entry several times, each time in a process of its own."""
        options = {"seconds": seconds} if entry.timed else {}
        figures: list[dict[str, float]] = []
        decodes_us = [self.decode_us()]
        spawn = multiprocessing.get_context("spawn")
        for _ in range(runs):
            with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
                figures.append(pool.submit(entry.run, **options).result())
            decodes_us.append(self.decode_us())
        return {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "decode_us": [min(decodes_us), max(decodes_us)],
            "median": {name: statistics.median(run[name] for run in figures) for name in figures[0]},
            "runs": figures,
        }

    def _page(self, kept: dict[str, Any]) -> str:
        """Return the part of the page that is made from figures."""
        lines = ["| | |", "|---|---|"]
        lines += [f"| {name} | {value} |" for name, value in kept["machine"].items()]
        for name, entry in self.entries.items():
            if name not in kept["entries"]:
                continue
            result = kept["entries"][name]
            speed = "decoding a frame's CBOR took {:.1f} to {:.1f} µs".format(*result["decode_us"])
            summary = f"{entry.title}. {len(result['runs'])} runs on {result['at'][:10]}; {speed}."
            lines += ["", f"### {name}", "", summary]
            lines += ["", *_table(entry, result)]
        return "\n".join(lines) + "\n"

    def _read(self) -> dict[str, Any]:
        """Read the figures that are kept, without those of benchmarks that have changed."""
        file = self.docs / "benchmarks.json"
        kept: dict[str, Any] = orjson.loads(file.read_bytes()) if file.exists() else {}
        entries = kept.get("entries", {})
        return {
            "machine": kept.get("machine", {}),
            "entries": {name: result for name, result in entries.items() if self._is_current(name, result)},
        }

    def _is_current(self, name: str, result: dict[str, Any]) -> bool:
        """Return whether figures include all that are compared with limits today."""
        entry = self.entries.get(name)
        return entry is not None and all(limit.figure in result["median"] for limit in entry.limits)

    def _write(self, kept: dict[str, Any]) -> None:
        data = orjson.dumps(kept, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
        (self.docs / "benchmarks.json").write_bytes(data)
        page = self.docs / "benchmarks.md"
        text = page.read_text() if page.exists() else _NEW
        before, _, rest = text.partition(BEGIN)
        after = rest.partition(END)[2]
        page.write_text(before + BEGIN + self._page(kept) + END + after)


def _entries() -> dict[str, Entry]:
    entries = {"ingest": Entry(ingest.TITLE, ingest.main, ingest.LIMITS)}
    entries["ingest_full"] = Entry(ingest_full.TITLE, ingest_full.main, ingest_full.LIMITS)
    entries["merge3"] = Entry(merge.TITLE, merge.main, merge.LIMITS)
    for name, scenario in fanout.SCENARIOS.items():
        entries[name] = Entry(scenario.title, partial(fanout.run, name), scenario.limits, timed=True)
    entries["compression"] = Entry(compression.TITLE, compression.main, compression.LIMITS)
    entries["verify"] = Entry(verify.TITLE, verify.main, verify.LIMITS)
    entries["replay"] = Entry(replay.TITLE, replay.main, replay.LIMITS)
    entries["handshake"] = Entry(handshake.TITLE, handshake.main, handshake.LIMITS)
    entries["empty"] = Entry(empty.TITLE, empty.main, empty.LIMITS)
    for rate in written.SECONDS:
        run, limits = partial(written.main, rate), written.LIMITS[rate]
        entries[f"written{rate}"] = Entry(written.TITLE.format(rate), run, limits, timed=True)
    entries["log"] = Entry("The log by itself: a million events", bench_log.main, bench_log.LIMITS)
    simulator = tuple(Limit(name, value, least=True) for name, value in bench_simulator.LIMITS.items())
    entries["simulator"] = Entry("The simulator", bench_simulator.main, simulator)
    return entries


ENTRIES: Final = _entries()


@app.default
def main(
    *names: str,
    runs: Annotated[int, Parameter(help="Runs of each; the median counts.")] = RUNS,
    seconds: Annotated[
        float | None, Parameter(help="Seconds to measure fan-out. Default: each its own.")
    ] = None,
    write: Annotated[
        bool, Parameter(help="Whether to write docs/benchmarks.md and docs/benchmarks.json.")
    ] = True,
) -> None:
    """Run benchmarks by name, or all."""
    Bench(ENTRIES, DOCS).run(names, runs, seconds, write=write)


def _table(entry: Entry, result: dict[str, Any]) -> list[str]:
    """Return the figures of an entry as a table; those with a limit come first."""
    limits = {limit.figure: limit for limit in entry.limits}
    lines = ["| figure | median | least | most | target | |", "|---|---:|---:|---:|---:|---|"]
    for name in [*limits, *(name for name in result["median"] if name not in limits)]:
        values = [run[name] for run in result["runs"]]
        limit = limits.get(name)
        met = "" if limit is None else "met" if limit.holds(result["median"]) else "**missed**"
        cells = [name, number(result["median"][name]), number(min(values)), number(max(values))]
        lines.append(f"| {' | '.join(cells)} | {limit or ''} | {met} |")
    return lines


def run() -> None:
    """Run the command line."""
    try:
        app()
    except SettingError as error:
        print(f"benches: {error}", file=sys.stderr)
        sys.exit(2)
