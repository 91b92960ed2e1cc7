"""Make the charts of the documentation, docs/images/*.svg, and the table of Go servers in docs/benchmarks.md.

They show docs/benchmarks.json, which `make bench` writes, and docs/peers.json, which has figures of Go
servers and ours of one run. Run it with `make charts` after a change of either. A test compares the files
with what is made today.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from scripts.chart import Chart, Group, Row, draw

DOCS: Final = Path(__file__).resolve().parents[1] / "docs"
BEGIN: Final = "<!-- beside the Go servers, written by make charts -->\n"
END: Final = "<!-- end of the Go servers -->\n"

BEHIND: Final = "Behind: took in less than 97 % of the events."

Values = list[float] | float | None
Figure = dict[str, Any]

# Charts of peers.json: each has groups, by the name of their figure.
MESSAGES: Final = {
    "cores_100_420": "100 subscribers, 420 events/s",
    "cores_100_2000": "100 subscribers, 2,000 events/s",
    "cpu_1000_420": "1,000 subscribers, 420 events/s",
    "cpu_1000_2000": "1,000 subscribers, 2,000 events/s",
}
READERS: Final = {
    "ingest": "From the relay to the log and one reader",
    "replay": "Replay of the log to one reader",
    "replay10": "Replay of the log to ten readers, together",
}
DELAYS: Final = {
    "delay_100_420": "100 subscribers, 420 events/s",
    "delay_100_2000": "100 subscribers, 2,000 events/s",
    "delay_800_420": "800 subscribers, 420 events/s",
    "delay_dids": "2,000 with 20 DIDs each, 2,000 events/s",
}
COSTS: Final = {
    "empty": "Memory of an empty server, MiB",
    "ingest_memory": "Peak memory while events come in at full speed, MiB",
    "idle_subscriber": "Memory of an idle subscriber, KiB",
    "handshake": "CPU time of a handshake, ms",
    "disk": "Bytes on disk of an event",
}
# The chart of benchmarks.json.
SCENARIOS: Final = {
    "lat10": "10 subscribers, 500 events/s",
    "dids10000": "10,000 with 20 DIDs each, 2,000 events/s",
    "lat800": "800 subscribers, 420 events/s",
    "lat1000": "1,000 subscribers, 2,000 events/s",
    "slow100": "1,000 beside 100 slow ones, 1,000 events/s",
    "collections2000": "2,000 with collection filters, 1,000 events/s",
    "fan5000": "5,000 subscribers, 1,000 events/s",
}


def charts(peers: dict[str, Any], benchmarks: dict[str, Any]) -> dict[str, Chart]:
    """Return all charts by the name of their file."""
    return {
        "cpu-of-a-message.svg": Chart(
            "CPU time of a message",
            f"Microseconds of CPU of the server for each message delivered. Shorter is better. {BEHIND}",
            tuple(beside(peers, MESSAGES)),
            "shared",
        ),
        "few-readers.svg": Chart(
            "Events a second to few readers",
            "Longer is better. Each group has a scale of its own.",
            tuple(beside(peers, READERS)),
            "own",
        ),
        "delays-beside-go.svg": Chart(
            "Delay from the relay to the reader",
            f"Milliseconds, p50 / p99, on a logarithmic scale. Further left is better. {BEHIND}",
            tuple(beside(peers, DELAYS)),
            "log",
        ),
        "costs.svg": Chart(
            "Memory, handshakes and disk",
            "Shorter is better. Each group has a scale of its own.",
            tuple(beside(peers, COSTS)),
            "own",
        ),
        "delays.svg": Chart(
            "Delay of this server, by scenario",
            "Milliseconds, p50 / p99, on a logarithmic scale, from the relay to the reader.",
            tuple(scenarios(benchmarks)),
            "log",
        ),
    }


def beside(peers: dict[str, Any], titles: dict[str, str]) -> Iterator[Group]:
    """Return groups with a row for each server."""
    for figure, title in titles.items():
        yield Group(title, tuple(rows(peers["servers"], per_message(peers["figures"][figure]))))


def rows(servers: list[dict[str, str]], figure: Figure) -> Iterator[Row]:
    """Return the figure of each server. One that did not keep up has words in place of marks."""
    for index, server in enumerate(servers):
        behind, note = said(figure, "behind", index), said(figure, "notes", index)
        marks = () if behind else numbers(figure["values"][index])
        yield Row(
            server["name"],
            marks,
            behind or ", ".join([spelled(marks), *filter(None, [note])]),
            ours=index == 0,
        )


def scenarios(benchmarks: dict[str, Any]) -> Iterator[Group]:
    """Return our delays in each scenario, from the time at which the relay was due to send."""
    for name, title in SCENARIOS.items():
        median = benchmarks["entries"][name]["median"]
        marks = tuple(rounded(median[f"relay_{part}_ms"]) for part in ("p50", "p99"))
        yield Group(title, (Row("", marks, spelled(marks), ours=True),))


def per_message(figure: Figure) -> Figure:
    """Return µs a message for a figure in cores that says how many were sent, and others unchanged."""
    rate = figure.get("messages_per_s")
    if rate is None:
        return figure
    values = [None if cores is None else rounded(cores * 1e6 / rate) for cores in figure["values"]]
    return {**figure, "unit": "µs", "values": values}


def rounded(value: float) -> float:
    """Return two significant digits of a number."""
    return float(f"{value:.2g}")


def numbers(values: Values) -> tuple[float, ...]:
    """Return a figure as numbers: none, one, or p50 and p99."""
    return tuple(values) if isinstance(values, list) else () if values is None else (values,)


def said(figure: Figure, key: str, index: int) -> str | None:
    """Return what is said of the figure of one server, if anything."""
    words: str | None = figure[key][index] if key in figure else None
    return words


def spelled(marks: tuple[float, ...]) -> str:
    """Return numbers as they are written in tables."""
    return " / ".join(f"{int(mark):,}" if mark >= 10 and mark == int(mark) else f"{mark:,}" for mark in marks)


def table(peers: dict[str, Any]) -> str:
    """Return all figures of peers.json as a table. The best of each is bold, among servers that kept up."""
    servers = [server["name"] for server in peers["servers"]]
    lines = [f"| what | {' | '.join(servers)} |", "|---|" + "---:|" * len(servers)]
    lines += [
        f"| {figure['what']}, {figure['unit']} | {' | '.join(cells(figure))} |"
        for figure in peers["figures"].values()
    ]
    return "\n".join(lines) + "\n"


def cells(figure: Figure) -> Iterator[str]:
    """Return the figure of each server, with what is said of it."""
    bests = best(figure)
    for index, values in enumerate(figure["values"]):
        words = said(figure, "behind", index) or said(figure, "notes", index)
        marks = [
            f"**{spelled((mark,))}**" if not words and mark in bests[place : place + 1] else spelled((mark,))
            for place, mark in enumerate(numbers(values))
        ]
        yield ", ".join(filter(None, [" / ".join(marks), words]))


def best(figure: Figure) -> list[float]:
    """Return the best numbers of a figure among servers of which nothing is said."""
    choose = max if figure["best"] == "most" else min
    kept_up = [
        numbers(values)
        for index, values in enumerate(figure["values"])
        if not said(figure, "behind", index) and not said(figure, "notes", index)
    ]
    return [choose(column) for column in zip(*kept_up, strict=True)]


def page(text: str, peers: dict[str, Any]) -> str:
    """Return docs/benchmarks.md with the table of today."""
    before, _, rest = text.partition(BEGIN)
    return before + BEGIN + table(peers) + END + rest.partition(END)[2]


def made(docs: Path) -> dict[Path, str]:
    """Return each file that is made from the figures in a folder, with its content."""
    peers, benchmarks = (json.loads((docs / name).read_text()) for name in ("peers.json", "benchmarks.json"))
    images = {docs / "images" / name: draw(chart) for name, chart in charts(peers, benchmarks).items()}
    markdown = docs / "benchmarks.md"
    return images | {markdown: page(markdown.read_text(), peers)}


def main(docs: Path = DOCS) -> None:
    """Write all files."""
    (docs / "images").mkdir(exist_ok=True)
    for path, content in made(docs).items():
        path.write_text(content)


if __name__ == "__main__":
    main()
