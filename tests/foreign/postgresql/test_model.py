"""The log in PostgreSQL against a plain list, also when the tail is rotated and the process fenced."""

from __future__ import annotations

from contextlib import ExitStack
from itertools import count
from typing import ClassVar

import pytest
from hypothesis.stateful import rule
from tests.foreign.postgresql.engine import PostgresEngine, new_engine
from tests.foreign.postgresql.server import Server
from tests.logs.model import SETTINGS, LogAgainstList

from jetstream.errors import Fenced
from jetstream.eventlog import Changes
from jetstream.model.batch import Batch

_numbers = count()


class PostgresAgainstList(LogAgainstList):
    engine: PostgresEngine
    address: ClassVar[str]

    def make_engine(self, _stack: ExitStack) -> PostgresEngine:
        return self.runner.run(new_engine(self.address, f"model_{next(_numbers)}"))

    @rule()
    def rotate(self) -> None:
        self.runner.run(self.log.upkeep.rotate())

    @rule()
    def be_fenced(self) -> None:
        """Another process takes over while this one is alive."""
        old = self.log
        self.open()
        with pytest.raises(Fenced):
            self.runner.run(old.append(Batch.of((), ()), Changes({})))
        self.runner.run(old.close())


@pytest.fixture(autouse=True)
def _address(server: Server) -> None:
    PostgresAgainstList.address = server.address


TestLogAgainstList = PostgresAgainstList.TestCase
TestLogAgainstList.settings = SETTINGS
