"""Commits with their signatures, and servers that have the keys of their accounts.

The recording is a simulated network of a few accounts with many records each, so that commits are as long (5
kB) as real ones. Each commit follows the one before it in its repository.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Final

from benches.frames import DIRECTORY, POPULATION, START_US
from benches.relay_process import RelayProcess
from benches.stand import NOWHERE, Server, served

from jetstream.atproto.compact_did import compact_did
from jetstream.identity.documents import document_key
from jetstream.identity.held import pack_key
from jetstream.identity.store import KeyStore
from jetstream.simulator import frames, recording
from jetstream.simulator.world import SteadyClock, World

FILE: Final = DIRECTORY / "commits.bin.zst"
COUNT: Final = 60_000
_STEP_US: Final = 500


def recorded() -> Path:
    """Return the recording. Make it first if there is none, in half a minute."""
    if not FILE.exists() or not recording.documents_path(FILE).exists():
        print(f"benches: simulating into {FILE}", flush=True)
        FILE.parent.mkdir(parents=True, exist_ok=True)
        # Without rotations, so that one document tells each key.
        world = World(replace(POPULATION, lifecycle=0), 1, SteadyClock(START_US, _STEP_US))
        documents = {account.did: world.document(account.did, "") for account in world.accounts}
        with recording.writing(FILE) as add:
            for seq, message in enumerate(islice(world.messages(), COUNT), 1):
                add(frames.encode(message, seq))
        recording.write_documents(FILE, documents)
    return FILE


@contextmanager
def verifying(relays: int, *options: str) -> Iterator[tuple[Sequence[RelayProcess], Server]]:
    """Start relays, each of which sends the recording once, and a server that verifies all of it.

    The server has all keys, and nobody to ask for one. At the end, stop all, and remove the server's data.
    """
    directory = Path(tempfile.mkdtemp(prefix="jetstream-bench-"))
    try:
        write_keys(recorded(), directory)
        sources = [RelayProcess(recorded(), 0) for _ in range(relays)]
        settings = ["--verify", "full", "--unresolved", "drop", *options]
        settings += ["--plc-url", f"http://{NOWHERE}"]
        with served(sources, directory, settings) as server:
            yield sources, server
    finally:
        shutil.rmtree(directory)


def write_keys(file: Path, data_dir: Path) -> None:
    """Write the keys of a recording's accounts where a server with this data directory finds them."""
    store = KeyStore(data_dir)
    documents = recording.read_documents(file)
    keys = {did: pack_key(document_key(did, document)) for did, document in documents.items()}
    store.write((compact_did(did), key, int(time.time()), "") for did, key in keys.items())
    store.close()
