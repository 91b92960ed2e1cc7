from __future__ import annotations

import asyncio
import json
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import pytest
from tests.logs.copying import copied

from jetstream.cli import main
from jetstream.cli.log import cat, check, repair, stats
from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v1 import V1
from jetstream.errors import InvalidParameter, LogError, SettingError
from jetstream.eventlog import Changes, Cursors, Gap
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import LogLimits
from jetstream.model.batch import Batch
from jetstream.model.event import SYNC, Event
from jetstream.settings.values import LogUrl

BatchOf = Callable[[range], Batch]
START = 1_700_000_000_000_000


@pytest.fixture(scope="module")
def whole_log(tmp_path_factory: pytest.TempPathFactory, batch_of: BatchOf, cursor: Cursors) -> Path:
    """A closed log of 1,000 events, most of them in segments."""
    directory = tmp_path_factory.mktemp("log")

    async def write() -> None:
        log = await SqliteLog.open(directory, limits=LogLimits(segment_events=300))
        for start in range(START, START + 1000, 100):
            await log.append(batch_of(range(start, start + 100)), Changes(cursor))
        await log.maintain()
        await log.close()

    asyncio.run(write())
    return directory


@pytest.fixture
def directory(whole_log: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return copied(whole_log, tmp_path)


def written(capsysbinary: pytest.CaptureFixture[bytes]) -> list[bytes]:
    return capsysbinary.readouterr().out.splitlines()


def test_the_log_may_be_elsewhere_than_the_data_directory(
    directory: Path, tmp_path_factory: pytest.TempPathFactory, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    elsewhere = str(tmp_path_factory.mktemp("data"))
    for command, expected in (
        ("check", b"1,000 events"),
        ("stats", b"1,000"),
        ("repair", b"nothing is damaged"),
    ):
        with pytest.raises(SystemExit) as ended:
            main(["log", command, "--log", f"sqlite:{directory}", "--data-dir", elsewhere])
        assert not ended.value.code
        assert expected in capsysbinary.readouterr().out
    with pytest.raises(SettingError, match=r"--log.*: .* is not a directory"):
        stats(log=LogUrl(directory / "jetstream.db"))


def test_cat_writes_every_event_as_v1(
    directory: Path, capsysbinary: pytest.CaptureFixture[bytes], batch_of: BatchOf
) -> None:
    cat(data_dir=directory)
    batch = batch_of(range(START, START + 1000))
    assert written(capsysbinary) == V1.render(batch, range(1000))


@pytest.mark.parametrize("wire", ["classic", "v1", "v2"])
def test_cat_writes_every_wire(
    wire: Literal["classic", "v1", "v2"],
    directory: Path,
    capsysbinary: pytest.CaptureFixture[bytes],
    batch_of: BatchOf,
) -> None:
    cat(data_dir=directory, wire=wire)
    batch = batch_of(range(START, START + 1000))
    assert written(capsysbinary) == RENDERERS[wire].render(batch, range(1000))


async def test_cat_leaves_out_what_a_wire_has_not(
    directory: Path, capsysbinary: pytest.CaptureFixture[bytes], cursor: Cursors
) -> None:
    log = await SqliteLog.open(directory)
    sync = Event(SYNC, b"did:plc:a", b"", b"", b"", b"", b"{}")
    await log.append(Batch.of([sync], [START + 2000]), Changes(cursor))
    await log.close()
    cat(data_dir=directory, since=str(START + 2000))
    assert written(capsysbinary) == []
    cat(data_dir=directory, since=str(START + 2000), wire="v2")
    [line] = written(capsysbinary)
    assert json.loads(line)["payload"]["sync"] == {}


async def test_stats_count_states_and_gaps_where_there_are_some(
    directory: Path, capsysbinary: pytest.CaptureFixture[bytes], cursor: Cursors
) -> None:
    stats(data_dir=directory)
    assert not [line for line in written(capsysbinary) if line.startswith((b"states", b"gaps"))]
    log = await SqliteLog.open(directory, limits=LogLimits(repo_changes=2))
    for number in range(3):
        repos = {bytes([number]) * 15: b"state" * 4 + b"1234"}
        gap = Gap(START, f"did:plc:{number}", "", "", "sync")
        await log.append(Batch.of((), ()), Changes(cursor, repos=repos, gaps=[gap]))
        if number == 1:
            await log.maintain()
    await log.close()
    stats(data_dir=directory)
    shown = written(capsysbinary)
    assert b"states       2 of repositories; 1 appends not merged yet" in shown
    assert b"gaps         3" in shown


def test_cat_takes_a_range_and_a_filter(directory: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    cat(
        data_dir=directory,
        since=str(START + 100),
        until=str(START + 800),
        collection=["app.bsky.feed.like"],
        did=["did:plc:repo3"],
    )
    events = [json.loads(line) for line in written(capsysbinary)]
    assert len(events) > 20
    assert all(START + 100 <= event["time_us"] < START + 800 for event in events)
    assert {event["did"] for event in events} == {"did:plc:repo3"}
    assert {event.get("commit", {}).get("collection") for event in events} == {None, "app.bsky.feed.like"}


def test_cat_survives_a_closed_pipe(directory: Path) -> None:
    command = [sys.executable, "-m", "jetstream", "log", "cat", "--data-dir", str(directory)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.read(10) == b'{"did":"di'
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


async def test_all_but_repair_run_beside_a_writer(
    directory: Path, capsysbinary: pytest.CaptureFixture[bytes], batch_of: BatchOf, cursor: Cursors
) -> None:
    log = await SqliteLog.open(directory)
    await log.append(batch_of(range(START + 1000, START + 1010)), Changes(cursor))
    await log.maintain()  # else the newest second may be in the journal only
    stats(data_dir=directory)
    assert b"1,010" in written(capsysbinary)[0]
    check(data_dir=directory)
    assert b"1,010 events in 3 segments" in written(capsysbinary)[-1]
    cat(data_dir=directory)
    assert len(written(capsysbinary)) == 1010
    with pytest.raises(LogError, match="writes this log"):
        repair(data_dir=directory)
    await log.close()


def test_stats_says_what_is_there(directory: Path, capsysbinary: pytest.CaptureFixture[bytes]) -> None:
    stats(data_dir=directory)
    lines = dict(line.split(maxsplit=1) for line in written(capsysbinary))
    assert lines[b"events"] == b"1,000"
    assert lines[b"segments"] == b"3"
    assert lines[b"upstream"] == b"relay.example:443, seq 7"
    assert lines[b"oldest"].startswith(b"1700000000000000 (2023-11-14T22:13:20.000+00:00)")
    assert sum(int(lines[kind].replace(b",", b"")) for kind in (b"create", b"delete", b"account")) == 1000


def test_where_no_log_is_the_commands_say_so(tmp_path: Path) -> None:
    with pytest.raises(LogError, match="no log was written"):
        stats(data_dir=tmp_path)


def test_damage_ends_check_with_1_and_repair_mends_it(
    directory: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    path = directory / "jetstream.db"
    with sqlite3.connect(path) as connection:
        (bodies,) = connection.execute("SELECT bodies FROM segment LIMIT 1 OFFSET 1").fetchone()
    connection.close()
    data = bytearray(path.read_bytes())
    data[data.index(bodies[:100]) + 50] ^= 1
    path.write_bytes(data)
    with pytest.raises(SystemExit) as ended:
        check(data_dir=directory)
    assert ended.value.code == 1
    assert b"damaged: " in written(capsysbinary)[0]
    repair(data_dir=directory)
    assert b"jetstream.db.damaged-1" in written(capsysbinary)[-1]
    check(data_dir=directory)
    assert b"are undamaged" in written(capsysbinary)[-1]
    repair(data_dir=directory)
    assert b"nothing was changed" in written(capsysbinary)[-1]


@pytest.mark.parametrize(
    ("flags", "count"),
    [
        (["--since", "-1h"], 0),
        (["--since=-99999d"], 1000),
        (["--until", "-1h"], 1000),
        (["--until", "9" * 20], 1000),
        (["--since", "2023-11-14T22:13:20.000100Z"], 900),
        (["--since", "9" * 20], 0),
    ],
)
def test_cat_takes_times_in_every_form(
    flags: list[str], count: int, directory: Path, capsysbinary: pytest.CaptureFixture[bytes]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["log", "cat", "--data-dir", str(directory), *flags])
    assert not ended.value.code
    assert len(written(capsysbinary)) == count


def test_bad_parameters_are_named(directory: Path) -> None:
    with pytest.raises(SettingError, match=r"--since.*yesterday"):
        cat(data_dir=directory, since="yesterday")
    with pytest.raises(InvalidParameter, match="nonsense"):
        cat(data_dir=directory, collection=["nonsense"])


def _run(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert not ended.value.code


def test_stats_as_json_have_everything(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _run(["log", "stats", "--json", "--data-dir", str(directory)])
    found = json.loads(capsys.readouterr().out)
    assert found["events"] == sum(found["kinds"].values()) == 1000
    assert (found["oldest_us"], found["newest_us"]) == (START, START + 999)
    assert sum(found["collections"].values()) <= 1000
    assert 0 < found["share_of_json"] < 1
    assert found["bytes_per_event"] == pytest.approx(found["bytes_on_disk"] / 1000, abs=0.1)


async def test_stats_of_an_empty_log_as_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    await (await SqliteLog.open(tmp_path)).close()
    stats(data_dir=tmp_path, json=True)
    found = json.loads(capsys.readouterr().out)
    assert (found["events"], found["bytes_per_event"], found["collections"]) == (0, None, {})
