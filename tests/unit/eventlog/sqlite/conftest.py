from __future__ import annotations

from pathlib import Path

import pytest
from tests.unit.eventlog.sqlite.engine import SqliteEngine


@pytest.fixture
def engine(tmp_path: Path) -> SqliteEngine:
    return SqliteEngine(tmp_path)
