"""Files of a directory that change are told."""

from __future__ import annotations

import sys
from collections.abc import Collection
from pathlib import Path

import pytest
from structlog.testing import capture_logs
from tests.serving import until

from jetstream.eventlog.sqlite.watch import Watch

needs_inotify = pytest.mark.skipif(sys.platform != "linux", reason="inotify is of Linux")


@needs_inotify
async def test_writes_to_the_named_files_are_told_and_no_others(tmp_path: Path) -> None:
    told: list[set[str]] = []

    def changed(names: Collection[str]) -> None:
        told.append(set(names))

    watch = Watch(tmp_path, ("a", "b"), changed)
    assert watch.works
    (tmp_path / "c").write_text("another one")
    (tmp_path / "a").write_text("made")
    await until(lambda: told)
    assert set[str]().union(*told) == {"a"}
    told.clear()
    with (tmp_path / "b").open("w") as file:
        file.write("written to")
    await until(lambda: told)
    assert set[str]().union(*told) == {"b"}
    watch.close()
    told.clear()
    (tmp_path / "a").write_text("nobody listens")
    watch.close()
    assert told == []


async def test_where_nothing_can_be_watched_one_line_says_so(tmp_path: Path) -> None:
    with capture_logs() as lines:
        watch = Watch(tmp_path / "missing", ("a",), lambda _names: None)
    assert not watch.works
    assert [line["event"] for line in lines] == [
        "log: cannot be watched, so new events are looked for now and then"
    ]
    watch.close()
