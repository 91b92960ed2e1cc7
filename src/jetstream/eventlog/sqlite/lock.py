"""The lock file that makes one process the writer of a log's directory.

SQLite's own locks are not enough: they last for one transaction, and a second server would only notice that
another one appends in between. Commands that only read need no lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from jetstream.errors import LogLocked, LogUnwritable
from jetstream.eventlog.sqlite.connection import existing_database
from jetstream.eventlog.sqlite.heartbeat import LINE_BYTES, Beat, write_beat
from jetstream.eventlog.sqlite.space import Space

LOCK: Final = "jetstream.lock"


@contextmanager
def offline(directory: Path) -> Iterator[Path]:
    """Lock an existing log for a command that changes it; give the path of the database.

    The reserve is released: the server takes it back. Raises LogLocked while a server runs, LogError without
    a log.
    """
    path = existing_database(directory)
    lock = take_lock(directory)
    try:
        Space(directory).release_reserve()
        yield path
    finally:
        os.close(lock)


def take_lock(directory: Path) -> int:
    """Lock `directory`, which is created if it is missing; return the descriptor that holds the lock.

    The kernel releases the lock when the descriptor is closed or the process ends, however it ends. The file
    says which process holds it, and has the writer's heartbeat (see `heartbeat`). Raises LogLocked or
    LogUnwritable.

    The lock is flock(2) on the whole file, exclusive and without waiting. It is of this descriptor: a
    child process that inherits it would hold it too, so it is opened with O_CLOEXEC.
    """
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise LogUnwritable(path, str(error)) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = "unknown"
        with suppress(OSError):
            holder = (os.pread(descriptor, LINE_BYTES, 0).decode(errors="replace").split() or [holder])[0]
        os.close(descriptor)
        raise LogLocked(
            path, f"process {holder} writes this log; stop it, or use another directory"
        ) from error
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
    # Also for a command, which writes it only once: error messages name the process.
    write_beat(descriptor, Beat(os.getpid(), 0, 0))
    return descriptor
