"""A server that verifies is killed again and again while messages wait for keys: none is lost or repeated."""

from __future__ import annotations

import asyncio
import json
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from tests.crash.test_server_kills import received
from tests.programs import jetstream, simulated_relay

from jetstream.admission.message import did_of
from jetstream.atproto.compact_did import compact_did
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.simulator.recording import read
from jetstream.upstream.envelope import read_envelope
from jetstream.verify.chain import State

RATE: Final = 3_000
RUN_S: Final = (0.3, 1.5)
ACCOUNTS: Final = 1_500
FRAMES_EACH: Final = 1_500
WAITING: Final = 1_000  # so many messages wait at least once
Event = dict[str, Any]


class Directory(ThreadingHTTPServer):
    """Answers with the documents of a recording, each after a random time of up to `slow_s` seconds."""

    daemon_threads = True
    slow_s = 0.0
    documents: dict[str, Any]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Directory

    def do_GET(self) -> None:
        did, _, audit = self.path.strip("/").partition("/")
        known = self.server.documents.get(did)
        # Of an account that has rotated its key, the recording has the audit log.
        log = known if isinstance(known, list) else None
        document = log if audit else _document(did, log[-1]["operation"]) if log else known
        time.sleep(random.uniform(0, self.server.slow_s))
        body = json.dumps(document).encode()
        self.send_response(404 if document is None else 200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Say nothing."""


def _document(did: str, operation: Event) -> Event:
    """Return the document that an operation makes."""
    key = operation["verificationMethods"]["atproto"].removeprefix("did:key:")
    method = {"id": f"{did}#atproto", "type": "Multikey", "controller": did, "publicKeyMultibase": key}
    return {"id": did, "verificationMethod": [method]}


@contextmanager
def directory(documents: dict[str, Any]) -> Iterator[Directory]:
    with Directory(("127.0.0.1", 0), _Handler) as server:
        server.documents = documents
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def record(tmp_path: Path, frames: int) -> tuple[Path, list[Event], dict[str, Any]]:
    """Return recorded frames, the events that are in them, and the documents of their accounts."""
    recording, truth = tmp_path / "frames.bin.zst", tmp_path / "truth.jsonl"
    command = [sys.executable, "-m", "jetstream", "simulate", "--no-serve", "--seed", "7", "--records", "2"]
    command += ["--repos", str(ACCOUNTS), "--events", str(frames), "--record", str(recording)]
    subprocess.run([*command, "--truth", truth], check=True, capture_output=True)
    documents = json.loads(Path(f"{recording}.dids.json").read_bytes())
    return recording, [json.loads(line) for line in truth.read_bytes().splitlines()], documents


def by_account(events: list[Event]) -> dict[str, list[Event]]:
    """Return the events of each account, in order."""
    accounts: dict[str, list[Event]] = defaultdict(list)
    for event in events:
        accounts[event["did"]].append({name: value for name, value in event.items() if name != "time_us"})
    return accounts


def last_revs(recording: Path) -> dict[str, str | None]:
    """Return the rev that each repository must have after these frames; None: it was deleted."""
    revs: dict[str, str | None] = {}
    for frame in read(recording):
        message = read_envelope(frame)
        fields = message.fields
        if message.type in {"commit", "sync"}:
            revs[did_of(message)] = max(fields["rev"], revs.get(did_of(message)) or "")
        elif message.type == "account" and fields.get("status") == "deleted":
            revs[fields["did"]] = None
    return revs


async def stored_revs(data: Path, dids: set[str]) -> dict[str, str | None]:
    """Return the rev of each repository in the log."""
    log = await SqliteLog.open(data)
    packed = {did: log.repo(compact_did(did)) for did in dids}
    cursors = log.cursors
    await log.close()
    assert [each.unstored for each in cursors.values()] == [()]
    return {did: None if each is None else State.unpacked(each).rev for did, each in packed.items()}


def waiting(address: str) -> int:
    """Return how many messages wait in a server."""
    with urllib.request.urlopen(f"http://{address}/health") as response:
        return int(json.load(response)["waiting"])


@pytest.mark.timeout(1200)
def test_a_killed_server_loses_nothing_that_waited(tmp_path: Path, kills: int) -> None:
    kills = (kills + 1) // 2  # each takes seconds, in which a thousand keys come to be waited for
    recording, truth, documents = record(tmp_path, FRAMES_EACH * kills)
    data, dice, most = tmp_path / "data", random.Random(kills), 0
    with (
        simulated_relay("--replay", recording, "--rate", str(RATE)) as upstream,
        directory(documents) as keys,
    ):
        serve: list[str | Path] = [
            "serve",
            "--upstream",
            upstream,
            "--listen",
            "127.0.0.1:0",
            "--data-dir",
            data,
        ]
        serve += ["--forget", "none", "--log-format", "json", "--verify", "full", "--unresolved", "drop"]
        serve += ["--plc-rate", "10000", "--plc-url", f"http://127.0.0.1:{keys.server_port}"]
        keys.slow_s = 4.0
        for _ in range(kills):
            with jetstream(*serve, awaited="listening") as (server, facts):
                time.sleep(dice.uniform(*RUN_S))
                most = max(most, waiting(urlsplit(facts["subscribe"]).netloc))
                server.send_signal(signal.SIGKILL)
                server.wait()
        keys.slow_s = 0.0
        with jetstream(*serve, awaited="listening") as (server, facts):
            address = urlsplit(facts["subscribe"]).netloc
            events = received(address, len(truth))
            server.send_signal(signal.SIGINT)
            server.wait()
    got, wanted = by_account(events), by_account(truth)
    # Not compared as a whole: it would take minutes to show how they differ.
    differing = [did for did in wanted.keys() | got.keys() if got.get(did) != wanted.get(did)]
    assert [(did, got.get(did, [])[:3], wanted.get(did, [])[:3]) for did in differing[:2]] == []
    assert most > WAITING
    revs = last_revs(recording)
    stored = asyncio.run(stored_revs(data, set(revs)))
    assert [(did, stored[did], rev) for did, rev in revs.items() if stored[did] != rev] == []
