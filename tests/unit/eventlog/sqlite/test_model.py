"""The log in SQLite against a plain list, also when power is lost."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from hypothesis.stateful import rule
from tests.logs.model import SETTINGS, LogAgainstList, held, shares
from tests.unit.eventlog.reading import read_all
from tests.unit.eventlog.sqlite.engine import SqliteEngine

from jetstream.eventlog.sqlite.reservation import FILE
from jetstream.eventlog.sqlite.schema import DATABASE


class SqliteAgainstList(LogAgainstList):
    engine: SqliteEngine

    def make_engine(self, stack: ExitStack) -> SqliteEngine:
        return SqliteEngine(Path(stack.enter_context(tempfile.TemporaryDirectory())))

    @rule(share=shares)
    def lose_power(self, share: float) -> None:
        """Go on with a write-ahead log that is cut off somewhere, after another boot."""
        given_out = self.log.tip
        self.runner.run(self.engine.abandon(self.log))
        self.cut_files(self.engine.files, share)
        self.open()
        assert self.log.tip >= given_out
        self.settle()
        self.floor = self.log.floor
        kept = self.runner.run(read_all(self.log))
        self.history = next(
            history
            for end in sorted(self.ends, reverse=True)
            if held(history := [stamped for stamped in self.history if stamped[0] <= end], self.floor) == kept
        )
        self.seq = max((cursor.seq for cursor in self.log.cursors.values()), default=0)

    def cut_files(self, files: Path, share: float) -> None:
        with (files / f"{DATABASE}-wal").open("r+b") as wal:
            wal.truncate(int(wal.seek(0, 2) * share))
        if (files / FILE).exists():
            _, until = (files / FILE).read_text().split()
            (files / FILE).write_text(f"another-boot {until}\n")


TestLogAgainstList = SqliteAgainstList.TestCase
TestLogAgainstList.settings = SETTINGS
