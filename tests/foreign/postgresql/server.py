"""A PostgreSQL server on a free port, that a test may stop, kill and promote."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from jetstream.cluster.members import Member
from jetstream.cluster.ports import free_ports
from jetstream.cluster.postgres import Postgres

# Durability is tested with processes that are killed, not with power that is lost.
_QUICK: Final = {
    "fsync": "off",
    "full_page_writes": "off",
    "synchronous_commit": "on",
    "max_connections": "200",
}


class Server(Postgres):
    """One server, or a standby of it."""

    def __init__(self, directory: Path, binaries: Path, settings: dict[str, str], number: int = 1) -> None:
        member = Member("postgres", number, free_ports(1)[0], {**_QUICK, **settings})
        super().__init__(member, directory, binaries)

    def standby(self) -> Server:
        """Return a replica of this server, running."""
        copy = Server(self.directory, self.binaries, {}, self.member.number + 1)
        copy.copy(self)
        copy.start()
        return copy


@contextmanager
def running(binaries: Path, **settings: str) -> Iterator[Server]:
    """Run a new server."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-postgresql-"))
    directory.chmod(0o711)  # for the user as whom it runs where the tests run as root
    server = Server(directory, binaries, settings)
    try:
        server.create()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory, ignore_errors=True)
