"""Client libraries of other projects: how each is built from its registry, started and read.

Every program prints the events that its library hands on, one JSON object a line. The versions are locked
beside the programs. A missing program skips the tests of its client, as does a registry that does not answer.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import pytest
from tests.foreign.conftest import missing

HERE = Path(__file__).parent
Event = dict[str, Any]
CRATES = "https://github.com/rust-lang/crates.io-index"
# What the tools say when a registry does not answer. Everything else is a failure.
UNREACHABLE = (
    *("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ERR_SOCKET_TIMEOUT"),  # npm
    *("no such host", "connection refused", "i/o timeout", "dial tcp"),  # go
    *("Could not resolve host", "Couldn't resolve host", "spurious network error"),  # cargo
    *("No matching distribution found", "Failed to establish a new connection"),  # pip
)  # fmt: skip


@dataclass(frozen=True)
class Client:
    """One client library."""

    name: str
    build: Callable[[Path], list[str | Path]]  # in a directory of its own; returns the start of a command
    compresses: bool = False  # whether the command takes `true` or `false` for compression
    path: str = "/v1/subscribe"  # what follows the port in the URL that it is given
    compressed_path: str = "/subscribe"  # the same if it asks for compression
    # Which events it asks for again when it reconnects: the last one, none, or all from its first cursor on.
    repeats: Literal["last", "none", "all"] = "none"
    # What it hands on of an event, where that is not all of it.
    shows: Callable[[Event], Event] = lambda event: event

    def command(
        self, built: list[str | Path], port: int, cursor: int, collections: Iterable[str], *, compress: bool
    ) -> list[str | Path]:
        """Return the command to run it. A cursor of 0 means live.

        A client that asks for compression as v1 clients do gets the v1 wire at `/subscribe` too.
        """
        url = f"ws://127.0.0.1:{port}{self.compressed_path if compress else self.path}"
        mode = [str(compress).lower()] if self.compresses else []
        return [*built, url, *mode, str(cursor), *collections]


def run(*command: str | Path, cwd: Path, **environment: str) -> None:
    """Run a step of a build. Skip the test if a registry does not answer."""
    if shutil.which(command[0]) is None:
        missing(str(command[0]))
    done = subprocess.run(
        command, cwd=cwd, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    if done.returncode and any(text in done.stderr for text in UNREACHABLE):
        pytest.skip(f"a package registry does not answer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr


def node(program: str) -> Callable[[Path], list[str | Path]]:
    """Return what builds a program of `node`, with the packages that are locked beside it."""
    source = HERE / "node" / program

    def build(directory: Path) -> list[str | Path]:
        for path in (*source.parent.glob("package*.json"), source):
            shutil.copy(path, directory)
        run("npm", "ci", "--no-audit", "--no-fund", cwd=directory)
        return ["node", directory / source.name]

    return build


def go(modules: str, package: str = ".") -> Callable[[Path], list[str | Path]]:
    """Return what builds a package with the modules that are locked in a directory of `go`."""

    def build(directory: Path) -> list[str | Path]:
        for path in (HERE / "go" / "main.go", *(HERE / "go" / modules).iterdir()):
            shutil.copy(path, directory)
        run("go", "build", "-o", "client", package, cwd=directory)
        return [directory / "client"]

    return build


def rust(directory: Path) -> list[str | Path]:
    """Build the program. Its lock file is kept without addresses, and cargo wants one for each package."""
    shutil.copytree(HERE / "rust", directory, dirs_exist_ok=True)
    lock = directory / "Cargo.lock"
    source = f'source = "registry+{CRATES}"\nchecksum = '
    lock.write_text(lock.read_text().replace("checksum = ", source))
    run("cargo", "build", "--locked", cwd=directory)
    return [directory / "target" / "debug" / "client"]


def python(directory: Path) -> list[str | Path]:
    """Unpack the wheel of the library, which only its own Python, 3.14, would install."""
    library = directory / "library"
    # A venv that uv made has no pip of its own.
    pip = (sys.executable, "-m", "pip") if find_spec("pip") else ("pip3",)
    options = ("download", "--quiet", "--no-deps", "--only-binary=:all:", "--python-version")
    run(*pip, *options, "3.14", "atproto-jetstream==0.3.0", cwd=directory)
    if sys.version_info < (3, 14):
        own = f"{sys.version_info.major}.{sys.version_info.minor}"
        run(*pip, *options, own, "backports.zstd==1.8.0", cwd=directory)
    for wheel in directory.glob("*.whl"):
        shutil.unpack_archive(wheel, library, "zip")
    return [sys.executable, HERE / "python" / "client.py", library]


def environment(requirements: str, directory: Path) -> Path:
    """Install the packages of a file into an environment of their own. Returns its Python."""
    run(sys.executable, "-m", "venv", "environment", cwd=directory)
    interpreter = directory / "environment" / "bin" / "python"
    packages = HERE / "python" / requirements
    run(interpreter, "-m", "pip", "install", "--quiet", "--only-binary=:all:", "-r", packages, cwd=directory)
    return interpreter


def atproto(directory: Path) -> list[str | Path]:
    return [environment("atproto.txt", directory), HERE / "python" / "atproto_v2.py"]


def truewire(directory: Path) -> list[str | Path]:
    return [environment("truewire.txt", directory), HERE / "python" / "truewire_v1.py"]


def with_cid(event: Event) -> Event:
    """Return what the program with `atproto` shows of an event."""
    commit = {name: value for name, value in event.get("commit", {}).items() if name != "record"}
    return event | ({"commit": commit} if commit else {})


def without_dates(event: Event) -> Event:
    """Return what the program with `truewire-bluesky` shows of an event."""
    kind = event["kind"]
    return event | {kind: {name: value for name, value in event[kind].items() if name != "time"}}


def without_record(event: Event) -> Event:
    """Return what the Rust program shows of an event."""
    kind = event["kind"]
    names = {"commit": ("collection", "operation", "rev", "rkey")}.get(kind, ("seq",))
    part = {name: value for name, value in event[kind].items() if name in names}
    return {name: event[name] for name in ("did", "time_us", "kind") if name in event} | {kind: part}


CLIENTS = [
    Client("@skyware/jetstream 0.2.5", node("skyware.mjs"), repeats="last"),
    # It always uses /subscribe, and sends an options_update.
    Client("@atcute/jetstream 2.0.0", node("atcute.mjs"), path="", repeats="last"),
    # A browser's EventSource. Its `fetch` asks for gzip.
    Client("eventsource 4.1.1", node("eventsource.mjs"), path="/events"),
    Client("Go pkg/client of 2024-10-31", go("2024-10-31"), compresses=True),
    Client("Go pkg/client of 2025-10-09", go("2025-10-09"), compresses=True),
    Client("jetstream-oxide 0.1.2", rust, compresses=True, repeats="all", shows=without_record),
    Client("atproto-jetstream 0.3.0", python, compresses=True),
    Client("truewire-bluesky 0.1.0", truewire, shows=without_dates),
    Client("atproto 0.0.73", atproto, compresses=True, path="/xrpc", compressed_path="/xrpc", shows=with_cid),
]
