"""The public dictionary of a running server.

When a client first asks for compression and the dictionary is missing, the server runs `jetstream dictionary
fetch` as a process, and refuses such clients until that is done. So the libraries for downloading take no
memory of the server, and its start waits for nothing.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

import structlog

from jetstream.delivery.framing.zstd import ZstdFraming
from jetstream.dictionary.file import FILE, ID, URL_VARIABLE, is_public
from jetstream.errors import DictionaryError, SettingError

RETRY_S: Final = 300.0  # between the end of an attempt and the next one
ATTEMPT_S: Final = 180.0  # the longest time for one
LOOK_S: Final = 10.0  # between two looks for a file that an operator or another server may have put there
_END_S: Final = 2.0  # for the process to remove its temporary files, once it is told to stop

logger = structlog.get_logger(__name__)


class PublicDictionary:
    """The public dictionary as a framing, once it is there.

    `source` is `auto`, or the path of a file; `directory` is where `auto` keeps the dictionary. `fetch` puts
    it there, or raises DictionaryError. `clock` gives monotonic seconds. Raises SettingError for a file that
    cannot be used.

    With `auto`, only the bytes of the public dictionary are accepted. A file may have another dictionary, for
    clients that have it: then a warning says so. Used by the event loop's thread only.
    """

    def __init__(
        self,
        source: str,
        directory: Path,
        fetch: Callable[[], Awaitable[None]],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = directory / FILE
        self._fetch = fetch
        self._clock = clock
        # The attempt to fetch it that runs now; None while none does.
        self._attempt: asyncio.Task[None] | None = None
        # When the next attempt, and the next look for the file, may be made, in seconds of `clock`.
        self._attempt_at = self._look_at = clock()
        # Set once, when the dictionary is there.
        self._framing = self._look() if source == "auto" else _framing_of(Path(source))

    @property
    def dictionary_id(self) -> int:
        """Its ID, which is known before the dictionary is there."""
        return ID if self._framing is None else self._framing.dictionary_id

    def framing(self) -> ZstdFraming | None:
        """Return the framing of compressed messages; None while the dictionary is missing.

        Then it is fetched in the background, again some minutes after each failure.
        """
        if self._framing is None and self._attempt is None:
            self._framing = self._look()
            if self._framing is None and self._clock() >= self._attempt_at:
                self._attempt = asyncio.get_running_loop().create_task(self._try())
        return self._framing

    async def close(self) -> None:
        """Stop an attempt to fetch the dictionary, and wait for its end."""
        if self._attempt is not None:
            self._attempt.cancel()
            await asyncio.wait([self._attempt])

    async def _try(self) -> None:
        """Make one attempt to fetch the dictionary. A failure is logged; the next one is `RETRY_S` later."""
        logger.info("a client asks for compression: fetching the public zstd dictionary")
        try:
            await self._fetch()
            self._framing = self._load()
        except DictionaryError as error:
            logger.warning(
                "the public zstd dictionary is missing, so clients that ask for compression are refused:"
                " run the command, or give a copy of it with --zstd-dictionary",
                command=f"jetstream dictionary fetch --data-dir {self._path.parent}",
                problem=str(error),
                next_attempt_s=round(RETRY_S),
            )
        else:
            logger.info("the public zstd dictionary is there", file=str(self._path))
        finally:
            self._attempt_at = self._clock() + RETRY_S
            self._attempt = None

    def _look(self) -> ZstdFraming | None:
        """Return the framing if the dictionary is in the directory. Looks at most once in `LOOK_S`."""
        if self._clock() >= self._look_at:
            self._look_at = self._clock() + LOOK_S
            with suppress(DictionaryError):
                return self._load()
        return None

    def _load(self) -> ZstdFraming:
        """Return the framing with the dictionary of the directory. Raises DictionaryError if it has none."""
        try:
            data = self._path.read_bytes()
        except OSError as error:
            raise DictionaryError(f"{self._path} cannot be read: {error.strerror}") from error
        if not is_public(data):
            raise DictionaryError(f"{self._path} is not the public dictionary: delete it")
        return ZstdFraming(data)


def _framing_of(path: Path) -> ZstdFraming:
    """Return the framing with the dictionary in the file that the operator has named. Raises SettingError."""
    try:
        data = path.read_bytes()
        framing = ZstdFraming(data)
    except OSError as error:
        raise SettingError("--zstd-dictionary", str(path), f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise SettingError("--zstd-dictionary", str(path), str(error)) from error
    if not is_public(data):
        logger.warning(
            "the zstd dictionary is not the public one: only clients that have it can read compressed events",
            file=str(path),
            id=framing.dictionary_id,
        )
    return framing


async def fetch_in_process(directory: Path, url: str, attempt_s: float = ATTEMPT_S) -> None:
    """Run `jetstream dictionary fetch`. Raises DictionaryError with the last line that it writes.

    `url` is the first source. A process that runs for longer than `attempt_s` seconds is stopped, with all
    that it has started; so it is when the caller is cancelled.

    `Popen` starts it with `vfork`. The event loop's own function copies the page tables of a large process,
    which takes up to 50 ms. `-P` keeps Python from importing what lies in the working directory.
    """
    command = (sys.executable, "-P", "-m", "jetstream", "dictionary", "fetch", "--data-dir", str(directory))
    try:
        process = subprocess.Popen(  # noqa: S603, ASYNC220 - our own command; see above
            command,
            env=os.environ | {URL_VARIABLE: url},  # not an argument: it may have a password
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,  # so that it can be stopped with pip, which it runs
        )
    except (OSError, TypeError) as error:  # too many processes or files; no known path of Python
        raise DictionaryError(f"no process can be started: {error}") from error
    try:
        async with asyncio.timeout(attempt_s):
            _, said = await asyncio.to_thread(process.communicate)
    except TimeoutError as error:
        raise DictionaryError(f"it was not there after {attempt_s:g} s") from error
    finally:
        if process.poll() is None:
            await asyncio.to_thread(_stop, process)
    if process.returncode:
        lines = said.decode(errors="replace").strip().splitlines()
        raise DictionaryError(lines[-1] if lines else f"the process ended with status {process.returncode}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Interrupt a process and what it runs, as Ctrl-C would; kill it if it does not end."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(_END_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
