"""A chart is well-formed, accessible, and as wide as it says, whatever is in it."""

from __future__ import annotations

from xml.etree.ElementTree import Element, fromstring

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts.chart import CHARACTER, MARGIN, WIDTH, Chart, Group, Row, draw

SVG = "{http://www.w3.org/2000/svg}"
ROW = st.builds(
    Row,
    st.text("abcXYZ <&>é", max_size=14),
    st.lists(st.floats(0.01, 1e7), min_size=1, max_size=2).map(lambda marks: tuple(sorted(marks))),
    st.text("0123456789./ <&", max_size=20),
    st.booleans(),
)
GROUP = st.builds(Group, st.text("abc &", max_size=40), st.lists(ROW, min_size=1, max_size=4).map(tuple))
GROUPS = st.lists(GROUP, min_size=1, max_size=3).map(tuple)


def chart(*groups: Group, scale: str = "own") -> Chart:
    return Chart("Speed", "Longer is better.", groups, scale)  # type: ignore[arg-type]


def drawn(one: Chart) -> Element:
    return fromstring(draw(one))


def bars(svg: Element) -> list[float]:
    """Return the lengths of all bars."""
    return [float(rect.attrib["width"]) for rect in svg.iter(f"{SVG}rect") if rect.get("class") != "card"]


def texts(svg: Element) -> list[str]:
    return [text.text or "" for text in svg.iter(f"{SVG}text")]


CARS = Group("cars", (Row("slow", (10.0,), "10"), Row("fast", (40.0,), "40", ours=True)))
SHIPS = Group("ships", (Row("slow", (1.0,), "1"), Row("fast", (2.0,), "2")))


@given(GROUPS)
def test_nothing_is_outside_of_the_card(groups: tuple[Group, ...]) -> None:
    svg = drawn(chart(*groups))
    height = float(svg.attrib["viewBox"].split()[3])
    right_ends = [
        (text, float(text.attrib["x"]) + len(text.text or "") * CHARACTER) for text in svg.iter(f"{SVG}text")
    ]
    right_ends += [
        (rect, float(rect.attrib["x"]) + float(rect.attrib["width"])) for rect in svg.iter(f"{SVG}rect")
    ]
    assert all(
        right <= WIDTH - MARGIN + 1 for one, right in right_ends if one.get("class") not in {"card", "title"}
    )
    assert all(0 <= float(one.attrib["y"]) <= height for one, _ in right_ends)


@given(GROUPS, st.sampled_from(["own", "shared", "log"]))
def test_the_same_chart_has_the_same_bytes_and_all_its_texts(groups: tuple[Group, ...], scale: str) -> None:
    one = chart(*groups, scale=scale)
    assert draw(one) == draw(one)
    written = texts(drawn(one))
    assert all(row.text in written for row in one.rows)


def test_bars_are_as_long_as_their_marks_within_a_group() -> None:
    cars = bars(drawn(chart(CARS, SHIPS)))
    assert cars[1] == pytest.approx(4 * cars[0], abs=0.2)
    assert cars[3] == pytest.approx(2 * cars[2], abs=0.2)
    assert cars[3] == pytest.approx(cars[1])


def test_bars_of_a_shared_scale_are_as_long_as_their_marks() -> None:
    both = bars(drawn(chart(CARS, SHIPS, scale="shared")))
    assert both[1] == pytest.approx(20 * both[3], abs=2)


def test_a_row_without_a_mark_has_words_only() -> None:
    svg = drawn(chart(Group("cars", (*CARS.rows, Row("broken", (), "did not start")))))
    assert len(bars(svg)) == 2
    assert "did not start" in texts(svg)


def test_ranges_are_on_a_logarithmic_scale_with_a_line_at_each_power_of_ten() -> None:
    rows = (Row("a", (0.5, 5.0), "0.5 / 5"), Row("b", (5.0, 50.0), "5 / 50"))
    svg = drawn(chart(Group("delays", rows), scale="log"))
    ranges = [line for line in svg.iter(f"{SVG}line") if line.get("class") != "grid"]
    lengths = [float(line.attrib["x2"]) - float(line.attrib["x1"]) for line in ranges]
    assert lengths[0] == pytest.approx(lengths[1], abs=0.2)
    assert [text for text in texts(svg) if text.endswith(" ms")] == ["1 ms", "10 ms"]


def test_it_says_everything_to_screen_readers() -> None:
    svg = drawn(chart(CARS))
    assert svg.get("role") == "img"
    named = {one.get("id"): one.text for one in svg}
    label, description = (named[name] for name in svg.attrib["aria-labelledby"].split())
    assert label == "Speed"
    assert description == "Longer is better. cars: slow 10; fast 40."


def test_it_has_colours_for_dark_pages_and_loads_nothing() -> None:
    text = draw(chart(CARS))
    assert "prefers-color-scheme:dark" in text
    assert "url(" not in text
    assert "href" not in text
