"""What `--help` shows of a flag: the spellings of the documentation, not the names of Python's types."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cyclopts.help import DefaultFormatter, HelpEntry, HelpPanel

if TYPE_CHECKING:  # loaded for help pages only
    from rich.console import Console, ConsoleOptions

_METAVARS: Final = {"STR": "TEXT", "INT": "NUMBER", "FLOAT": "NUMBER", "PATH": "FILE"}


class PlainWords(DefaultFormatter):
    """Writes help panels with metavars and defaults as a user would type them."""

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Write one panel."""
        super().__call__(console, options, panel.copy(entries=[_reworded(entry) for entry in panel.entries]))


def _reworded(entry: HelpEntry) -> HelpEntry:
    return entry.copy(metavar=_metavar(entry.metavar), default=_default(entry.default))


def _metavar(metavar: str | None) -> str | None:
    if metavar is None:
        return None
    word = metavar.removesuffix("...")
    return _METAVARS.get(word, word)


def _default(default: str | None) -> str | None:
    """Return a default without what is not typed: the `.0` of a number; none for a flag that is off."""
    if default is None or default == "False":
        return None
    if default == "True":
        return "yes"
    whole = default.removesuffix(".0")
    return whole if whole.isdigit() else default
