"""Draw a chart as SVG: bars, or ranges from a median to a 99th percentile, each with its figure beside it.

An SVG is readable in light and dark, between which its style sheet chooses, and on a page of 360 pixels. Its
text says everything: colours only point out which server is ours. The same chart always has the same bytes.
"""

from __future__ import annotations

import math
import textwrap
from dataclasses import dataclass
from typing import Final, Literal
from xml.etree.ElementTree import Element, SubElement, indent, tostring

WIDTH: Final = 400  # of the drawing, in units; a unit is a pixel or a little more
SHOWN_WIDTH: Final = 480  # pixels, where the page has them
MARGIN: Final = 14
LINE: Final = 20  # from one row to the next
GAP: Final = 6  # between a mark and its text
CHARACTER: Final = 6.8  # the width of a character of text, in the wider fonts
LETTERS: Final = int((WIDTH - 2 * MARGIN) / CHARACTER)  # in a line

STYLE: Final = """
text{font:12px system-ui,-apple-system,"Segoe UI",Roboto,"Helvetica Neue",Arial,sans-serif;fill:#1f2328;
stroke:#fff;stroke-width:3px;paint-order:stroke}
.title{font-size:15px;font-weight:600}.group{font-weight:600}.muted{fill:#59636e}.words{font-style:italic}
.card{fill:#fff;stroke:#d1d9e0}.grid{stroke:#d1d9e0}.other{fill:#818b98;stroke:#818b98}.ours{fill:#0072b2;stroke:#0072b2}
.range{stroke-width:3}.ring{fill:#fff;stroke-width:2}
@media(prefers-color-scheme:dark){text{fill:#e6edf3;stroke:#161b22}.muted{fill:#9ba5b0}.card{fill:#161b22;stroke:#3d444d}
.grid{stroke:#3d444d}.other{fill:#7d8590;stroke:#7d8590}.ours{fill:#56b4e9;stroke:#56b4e9}.ring{fill:#161b22}}
"""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a chart: a bar for one mark, a range for two, and only words for none."""

    label: str
    marks: tuple[float, ...]
    text: str
    ours: bool = False


@dataclass(frozen=True, slots=True)
class Group:
    """Rows that are compared with each other."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Chart:
    """A chart. Bars have one scale for all groups, or one for each group; ranges have a logarithmic scale."""

    title: str
    subtitle: str
    groups: tuple[Group, ...]
    scale: Literal["shared", "own", "log"]

    @property
    def rows(self) -> list[Row]:
        """All rows."""
        return [row for group in self.groups for row in group.rows]

    @property
    def marks(self) -> list[float]:
        """All marks."""
        return [mark for row in self.rows for mark in row.marks]


@dataclass(frozen=True, slots=True)
class Layout:
    """Where things are in a chart, in units."""

    chart: Chart
    left: float  # where bars begin
    length: float  # from there to the largest mark

    def x(self, mark: float, group: Group) -> float:
        """Return where a mark ends."""
        return self.left + self.length * share(mark, group, self.chart)


def share(mark: float, group: Group, chart: Chart) -> float:
    """Return how far along its scale a mark is, from 0 to 1."""
    if chart.scale == "log":
        low, high = log_ends(chart)
        return math.log(mark / low) / math.log(high / low)
    compared = chart.marks if chart.scale == "shared" else [one for row in group.rows for one in row.marks]
    return mark / max(compared)


def log_ends(chart: Chart) -> tuple[float, float]:
    """Return the ends of a log scale."""
    return min(chart.marks) * 0.7, max(chart.marks)


def width(text: str) -> float:
    """Return the width of a text at most."""
    return len(text) * CHARACTER


def layout(chart: Chart) -> Layout:
    """Make bars as long as the texts behind them allow."""
    left = MARGIN + max(width(row.label) for row in chart.rows)
    left += GAP if left > MARGIN else 0
    room = WIDTH - MARGIN - left - 2 * GAP
    lengths = [
        (room - width(row.text)) / share(row.marks[-1], group, chart)
        for group in chart.groups
        for row in group.rows
        if row.marks
    ]
    return Layout(chart, left, min(lengths))


