"""A soak from its beginning to its end: what it was, or everything that is known of why it failed."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final

from tests.foreign.cluster.faults import Failed
from tests.foreign.cluster.plan import Plan, Record
from tests.foreign.cluster.run import Run
from tests.foreign.cluster.verdict import Problem

__all__ = ["Plan", "SoakFailed", "soak"]

_LINES: Final = 12  # of the log of each process, where the soak has failed


class SoakFailed(AssertionError):
    """The soak has found something. The text has all that is known of it."""

    def __init__(self, problems: Sequence[Problem], text: str) -> None:
        self.problems = tuple(problems)
        super().__init__(text)


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a run takes minutes


async def soak(plan: Plan, say: Callable[[str], object] = _say) -> str:
    """Run a soak; return its summary. Raises SoakFailed, and then keeps the files."""
    directory = _new_directory()
    record = Record(say)
    record.note(f"seed {plan.seed}, {len(plan.faults)} faults, in {directory}")
    run = Run(plan, directory, record)
    try:
        summary = await run.run()
    except Failed as error:
        if error.problem not in record.problems:
            record.report(error.problem)
    except Exception as error:  # noqa: BLE001 - whatever it is, it comes with all that is known
        record.report(Problem(type(error).__name__, "".join(traceback.format_exception(error))))
    if record.problems:
        raise SoakFailed(record.problems, _explain(plan, directory, record))
    record.note(summary)
    shutil.rmtree(directory)
    return summary


def _explain(plan: Plan, directory: Path, record: Record) -> str:
    """Return all that helps to understand what went wrong."""
    kinds = ", ".join(dict.fromkeys(each.kind for each in record.problems))
    logs = []
    for path in sorted(directory.glob("*.log")):
        lines = path.read_text(errors="replace").splitlines()[-_LINES:]
        logs += [f"--- {path.name}", *(line[:500] for line in lines)]
    return "\n".join(
        [
            f"{len(record.problems)} problems ({kinds}) with seed {plan.seed}; the files are in {directory}",
            *record.lines,
            *logs,
        ]
    )


def _new_directory() -> Path:
    """Return a new directory that PostgreSQL, which may run as another user, can reach."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-soak-"))
    directory.chmod(0o711)
    return directory
