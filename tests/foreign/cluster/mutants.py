"""The product with one of its safeguards removed, as a copy of its source tree.

Each change names a piece of the source, which must be there: one that is not found was moved or changed, and
the mutant with it.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Final, NamedTuple

from tests.foreign.cluster.network import ROOT


class Change(NamedTuple):
    """A text, or what fits a pattern, that is replaced so often. Files of `without` are left as they are."""

    old: str | re.Pattern[str]
    new: str
    times: int = 1
    without: tuple[str, ...] = ()


class Mutant(NamedTuple):
    """A safeguard that is removed, and how that must come to light."""

    name: str
    changes: tuple[Change, ...]
    faults: tuple[str, ...]
    problems: frozenset[str]  # any of these kinds


_ALWAYS: Final = "$1::bigint IS NOT NULL AND $2::text IS NOT NULL"
_CLAIMING: Final = ("leading.py", "beginning.py")  # which begin a term
MUTANTS: Final = (
    # No statement asks whether the term is the newest one, and an append takes the next row, whatever is
    # there.
    Mutant(
        "fence",
        (
            Change("term.epoch = $1 AND term.holder = $2", _ALWAYS, without=_CLAIMING),
            Change("WHERE epoch = $1 AND holder = $2", f"WHERE {_ALWAYS}", 5, without=_CLAIMING),
            Change("SELECT $3::bigint, $4::bigint", "SELECT (SELECT max(id) + 1 FROM tail), $4::bigint"),
            Change("(SELECT max(id) FROM tail_%s) = $3 - 1", "'tail_%s' <> '' AND $3::bigint IS NOT NULL"),
        ),
        ("ingest frozen",) * 4,
        frozenset({"twice", "back", "lost", "differs"}),
    ),
    # A row is taken although it does not follow what was taken before.
    Mutant(
        "predecessor",
        (Change('if row["follows_us"] > self.tip:\n                return False', "pass"),),
        ("edge frozen",) * 6,
        frozenset({"lost"}),
    ),
    # The row of an append in doubt cannot be told from that of another process.
    Mutant(
        "nonce",
        (Change('found["nonce"] == row[6]', "row[6] is None"),),
        ("answer lost",) * 2,
        frozenset({"term"}),
    ),
    # Erasures are not noticed, but where an edge reads everything again.
    Mutant(
        "erasure revision",
        (
            Change(
                re.compile(r"if revision != (self\._?revision):\n( +await self\._revise)"),
                r"if \1 < 0:\n\2",
            ),
        ),
        ("notifications lost",) * 12,
        frozenset({"erased"}),
    ),
)
PACKAGE: Final = "jetstream/eventlog/postgresql"


def apply(mutant: Mutant, directory: Path) -> Path:
    """Copy the source tree into a directory, with the mutant's changes; return it. Raises ValueError."""
    source = directory / "src"
    shutil.copytree(ROOT / "src", source, ignore=shutil.ignore_patterns("__pycache__"))
    for change in mutant.changes:
        found = sum(_replace(path, change) for path in _files(source, change))
        if found != change.times:
            raise ValueError(f"{mutant.name}: {change.old!r} is there {found} times, and not {change.times}")
    return source


def _files(source: Path, change: Change) -> Iterator[Path]:
    return (path for path in (source / PACKAGE).glob("*.py") if path.name not in change.without)


def _replace(path: Path, change: Change) -> int:
    pattern = change.old if isinstance(change.old, re.Pattern) else re.compile(re.escape(change.old))
    new = change.new if isinstance(change.old, re.Pattern) else change.new.replace("\\", r"\\")
    text, count = pattern.subn(new, path.read_text())
    if count:
        path.write_text(text)
    return count
