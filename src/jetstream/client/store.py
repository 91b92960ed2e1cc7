"""Where a subscription keeps its cursor, so that it resumes in another process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final, Protocol

from jetstream.client.errors import StoreError

_CHARS_MAX: Final = 32  # of a file; a cursor has 16 digits


class CursorStore(Protocol):
    """Keeps one cursor. Any object with these two methods is one.

    A subscription calls both in the thread in which it is read: `load` once, before it connects, and `save`
    about once a second and at the end. What they raise ends the subscription.
    """

    def load(self) -> int | None:
        """Return the cursor that was saved last; None: none was."""

    def save(self, cursor: int) -> None:
        """Keep a cursor in unix microseconds, instead of the one before it."""


class FileCursor:
    """A cursor in a file, as one decimal number.

    The file always has one whole cursor, also after a crash or a power loss: a new one is written to a file
    beside it (`NAME.new`), which then replaces it. Two subscriptions must not share a file. Both methods
    raise StoreError, with the name of the file.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path).absolute()  # the working directory may change

    def load(self) -> int | None:
        """Return the cursor; None if there is no file."""
        try:
            with self.path.open("rb") as file:
                text = file.read(_CHARS_MAX + 1).decode("ascii", "replace").strip()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise StoreError(self.path, f"cannot be read: {error.strerror}") from error
        if not (text.isascii() and text.isdigit() and len(text) <= _CHARS_MAX):
            raise StoreError(
                self.path,
                f"has {text[:_CHARS_MAX]!r}, which is not a time in unix microseconds."
                " Write one into it, or delete it to start without a cursor",
            )
        return int(text)

    def save(self, cursor: int) -> None:
        """Replace the cursor. It is on the disk when this returns."""
        fresh = self.path.with_name(self.path.name + ".new")
        try:
            with fresh.open("wb") as file:
                file.write(b"%d\n" % cursor)
                file.flush()
                os.fsync(file.fileno())
            fresh.replace(self.path)
            _sync(self.path.parent)
        except OSError as error:
            raise StoreError(self.path, f"cannot be written: {error.strerror}") from error


def _sync(directory: Path) -> None:
    """Wait until the names in a directory are on the disk, where a system can do that."""
    if os.name == "posix":
        opened = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)
