"""The lock file of the process that reads a directory's export into a cache: `keys.lock`.

Two of them would move each other's position. Processes that only look keys up and add some need no lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jetstream.errors import KeyCacheError

LOCK: Final = "keys.lock"


@contextmanager
def export_lock(directory: Path) -> Iterator[None]:
    """Hold the lock while the block runs; the directory is created if it is missing. Raises KeyCacheError."""
    path = directory / LOCK
    try:
        directory.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    except OSError as error:
        raise KeyCacheError(path, f"cannot be opened: {error.strerror}") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise KeyCacheError(path, "another process imports keys into this directory") from error
        yield
    finally:
        os.close(descriptor)
