"""What `--help` shows of a flag: the spellings of the documentation, not the names of Python's types.

cyclopts makes the pages. `PlainWords` is its formatter: it changes the entries, and has them written as
ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:  # loaded for help pages only
    from cyclopts.help import HelpEntry, HelpPanel
    from rich.console import Console, ConsoleOptions

# What cyclopts calls a value of each type, and what is shown instead.
_METAVARS: Final = {"STR": "TEXT", "INT": "NUMBER", "FLOAT": "NUMBER", "PATH": "FILE"}


class PlainWords:
    """Writes help pages with metavars and defaults as a user would type them.

    Not a subclass of `DefaultFormatter`, which takes 1 MiB: a server shows no help.
    """

    def __call__(self, console: Console, options: ConsoleOptions, panel: HelpPanel) -> None:
        """Write one panel."""
        from cyclopts.help import DefaultFormatter  # noqa: PLC0415 - see above

        entries = [_reworded(entry) for entry in panel.entries]
        DefaultFormatter()(console, options, panel.copy(entries=entries))

    def render_usage(self, console: Console, options: ConsoleOptions, usage: Any) -> None:
        """Write the line that says how a command is used."""
        from cyclopts.help import DefaultFormatter  # noqa: PLC0415 - see above

        DefaultFormatter().render_usage(console, options, usage)


def _reworded(entry: HelpEntry) -> HelpEntry:
    """Return an entry of a help page with its metavar and its default as a user would type them."""
    return entry.copy(metavar=_metavar(entry.metavar), default=_default(entry.default))


def _metavar(metavar: str | None) -> str | None:
    """Return a metavar as the documentation has it; None for a flag without a value.

    A setting's own metavar stays. Dots that mark a repeated flag are left out: its help says that.
    """
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
