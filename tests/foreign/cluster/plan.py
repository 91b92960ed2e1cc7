"""What a soak does, and the record of what has happened in it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from tests.foreign.cluster.network import ROOT
from tests.foreign.cluster.verdict import Problem

_SHOWN: Final = 20  # problems


@dataclass(frozen=True)
class Plan:
    """What a soak does."""

    seed: int
    faults: Sequence[str]
    # The first so many faults happen while the clock of `ingest-2` is two hours ahead; then it is set back.
    ahead: int = 0
    rate: float = 60.0
    # The source tree of the processes under test.
    source: Path = ROOT / "src"


@dataclass
class Record:
    """What has happened, with times, and what was wrong."""

    say: Callable[[str], object]
    began: float = field(default_factory=time.monotonic)
    lines: list[str] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)

    def note(self, text: str) -> None:
        """Note something that was done, or has happened."""
        line = f"{time.strftime('%H:%M:%S')} {time.monotonic() - self.began:7.2f} {text}"
        self.lines.append(line)
        self.say(line)

    def report(self, problem: Problem) -> None:
        """Note that something is wrong; of many problems, the first ones."""
        self.problems.append(problem)
        if len(self.problems) <= _SHOWN:
            self.note(f"PROBLEM: {problem.kind}: {problem.text}")
