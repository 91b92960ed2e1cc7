"""Run benchmarks, three times each or more, and write what they came to into docs/benchmarks.md and .json.

    python -m benches [--runs N] [--seconds S] [ingest fan5000 log …]     (no name: all of them)

The JSON holds every run; the tables in the Markdown are made from it, between two marks, and the words around
them are left as they are. An entry that is not run keeps what it had.
"""

from __future__ import annotations

import multiprocessing
import statistics
import sys
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Final

import orjson
from benches import bench_log, bench_simulator, fanout, ingest, machine
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
    """One benchmark: what it measures, how to run it once, and what its figures are held against."""

    title: str
    run: Callable[..., dict[str, float]]
    limits: tuple[Limit, ...] = ()
    timed: bool = False  # takes `seconds`


def _entries() -> dict[str, Entry]:
    entries = {"ingest": Entry(ingest.TITLE, ingest.main, ingest.LIMITS)}
    for name, scenario in fanout.SCENARIOS.items():
        entries[name] = Entry(scenario.title, partial(fanout.run, name), scenario.limits, timed=True)
    entries["log"] = Entry("The log by itself: a million events", bench_log.main, bench_log.LIMITS)
    simulator = tuple(Limit(name, value, least=True) for name, value in bench_simulator.LIMITS.items())
    entries["simulator"] = Entry("The simulator", bench_simulator.main, simulator)
    return entries


ENTRIES: Final = _entries()


@app.default
def main(
    *names: str,
    runs: Annotated[int, Parameter(help="How often to run each; the median is taken.")] = RUNS,
    seconds: Annotated[
        float | None, Parameter(help="How long to measure fan-out; else each its own.")
    ] = None,
    write: Annotated[bool, Parameter(help="Whether to write docs/benchmarks.md and .json.")] = True,
) -> None:
    """Run entries by name, or all."""
    for name in names:
        if name not in ENTRIES:
            raise SettingError("ARGS", name, f"is no benchmark; there are {', '.join(ENTRIES)}")
    kept = _read()
    kept["machine"] = machine.describe()
    for name in names or ENTRIES:
        entry = ENTRIES[name]
        kept["entries"][name] = result = _repeat(entry, runs, seconds)
        print("\n".join(_table(entry, result)), flush=True)
        if write:
            _write(kept)


def _repeat(entry: Entry, runs: int, seconds: float | None) -> dict[str, Any]:
    """Run an entry several times, each time in a process of its own."""
    options = {"seconds": seconds} if entry.timed else {}
    figures: list[dict[str, float]] = []
    decodes_us = [machine.decode_us()]
    spawn = multiprocessing.get_context("spawn")
    for _ in range(runs):
        with ProcessPoolExecutor(max_workers=1, mp_context=spawn) as pool:
            figures.append(pool.submit(entry.run, **options).result())
        decodes_us.append(machine.decode_us())
    return {
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
        "decode_us": [min(decodes_us), max(decodes_us)],
        "median": {name: statistics.median(run[name] for run in figures) for name in figures[0]},
        "runs": figures,
    }


def _table(entry: Entry, result: dict[str, Any]) -> list[str]:
    """Write an entry's figures as a table; those with a limit stand first."""
    limits = {limit.figure: limit for limit in entry.limits}
    lines = ["| figure | median | least | most | target | |", "|---|---:|---:|---:|---:|---|"]
    for name in [*limits, *(name for name in result["median"] if name not in limits)]:
        values = [run[name] for run in result["runs"]]
        limit = limits.get(name)
        met = "" if limit is None else "met" if limit.holds(result["median"]) else "**missed**"
        cells = [name, number(result["median"][name]), number(min(values)), number(max(values))]
        lines.append(f"| {' | '.join(cells)} | {limit or ''} | {met} |")
    return lines


def _page(kept: dict[str, Any]) -> str:
    """Write the part of the page that is made from figures."""
    lines = ["| | |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in kept["machine"].items()]
    for name, entry in ENTRIES.items():
        if name not in kept["entries"]:
            continue
        result = kept["entries"][name]
        slow = "decoding a frame's CBOR took {:.1f} to {:.1f} µs".format(*result["decode_us"])
        words = f"{entry.title}. {len(result['runs'])} runs on {result['at'][:10]}; {slow}."
        lines += ["", f"### {name}", "", words]
        lines += ["", *_table(entry, result)]
    return "\n".join(lines) + "\n"


def _read() -> dict[str, Any]:
    file = DOCS / "benchmarks.json"
    kept: dict[str, Any] = orjson.loads(file.read_bytes()) if file.exists() else {}
    entries = kept.get("entries", {})
    return {
        "machine": kept.get("machine", {}),
        "entries": {name: result for name, result in entries.items() if _is_current(name, result)},
    }


def _is_current(name: str, result: dict[str, Any]) -> bool:
    """Tell whether kept figures are of what is held against limits today."""
    return name in ENTRIES and all(limit.figure in result["median"] for limit in ENTRIES[name].limits)


def _write(kept: dict[str, Any]) -> None:
    data = orjson.dumps(kept, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    (DOCS / "benchmarks.json").write_bytes(data)
    page = DOCS / "benchmarks.md"
    text = page.read_text() if page.exists() else _NEW
    before, _, rest = text.partition(BEGIN)
    after = rest.partition(END)[2]
    page.write_text(before + BEGIN + _page(kept) + END + after)


def run() -> None:
    """Run the command line."""
    try:
        app()
    except SettingError as error:
        print(f"benches: {error}", file=sys.stderr)
        sys.exit(2)
