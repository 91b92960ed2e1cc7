"""Being told when files of a directory change: inotify(7), where the system has it.

A write to a watched file wakes the event loop within some 50 us. The directory is watched, and not its
files: so one that is made later, or takes the place of another, is seen as well. Where there is no
inotify, and where the kernel refuses another watch, nothing is told: the caller looks from time to time
in any case.
"""

from __future__ import annotations

import asyncio
import ctypes
import os
from collections.abc import Callable, Collection, Iterator
from contextlib import suppress
from pathlib import Path
from struct import Struct
from typing import Final

import structlog

# From <sys/inotify.h>. A file was written to; one was made, or has got this name.
_IN_MODIFY: Final = 0x002
_IN_MOVED_TO: Final = 0x080
_IN_CREATE: Final = 0x100
_FLAGS: Final = os.O_NONBLOCK | os.O_CLOEXEC  # IN_NONBLOCK and IN_CLOEXEC
_EVENT: Final = Struct("iIII")  # watch, mask, cookie, bytes of the name that follows
# Of one read, some hundred events: the kernel merges equal ones that follow each other.
_READ_BYTES: Final = 16 << 10

logger = structlog.get_logger(__name__)


class Watch:
    """Calls `changed` with the names of those of `names` that have changed in a directory, until `close`.

    Many writes are one call. `changed` is called on the event loop's thread.
    """

    def __init__(
        self, directory: Path, names: Collection[str], changed: Callable[[Collection[str]], None]
    ) -> None:
        """Begin to watch. `names` are names without a directory. Needs a running event loop."""
        self._names = frozenset(os.fsencode(name) for name in names)
        self._changed = changed
        # inotify's descriptor; None where there is none.
        self._descriptor = _watched(directory)
        if self._descriptor is not None:
            asyncio.get_running_loop().add_reader(self._descriptor, self._on_events)

    @property
    def works(self) -> bool:
        """Whether changes are told at all."""
        return self._descriptor is not None

    def _on_events(self) -> None:
        """Read what the kernel has queued, and call `changed` once for all of it. Other names are dropped."""
        assert self._descriptor is not None
        try:
            data = os.read(self._descriptor, _READ_BYTES)
        except BlockingIOError:
            return
        if changed := self._names.intersection(_names(data)):
            self._changed({os.fsdecode(name) for name in changed})

    def close(self) -> None:
        """Call no more.

        Calling it twice does nothing more.
        """
        if self._descriptor is not None:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = None


def _names(data: bytes) -> Iterator[bytes]:
    """Yield the names of the files in events of inotify.

    `data` has whole events, since the kernel never cuts one: each is a head, then a name filled up with
    NULs.
    """
    at = 0
    while at < len(data):
        *_, size = _EVENT.unpack_from(data, at)
        at += _EVENT.size
        yield data[at : at + size].rstrip(b"\0")
        at += size


def _watched(directory: Path) -> int | None:
    """Return the descriptor of an inotify that watches a directory; None if there can be none."""
    descriptor = -1
    try:
        libc = ctypes.CDLL(None, use_errno=True)
        descriptor = libc.inotify_init1(_FLAGS)
        mask = _IN_MODIFY | _IN_MOVED_TO | _IN_CREATE
        if descriptor >= 0 and libc.inotify_add_watch(descriptor, os.fsencode(directory), mask) >= 0:
            return int(descriptor)
        problem = os.strerror(ctypes.get_errno())
    except (AttributeError, OSError) as error:  # not Linux
        problem = str(error)
    with suppress(OSError):
        os.close(descriptor)
    logger.warning(
        "log: cannot be watched, so new events are looked for now and then",
        directory=str(directory),
        problem=problem,
    )
    return None