def draw(chart: Chart) -> str:
    """Return a chart as an SVG document."""
    root = Element(
        "svg", {"xmlns": "http://www.w3.org/2000/svg", "role": "img", "aria-labelledby": "title desc"}
    )
    SubElement(root, "title", id="title").text = chart.title
    SubElement(root, "desc", id="desc").text = in_words(chart)
    SubElement(root, "style").text = STYLE
    card = SubElement(root, "rect", {"class": "card", "x": "0.5", "y": "0.5", "rx": "6"})
    bottom = body(root, layout(chart), heading(root, chart))
    card.attrib |= {"width": f"{WIDTH - 1}", "height": f"{bottom - 1}"}
    root.attrib |= {
        "viewBox": f"0 0 {WIDTH} {bottom}",
        "width": f"{SHOWN_WIDTH}",
        "height": f"{bottom * SHOWN_WIDTH / WIDTH:.0f}",
    }
    indent(root, " ")
    return tostring(root, encoding="unicode") + "\n"


def in_words(chart: Chart) -> str:
    """Return what a chart shows, for screen readers."""
    groups = [
        f"{group.title}: {'; '.join(f'{row.label} {row.text}'.strip() for row in group.rows)}."
        for group in chart.groups
    ]
    return " ".join([chart.subtitle, *groups])


def heading(root: Element, chart: Chart) -> int:
    """Draw the title, what is shown, and for ranges what their ends are. Return where it ends."""
    write(root, MARGIN, 26, chart.title, "title")
    y = 26
    for line in textwrap.wrap(chart.subtitle, LETTERS):
        y += 17
        write(root, MARGIN, y, line, "muted")
    if chart.scale == "log":
        y += LINE
        ends(root, MARGIN + 5, MARGIN + 125, y - 4, "other")
        write(root, MARGIN + 15, y, "median (p50)", "muted")
        write(root, MARGIN + 135, y, "99th percentile (p99)", "muted")
    return y


def body(root: Element, place: Layout, y: int) -> int:
    """Draw the groups from a line on. Return the height of the chart."""
    grid = SubElement(root, "g")
    top = y + 8
    for group in place.chart.groups:
        y += 28
        write(root, MARGIN, y, group.title, "group")
        for row in group.rows:
            y += LINE
            draw_row(root, place, group, row, y)
    if place.chart.scale == "log":
        y += LINE
        gridlines(grid, place, top, y)
    return y + MARGIN


def gridlines(root: Element, place: Layout, top: int, y: int) -> None:
    """Draw a line at each power of ten, with its value below."""
    low, high = log_ends(place.chart)
    for power in range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1):
        x = f"{place.x(10.0**power, place.chart.groups[0]):.1f}"
        SubElement(root, "line", {"class": "grid", "x1": x, "x2": x, "y1": f"{top}", "y2": f"{y - 13}"})
        write(root, float(x), y, f"{10.0**power:g} ms", "muted", anchor="middle")


def draw_row(root: Element, place: Layout, group: Group, row: Row, y: int) -> None:
    """Draw a label, a bar or range, and its text, on one base line."""
    if row.label:
        write(root, MARGIN, y, row.label, "" if row.ours else "muted")
    xs = [place.x(mark, group) for mark in row.marks]
    kind = "ours" if row.ours else "other"
    if len(xs) == 1:
        box = {
            "x": f"{place.left:.1f}",
            "y": f"{y - 10}",
            "width": f"{xs[0] - place.left:.1f}",
            "height": "12",
        }
        SubElement(root, "rect", {"class": kind, **box})
    elif xs:
        line = {"x1": f"{xs[0]:.1f}", "x2": f"{xs[1]:.1f}", "y1": f"{y - 4}", "y2": f"{y - 4}"}
        SubElement(root, "line", {"class": f"{kind} range", **line})
        ends(root, xs[0], xs[1], y - 4, kind)
    after = xs[-1] + GAP * len(xs) if xs else place.left
    write(root, after, y, row.text, "" if xs else "muted words")


def ends(root: Element, low: float, high: float, y: int, kind: str) -> None:
    """Draw the two ends of a range: a dot and a ring."""
    SubElement(root, "circle", {"class": kind, "cx": f"{low:.1f}", "cy": f"{y}", "r": "4"})
    SubElement(root, "circle", {"class": f"{kind} ring", "cx": f"{high:.1f}", "cy": f"{y}", "r": "4"})


def write(root: Element, x: float, y: int, text: str, kind: str, *, anchor: str = "start") -> None:
    """Draw a text."""
    attributes = {"class": kind} if kind else {}
    attributes |= {"x": f"{x:.1f}", "y": f"{y}"} | ({} if anchor == "start" else {"text-anchor": anchor})
    SubElement(root, "text", attributes).text = text
