"""Tap, which keeps copies of repositories: how it is run, and what it has stored."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import NamedTuple

import orjson
from aiohttp import web
from tests.plc import http_server
from tests.programs import program

from jetstream.atproto import mst
from jetstream.testing import SimulatedNetwork


class Repository(NamedTuple):
    """One repository at its end."""

    status: str  # "active", or why it is not
    root: str  # the CID of its tree
    records: dict[str, str]  # CIDs by path


class Tap:
    """A running Tap. It writes all that it knows into a database."""

    def __init__(self, database: Path) -> None:
        self._database = database

    def roots(self) -> dict[str, tuple[str, str]]:
        """Return the status and the root of each repository."""
        return {did: (status, root) for did, status, root in self._rows("did, status, prev_data", "repos")}

    def has_cursor(self) -> bool:
        """Return whether it has stored where to resume the firehose."""
        return bool(list(self._rows("cursor", "firehose_cursors")))

    def repositories(self) -> dict[str, Repository]:
        found = {did: Repository(status, root, {}) for did, (status, root) in self.roots().items()}
        for did, collection, rkey, cid in self._rows("did, collection, rkey, cid", "repo_records"):
            found[did].records[f"{collection}/{rkey}"] = cid
        return found

    def _rows(self, columns: str, table: str) -> Iterator[tuple[str, ...]]:
        with closing(sqlite3.connect(f"file:{self._database}?mode=ro", uri=True)) as connection:
            yield from connection.execute(f"SELECT {columns} FROM {table}")


@asynccontextmanager
async def running(executable: str | Path, network: SimulatedNetwork, directory: Path) -> AsyncIterator[Tap]:
    """Let Tap follow all of a network. At first it fetches each repository."""
    database = directory / "tap.db"
    async with documents(network) as plc_url:
        command = {
            "relay-url": network.url,
            "plc-url": plc_url,
            "db-url": f"sqlite://{database}",
            "bind": "127.0.0.1:0",
            "full-network": "true",
            "disable-acks": "true",
            "cursor-save-interval": "20ms",  # it resumes there after each lost connection
        }
        flags = [f"--{name}={value}" for name, value in command.items()]
        async with program(executable, "run", *flags, stdout=asyncio.subprocess.DEVNULL):
            await network.wait_subscribed()
            yield Tap(database)


@asynccontextmanager
async def documents(network: SimulatedNetwork) -> AsyncIterator[str]:
    """Serve the DID documents of a network without handles: Tap would ask DNS for each of these names."""

    async def handle(request: web.Request) -> web.StreamResponse:
        document = network.world.document(request.path.removeprefix("/"), network.url)
        if document is None:
            raise web.HTTPNotFound
        return web.Response(body=orjson.dumps(document | {"alsoKnownAs": []}))

    async with http_server(handle) as port:
        yield f"http://127.0.0.1:{port}"


def repositories(network: SimulatedNetwork) -> dict[str, Repository]:
    """Return the repositories of a network as they are now."""
    return {
        account.did: Repository(
            "active" if account.active else str(account.status),
            str(account.repo.tree.cid),
            {path.decode(): str(cid) for path, cid in mst.items(account.repo.tree)},
        )
        for account in network.world.all_accounts.values()
        if account.status != "deleted"
    }


def roots(network: SimulatedNetwork) -> dict[str, tuple[str, str]]:
    """Return the status and the root of each repository of a network."""
    return {did: (status, root) for did, (status, root, _) in repositories(network).items()}
