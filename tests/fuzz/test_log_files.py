"""Files of a log, damaged anywhere: what is read is what was written, or a LogError says why not."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import pytest
from hypothesis import strategies as st
from tests.fuzz.conftest import Fuzz
from tests.unit.eventlog.events import make_event

from jetstream.errors import LogError
from jetstream.eventlog import Changes, Gap, SourceCursor
from jetstream.eventlog.sqlite.check import check
from jetstream.eventlog.sqlite.export import contents, selected
from jetstream.eventlog.sqlite.repair import repair
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import Event
from jetstream.model.filter import EVERYTHING

FILES = ("jetstream.db", "jetstream.db-wal", "jetstream.reserved")
EVENTS, BATCH = 9_000, 90  # two segments, and a tail
STOP = 1 << 62

Written = dict[int, Event]


class Damage(NamedTuple):
    """What happens to a file: `place` is a part of its length."""

    file: str
    kind: str
    place: float
    data: bytes


class Copy(NamedTuple):
    """A log whose files were copied while it was open, so that some of it is in the WAL; and its events."""

    directory: Path
    written: Written


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    copy = tmp_path_factory.mktemp("whole")
    return Copy(copy, asyncio.run(write(tmp_path_factory.mktemp("open"), copy)))


def states(start: int) -> dict[bytes, bytes | None]:
    """Return the states that an append changes: two of three are folded in the end."""
    return {n.to_bytes(15, "big"): n.to_bytes(24, "big") for n in range(start, start + BATCH)}


def gaps(start: int) -> list[Gap]:
    return [Gap(start, f"did:plc:{start}", "3l3qo2vutsw2b", "3l3qo2vuowo2b", "commit")]


async def write(directory: Path, copy: Path) -> Written:
    log = await SqliteLog.open(directory, limits=LogLimits(repo_changes=2 * EVENTS // 3))
    written: Written = {}
    for start in range(1, EVENTS + 1, BATCH):
        batch = Batch.of([make_event(n) for n in range(start, start + BATCH)], range(start, start + BATCH))
        changes = Changes({"relay.example:443": SourceCursor(start)}, states(start), gaps(start))
        await log.append(batch, changes)
        written |= {batch.times[index]: batch.event(index) for index in range(len(batch))}
    await log.maintain()
    for name in FILES:
        if (directory / name).exists():
            shutil.copy(directory / name, copy)
    await log.close()
    return written


def damages() -> st.SearchStrategy[list[Damage]]:
    one = st.builds(
        Damage,
        st.sampled_from(FILES),
        st.sampled_from(("set", "cut", "fill", "remove", "append")),
        st.floats(0, 1) | st.floats(0, 0.001),
        st.binary(min_size=1, max_size=64),
    )
    return st.lists(one, min_size=1, max_size=4)


def apply(damage: Damage, directory: Path) -> None:
    path = directory / damage.file
    if not path.exists():
        return
    data = bytearray(path.read_bytes())
    at = int(damage.place * len(data))
    if damage.kind == "set":
        data[at : at + len(damage.data)] = damage.data
    elif damage.kind == "cut":
        del data[at:]
    elif damage.kind == "fill":  # as a disk that lost a sector, or a page
        size = len(damage.data) * 64
        data[at : at + size] = bytes(len(data[at : at + size]))
    elif damage.kind == "append":
        data += damage.data
    if damage.kind == "remove":
        path.unlink()
    else:
        path.write_bytes(data)


def works(action: Callable[[], object]) -> bool:
    """Do something; tell whether it could be done. Anything but a LogError is an error of the code."""
    try:
        action()
    except LogError:
        return False
    return True


def equals(directory: Path, written: Written) -> None:
    for batch, indices in selected(directory, 0, None, EVERYTHING):
        for index in indices:
            assert written.get(batch.times[index]) == batch.event(index)


async def serve(directory: Path, written: Written) -> None:
    """Open, read, append and close, as a server does."""
    log = await SqliteLog.open(directory)
    try:
        position = log.floor
        while (batch := await log.read(position, STOP, EVERYTHING)) is not None:
            for index in range(batch.index(position), len(batch)):
                assert written.get(batch.times[index]) == batch.event(index)
            position = batch.last + 1
        for n in (1, EVENTS // 2, EVENTS):
            assert log.repo(n.to_bytes(15, "big")) in (None, n.to_bytes(24, "big"))
        await log.gaps(0, EVENTS)
        time_us = log.tip + 1
        await log.append(
            Batch.of([make_event(1)], [time_us]), Changes({"relay.example:443": SourceCursor(1)})
        )
        assert log.tip == time_us
    finally:
        await log.close()


def test_a_damaged_log_is_refused_or_reads_as_it_was_written(fuzz: Fuzz, whole: Copy) -> None:
    def damaged(some: list[Damage]) -> None:
        with TemporaryDirectory() as parent:
            directory, mended = Path(parent) / "served", Path(parent) / "mended"
            shutil.copytree(whole.directory, directory)
            for damage in some:
                apply(damage, directory)
            shutil.copytree(directory, mended)
            works(lambda: check(directory))
            works(lambda: contents(directory))
            works(lambda: equals(directory, whole.written))
            works(lambda: asyncio.run(serve(directory, whole.written)))
            if works(lambda: repair(mended)):
                equals(mended, whole.written)
                assert not check(mended).problems
                asyncio.run(serve(mended, whole.written))

    fuzz(damaged, damages(), 25)


def test_a_log_whose_tables_were_only_in_a_damaged_wal_is_not_whole(whole: Copy, tmp_path: Path) -> None:
    """Found by the fuzzer: the tables of a young log are in the WAL alone, and its header was damaged."""
    directory = tmp_path / "log"
    shutil.copytree(whole.directory, directory)
    apply(Damage("jetstream.db-wal", "set", 0.0, b"\0"), directory)
    assert not works(lambda: check(directory)) or check(directory).problems
