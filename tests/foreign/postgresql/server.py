"""A PostgreSQL server of Debian's binaries, on a free port, that a test may stop, kill and promote."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

_BINARIES: Final = Path("/usr/lib/postgresql")
_NOBODY: Final = 65534
# Durability is tested with processes that are killed, not with power that is lost.
_QUICK: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "200",
}


def binaries() -> Path | None:
    """Return the directory of the newest installed version's programs; None: none is installed."""
    versions = [path for path in _BINARIES.glob("*/bin") if (path / "initdb").exists()]
    return max(versions, key=lambda path: int(path.parent.name), default=None)


class Server:
    """One server. It runs as `nobody` where the tests run as root, which PostgreSQL refuses."""

    def __init__(self, programs: Path, directory: Path, **settings: str) -> None:
        self._programs = programs
        self.directory = directory
        self.data = directory / "data"
        self.port = _free_port()
        self.settings = {**_QUICK, **settings}
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def address(self) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/postgres"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def program(self, name: str, *arguments: str) -> list[str]:
        command = [str(self._programs / name), *arguments]
        if os.getuid() == 0:
            command = ["setpriv", f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", *command]
        return command

    def run(self, name: str, *arguments: str) -> None:
        subprocess.run(
            self.program(name, *arguments),
            check=True,
            cwd=self.directory,
            stdout=subprocess.DEVNULL,
            timeout=60,
        )

    def create(self) -> None:
        self.run(
            "initdb",
            "-D",
            str(self.data),
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--locale=C",
            "--no-sync",
        )
        with (self.data / "pg_hba.conf").open("a") as file:
            file.write("host replication all 127.0.0.1/32 trust\n")

    def start(self) -> None:
        options = [part for name, value in self.settings.items() for part in ("-c", f"{name}={value}")]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                self.program(
                    "postgres",
                    "-D",
                    str(self.data),
                    "-p",
                    str(self.port),
                    "-k",
                    str(self.directory),
                    *options,
                ),
                cwd=self.directory,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        self.wait_ready()

    def wait_ready(self) -> None:
        ready = self.program("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port))
        for _ in range(600):
            if subprocess.run(ready, cwd=self.directory, check=False).returncode == 0:
                return
            assert self._process is not None
            assert self._process.poll() is None, (self.directory / "log").read_text()
            time.sleep(0.05)
        raise TimeoutError("PostgreSQL does not answer")

    def stop(self) -> None:
        """End it in good order, but at once: sessions are closed."""
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """Kill it with all its sessions."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(30)
            self._process = None
            (self.data / "postmaster.pid").unlink(missing_ok=True)

    def freeze(self) -> None:
        """Stop all of its processes, which each have a session of their own."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        os.kill(self._process.pid, number)
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                _, parent, *_ = stat.read_text().rpartition(")")[2].split()
                if int(parent) == self._process.pid:
                    os.kill(int(stat.parent.name), number)

    def standby(self, name: str) -> Server:
        """Return a replica of this server, running."""
        directory = self.directory / name
        directory.mkdir()
        _give(directory)
        copy = Server(self._programs, directory, **self.settings, cluster_name=name)
        self.run(
            "pg_basebackup", "-h", "127.0.0.1", "-p", str(self.port), "-U", "postgres", "-D", str(copy.data),
            "-R", "-X", "stream", "-c", "fast", "--no-sync",
        )  # fmt: skip
        copy.start()
        return copy

    def promote(self) -> None:
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")


@contextmanager
def running(programs: Path, **settings: str) -> Iterator[Server]:
    """Run a new server."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-postgresql-"))
    _give(directory)
    server = Server(programs, directory, **settings)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)


def _give(directory: Path) -> None:
    if os.getuid() == 0:
        os.chown(directory, _NOBODY, _NOBODY)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
