"""What a check has found. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

# From well to useless. Every level but `ok` makes the command exit with 1.
Level = Literal["ok", "warn", "fail"]

# The width of the column of names: as long as the longest one, `upstream`.
_NAME_CHARS: Final = 8


class Finding(NamedTuple):
    """The result of one check: what is so, and if it is not well, what to do.

    `warn`: the server works, but not for long or not for everyone. `fail`: it does not start, or is of no
    use.
    """

    # The name of the check, such as `disk`. Several findings may have the same.
    check: str
    level: Level
    # A sentence without its period, for people. It may have several lines, which `line` joins.
    text: str
    # What to do. Empty if all is well.
    hint: str = ""

    def line(self) -> str:
        """Return it as one line for people: level, check, text and hint."""
        hint = f" - {self.hint}" if self.hint else ""
        return f"{self.level:<4}  {self.check:<{_NAME_CHARS}}  {' '.join(self.text.split())}{hint}"


def well(findings: Iterable[Finding]) -> bool:
    """Return whether there is nothing to change. Consumes `findings`."""
    return all(each.level == "ok" for each in findings)


def size(count: float) -> str:
    """Return bytes as text with a decimal unit, up to GB: `6.0 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
