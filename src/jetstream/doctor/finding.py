"""What a check has found. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal, NamedTuple

Level = Literal["ok", "warn", "fail"]

_NAME_CHARS: Final = 8  # of the longest name of a check


class Finding(NamedTuple):
    """The result of one check: what is so, and if it is not well, what to do.

    `warn`: the server works, but not for long or not for everyone. `fail`: it does not start, or is of no
    use.
    """

    check: str
    level: Level
    text: str
    hint: str = ""  # empty if all is well

    def line(self) -> str:
        """Return it as one line for people."""
        hint = f" - {self.hint}" if self.hint else ""
        return f"{self.level:<4}  {self.check:<{_NAME_CHARS}}  {' '.join(self.text.split())}{hint}"


def well(findings: Iterable[Finding]) -> bool:
    """Return whether there is nothing to change."""
    return all(each.level == "ok" for each in findings)


def size(count: float) -> str:
    """Return bytes as text: `6.0 GB`."""
    for unit in ("bytes", "kB", "MB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} GB"
