"""A server of PostgreSQL, of the programs that the machine has: created, killed, promoted, copied.

PostgreSQL refuses to run as root. There it runs as the user `nobody`, who owns its directory.
"""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Final

from jetstream.cluster.members import HOST, Member
from jetstream.cluster.process import MemberFailed, Process
from jetstream.errors import JetstreamError

PROGRAMS: Final = ("initdb", "postgres", "pg_basebackup", "pg_ctl", "pg_isready")
_VERSIONS: Final = Path("/usr/lib/postgresql")  # where Debian has one directory for each
_OLDEST: Final = 15
USER: Final = "nobody"  # as whom it runs where this process is root
START_S: Final = 60.0
_COPY_S: Final = 120.0
_LOOK_S: Final = 0.05
_INITDB: Final = ("-U", "postgres", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
_ACCESS: Final = f"host replication all {HOST}/32 trust\n"
_MISSING: Final = (
    "PostgreSQL {version} or later is not installed: there is no {what} in PATH or in"
    " /usr/lib/postgresql/*/bin. Install its server (Debian, Ubuntu: apt install postgresql;"
    " Fedora: dnf install postgresql-server; macOS: brew install postgresql)"
)


class PostgresMissing(JetstreamError):
    """The machine has no PostgreSQL that can be used."""


def find_binaries(path: str | None = None, versions: Path = _VERSIONS) -> Path:
    """Return the directory of PostgreSQL's programs: of the newest one that Debian has, else in PATH.

    Raises PostgresMissing.
    """
    found = [each for each in versions.glob("*/bin") if each.parent.name.isdigit() and _whole(each)]
    newest = max(found, key=lambda each: int(each.parent.name), default=None)
    if newest is not None and int(newest.parent.name) >= _OLDEST:
        return newest
    initdb = shutil.which("initdb", path=path)
    if initdb is not None and _whole(directory := Path(initdb).resolve().parent):
        return directory
    raise PostgresMissing(_MISSING.format(version=_OLDEST, what="initdb" if initdb is None else "whole set of programs"))


def _whole(directory: Path) -> bool:
    return all((directory / name).exists() for name in PROGRAMS)


class Postgres(Process):
    """A server of PostgreSQL. The settings of the member are in its `postgresql.conf`.

    So `ALTER SYSTEM` works, and a copy has them, too.
    """

    stop_signal = signal.SIGINT  # at once, but in good order: sessions are closed
    orphan_signal = signal.SIGQUIT  # its own processes end, too

    def __init__(self, member: Member, directory: Path, binaries: Path) -> None:
        super().__init__(member, directory)
        self._binaries = binaries
        # Its own directory, with its data and its socket.
        self.home = directory / self.name
        self.data = self.home / "data"

    @property
    def url(self) -> str:
        """Its address, as PostgreSQL's programs take it."""
        return self.address

    @property
    def address(self) -> str:
        """Its address alone, for `--log`."""
        return f"postgresql://postgres@{HOST}:{self.port}/postgres"

    @property
    def created(self) -> bool:
        """Whether it has data."""
        return (self.data / "PG_VERSION").exists()

    @property
    def is_standby(self) -> bool:
        """Whether it follows another server, or does when it is started."""
        return (self.data / "standby.signal").exists()

    @property
    def timeline(self) -> int:
        """How often a standby of its line was promoted, plus one."""
        names = [path.name for path in self.data.glob("pg_wal/*.history")]
        return max((int(name[:8], 16) for name in names), default=1)

    def create(self) -> None:
        """Make a new primary. Raises MemberFailed."""
        _make(self.home)
        self.run("initdb", "-D", str(self.data), *_INITDB)
        _append(self.data / "pg_hba.conf", _ACCESS)
        _append(self.data / "postgresql.conf", configuration(self.member.settings))

    def copy(self, primary: Postgres) -> None:
        """Make it a standby of another server, which must run. What it had is removed. Raises MemberFailed."""
        _make(self.home)
        shutil.rmtree(self.data, ignore_errors=True)
        self.run(
            "pg_basebackup", "-h", HOST, "-p", str(primary.port), "-U", "postgres", "-D", str(self.data),
            "-R", "-X", "stream", "-c", "fast", "--no-sync", within_s=_COPY_S,
        )  # fmt: skip

    def promote(self) -> None:
        """Make a standby that runs the primary, and wait until it is. Raises MemberFailed."""
        self.run("pg_ctl", "-D", str(self.data), "-w", "promote")

    def command(self) -> list[str]:
        """Return the command line."""
        here = ["-D", str(self.data), "-p", str(self.port), "-k", str(self.home), "-h", HOST]
        return [str(self._binaries / "postgres"), *here, "-c", f"cluster_name={self.name}", *self.member.arguments]

    def spawn(self) -> None:
        """Start it, and do not wait until it is ready. It ends with this thread, which should be the main one."""
        assert not self.running, f"{self.name} runs"
        self._forget_last()
        self._popen(self.command(), {**os.environ, **self.member.environment}, cwd=self.home, **_as_user())

    def start(self) -> None:
        """Start it, and wait until it answers. Raises MemberFailed."""
        self.spawn()
        self.wait_ready()

    @property
    def answers(self) -> bool:
        """Whether it takes connections."""
        command = self._command("pg_isready", "-q", "-h", HOST, "-p", str(self.port))
        return subprocess.run(command, check=False, cwd=self.home, **_as_user()).returncode == 0  # noqa: S603

    def wait_ready(self, within_s: float = START_S) -> None:
        """Wait until it takes connections. Raises MemberFailed."""
        until = time.monotonic() + within_s
        while not self.answers:
            if not self.running or time.monotonic() > until:
                why = self.how_ended or f"it does not answer within {within_s:g} s"
                raise MemberFailed(f"{self.name}: {why}; its log ends: {' | '.join(self.last_lines())}")
            time.sleep(_LOOK_S)

    def kill(self, *, expected: bool = False) -> None:
        """Kill it with all its sessions, and wait for their end."""
        pids = self._pids()
        super().kill(expected=expected)
        while any(_runs_in(pid, self.data) for pid in pids):
            time.sleep(_LOOK_S)

    def _pids(self) -> list[int]:
        """Return the IDs of its processes: sessions are processes of their own, in the directory of data."""
        own = super()._pids()
        return [*own, *(pid for pid in _processes() if pid not in own and _runs_in(pid, self.data))]

    def _forget_last(self) -> None:
        """Remove the locks of a process that was killed: another process may have its ID by now."""
        if self._process is not None and not any(_runs_in(pid, self.data) for pid in _processes()):
            (self.data / "postmaster.pid").unlink(missing_ok=True)
            (self.home / f".s.PGSQL.{self.port}.lock").unlink(missing_ok=True)

    def _command(self, name: str, *arguments: str) -> list[str]:
        return [str(self._binaries / name), *arguments]

    def run(self, name: str, *arguments: str, within_s: float = START_S) -> None:
        """Run one of PostgreSQL's programs. Raises MemberFailed, with what it wrote."""
        command = self._command(name, *arguments)
        try:
            done = subprocess.run(  # noqa: S603 - a program of PostgreSQL
                command, check=False, capture_output=True, text=True, cwd=self.home, timeout=within_s, **_as_user()
            )
        except (OSError, subprocess.TimeoutExpired) as error:
            raise MemberFailed(f"{self.name}: {name} failed: {error}") from error
        if done.returncode != 0:
            raise MemberFailed(f"{self.name}: {name} failed: {' '.join(done.stderr.split())}")


def configuration(settings: Mapping[str, str | Sequence[str]]) -> str:
    """Return settings as lines of `postgresql.conf`."""
    texts = {name: str(value).replace("'", "''") for name, value in settings.items()}
    return "".join(f"{name} = '{text}'\n" for name, text in texts.items())


@contextmanager
def running(binaries: Path, directory: Path, port: int, **settings: str) -> Iterator[Postgres]:
    """Run a new server of its own while the block runs."""
    server = Postgres(Member("postgres", 1, port, settings), directory, binaries)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.kill()


def check_access(directory: Path) -> None:
    """Raise MemberFailed if PostgreSQL's user cannot reach a directory."""
    if os.getuid() != 0:
        return
    for each in (directory, *directory.parents):
        if not each.stat().st_mode & 0o001:
            raise MemberFailed(
                f"{each} is closed to the user {USER}, as whom PostgreSQL runs where this command is root:"
                f" choose another directory, run `chmod o+x {each}`, or do not be root"
            )


def _as_user() -> dict[str, Any]:
    """Return the arguments of `subprocess` with which PostgreSQL is not root."""
    if os.getuid() != 0:
        return {}
    user = pwd.getpwnam(USER)
    return {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": []}


def _make(home: Path) -> None:
    """Make the directory of a server, for the user as whom it runs."""
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if os.getuid() == 0:
        user = pwd.getpwnam(USER)
        os.chown(home, user.pw_uid, user.pw_gid)


def _append(file: Path, text: str) -> None:
    with file.open("a") as open_file:
        open_file.write(text)


def _processes() -> list[int]:
    """Return the IDs of all processes; without /proc, none."""
    with suppress(OSError):
        return [int(name) for name in os.listdir("/proc") if name.isdigit()]
    return []


def _runs_in(pid: int, directory: Path) -> bool:
    """Tell whether the working directory of a process is this one."""
    try:
        return Path(f"/proc/{pid}/cwd").readlink() == directory
    except OSError:
        return False
