"""A backup made beside a running server, as docs/operations.md says, and what the restored log serves."""

from __future__ import annotations

import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

from tests.builders import identity
from tests.relay import Relay, numbered
from tests.serving import Start, published
from tests.subscriber import subscribe

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operations.md"


def back_up(data: Path, backup: Path) -> None:
    """Make a backup with the statement of the documentation."""
    [statement] = re.findall(r'sqlite3 \S+/jetstream\.db "(.+)"', PAGE.read_text())
    backup.mkdir()
    with closing(sqlite3.connect(data / "jetstream.db")) as database:
        database.execute(statement.replace("/backup/", f"{backup}/"))
    shutil.copy(data / "jetstream.reserved", backup)


async def test_a_restored_backup_resumes_and_misses_nothing(
    relay: Relay, start: Start, tmp_path: Path
) -> None:
    relay.publish(numbered([identity(1), identity(2)]))
    original = await start(upstream_cursor=0, data_dir=tmp_path / "data")
    await published(original, 2)
    await original.log.maintain()  # what is in the journal is no part of a backup
    back_up(tmp_path / "data", tmp_path / "backup")
    relay.publish(numbered([identity(3)]))
    await published(original, 3)
    async with subscribe(original.port, cursor=1) as subscriber:
        before = await subscriber.events(3)
    original.stop()

    restored = await start(data_dir=tmp_path / "backup")
    await published(restored, 3)
    async with subscribe(restored.port, cursor=1) as subscriber:
        after = await subscriber.events(3)
    assert [event["identity"]["seq"] for event in after] == [1, 2, 3]
    assert after[:2] == before[:2]
    assert after[2]["time_us"] > before[2]["time_us"]  # what came after the backup is new
