"""Charts and table are what is made from the figures, and say of a server that was behind that it was."""

from __future__ import annotations

import json
from typing import Any
from xml.etree.ElementTree import fromstring

import pytest
from scripts.chart import CHARACTER, MARGIN, WIDTH, Row
from scripts.make_charts import DOCS, best, cells, charts, made, page, per_message, rows, spelled, table

SERVERS = [{"name": "ours"}, {"name": "theirs"}]
PEERS: dict[str, Any] = json.loads((DOCS / "peers.json").read_text())

SHOWN = charts(PEERS, json.loads((DOCS / "benchmarks.json").read_text()))


def figure(*values: Any, best: str = "least", **more: Any) -> dict[str, Any]:
    return {"what": "wait", "unit": "ms", "best": best, "values": list(values), **more}


class TestFiles:
    @pytest.mark.parametrize("path", made(DOCS), ids=lambda path: path.name)
    def test_each_is_what_is_made_today(self, path: Any) -> None:
        """Else run `make charts`: the script, docs/benchmarks.json or docs/peers.json has changed."""
        assert path.read_text() == made(DOCS)[path]

    def test_there_is_no_other_chart_of_a_former_day(self) -> None:
        drawn = {
            path.name for path in (DOCS / "images").glob("*.svg") if "aria-labelledby" in path.read_text()
        }
        assert drawn == {path.name for path in made(DOCS) if path.suffix == ".svg"}

    @pytest.mark.parametrize(
        "path", [path for path in made(DOCS) if path.suffix == ".svg"], ids=lambda path: path.name
    )
    def test_each_chart_is_xml_and_on_the_page(self, path: Any) -> None:
        assert fromstring(path.read_text()).tag == "{http://www.w3.org/2000/svg}svg"
        assert f"](images/{path.name})" in (DOCS / "benchmarks.md").read_text()

    @pytest.mark.parametrize("name", SHOWN)
    def test_titles_fit_on_a_line(self, name: str) -> None:
        room = WIDTH - 2 * MARGIN
        assert len(SHOWN[name].title) * CHARACTER * 1.3 <= room
        assert all(len(group.title) * CHARACTER * 1.07 <= room for group in SHOWN[name].groups)


class TestPeers:
    @pytest.mark.parametrize("name", PEERS["figures"])
    def test_each_figure_has_a_value_or_words_of_each_server(self, name: str) -> None:
        one = PEERS["figures"][name]
        said = [one.get(key, [None] * len(PEERS["servers"])) for key in ("behind", "notes")]
        assert one["best"] in {"most", "least"}
        assert all(
            value is not None or any(words) for value, *words in zip(one["values"], *said, strict=True)
        )

    def test_a_server_that_was_behind_has_no_mark_in_any_chart(self) -> None:
        shown = [row for chart in SHOWN.values() for row in chart.rows]
        assert all(not row.marks for row in shown if row.text in {"behind", "delivered 62 %"})
        assert any(row.text == "behind" for row in shown)


class TestRows:
    def test_each_server_has_its_figure(self) -> None:
        assert list(rows(SERVERS, figure(5, [1.5, 1000]))) == [
            Row("ours", (5,), "5", ours=True),
            Row("theirs", (1.5, 1000), "1.5 / 1,000"),
        ]

    def test_behind_stands_in_place_of_marks_and_a_note_beside_them(self) -> None:
        one = figure(5, 7, behind=[None, "behind"], notes=["half of it", None])
        assert list(rows(SERVERS, one)) == [
            Row("ours", (5,), "5, half of it", ours=True),
            Row("theirs", (), "behind"),
        ]


class TestPerMessage:
    def test_cores_are_microseconds_a_message_where_their_number_is_known(self) -> None:
        one = per_message(figure(0.5, None, unit="cores", messages_per_s=200_000))
        assert (one["values"], one["unit"]) == ([2.5, None], "µs")

    def test_others_are_unchanged(self) -> None:
        assert per_message(figure(0.5)) == figure(0.5)


class TestTable:
    def test_the_best_is_bold_by_part(self) -> None:
        assert list(cells(figure([1, 9], [2, 8]))) == ["**1** / 9", "2 / **8**"]
        assert list(cells(figure(1, 2, best="most"))) == ["1", "**2**"]

    def test_a_figure_of_which_something_is_said_is_not_compared(self) -> None:
        assert list(cells(figure(5, 1, notes=[None, "sent half"]))) == ["**5**", "1, sent half"]
        assert list(cells(figure(5, None, behind=[None, "behind"]))) == ["**5**", "behind"]
        assert best(figure(5, 1, notes=["x", "y"])) == []

    def test_it_has_a_column_for_each_server(self) -> None:
        assert table({"servers": SERVERS, "figures": {"wait": figure(1, 2)}}).splitlines() == [
            "| what | ours | theirs |",
            "|---|---:|---:|",
            "| wait, ms | **1** | 2 |",
        ]

    def test_a_page_keeps_what_is_around_it(self) -> None:
        text = (DOCS / "benchmarks.md").read_text()
        less = page(text, {"servers": SERVERS, "figures": {}})
        assert len(less) < len(text)
        assert page(less, PEERS) == text


@pytest.mark.parametrize(
    ("marks", "text"),
    [((1989000,), "1,989,000"), ((7.0,), "7.0"), ((39.0,), "39"), ((0.78, 3.9), "0.78 / 3.9"), ((), "")],
)
def test_numbers_are_written_as_in_tables(marks: tuple[float, ...], text: str) -> None:
    assert spelled(marks) == text
