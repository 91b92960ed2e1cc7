"""`jetstream simulate` and `jetstream record`, as processes of their own."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import libipld
import pytest
from websockets.asyncio.client import connect

from jetstream.simulator import recording, server
from jetstream.testing import network, simulated_network

__all__ = ["network"]

SMALL = ["--repos", "10", "--records", "5"]


async def run(*arguments: str) -> tuple[int, str]:
    """Run a command to its end. Return its exit code and its standard error."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "jetstream", *arguments, stderr=asyncio.subprocess.PIPE
    )
    _, output = await process.communicate()
    assert process.returncode is not None
    return process.returncode, output.decode()


@asynccontextmanager
async def simulating(*arguments: str) -> AsyncIterator[str]:
    """Run `jetstream simulate` on a free port while the block runs, and give the address of its firehose."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jetstream", "simulate", "--port", "0", *arguments),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert process.stderr is not None
    up = json.loads(await process.stderr.readline())
    yield up["read_with"].rpartition(" ")[2] + server.SUBSCRIBE
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert process.returncode == 0


async def test_the_same_seed_writes_the_same_files(tmp_path: Path) -> None:
    written = []
    for name in ("first", "second"):
        folder = tmp_path / name
        folder.mkdir()
        files = {kind: folder / kind for kind in ("record", "truth", "ledger")}
        flags = [text for kind, path in files.items() for text in (f"--{kind}", str(path))]
        code, output = await run(
            *("simulate", "--no-serve", "--seed", "7", "--events", "300", *SMALL, *flags),
            *("--fault.skip", "0.1", "--fault.garbage", "0.1"),
        )
        assert code == 0, output
        written.append({path.name: path.read_bytes() for path in folder.iterdir()})
    first, second = written
    assert first == second
    assert set(first) == {"record", "record.dids.json", "truth", "ledger"}
    assert len(first["truth"].splitlines()) >= 250
    assert {json.loads(line)["fault"] for line in first["ledger"].splitlines()} == {"skip", "garbage"}


async def test_several_relays_and_pdses_are_served_and_announced(tmp_path: Path) -> None:
    ledger, verdicts = tmp_path / "ledger", tmp_path / "verdicts"
    flags = ["--relay", "name=a,loss=0.2", "--relay", "name=b,loss=0.2,seq=900", "--losses", "disjoint"]
    files = ["--ledger", str(ledger), "--verdicts", str(verdicts)]
    world = ["--seed", "3", "--events", "100", "--rate", "0", "--pds", "2", "--rotations", "0.1", *SMALL]
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "jetstream", "simulate", "--port", "0", *flags, *files, *world),
        stderr=asyncio.subprocess.PIPE,
        env=os.environ | {"NO_COLOR": "1"},
    )
    assert process.stderr is not None
    up = json.loads(await process.stderr.readline())
    start = "jetstream serve --upstream "
    named = {name: command.removeprefix(start) for name, command in up["read_with"].items()}
    assert list(named) == ["a", "b"]
    assert all(url.startswith("ws://127.0.0.1:") for url in named.values())
    assert len({*named.values(), *up["pds"]}) == 4
    sent = []
    for url in named.values():
        # What comes after the first message is not read, and would hold up the close.
        async with connect(url + server.SUBSCRIBE + "?cursor=0", max_size=None, close_timeout=0.1) as ws:
            sent.append(libipld.decode_dag_cbor_multi(await ws.recv(decode=False))[1]["seq"])
    process.send_signal(signal.SIGTERM)
    await process.communicate()
    assert (process.returncode, sent) == (0, [1, 901])
    lost = [json.loads(line) for line in ledger.read_bytes().splitlines()]
    assert {(line["relay"], line["fault"]) for line in lost} == {("a", "loss"), ("b", "loss")}
    assert {json.loads(line)["relay"] for line in verdicts.read_bytes().splitlines()} == {"a", "b"}


async def test_a_recording_is_replayed_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "frames.bin.zst"
    code, output = await run(
        "simulate", "--no-serve", "--seed", "7", "--events", "2000", "--record", str(path), *SMALL
    )
    assert code == 0, output
    recorded = list(recording.read(path))
    assert len(recorded) == 2000
    for flags in (["--rate", "0"], ["--rate", "0", "--in-memory"], ["--rate", "20000"]):
        async with simulating("--replay", str(path), *flags) as url, connect(url) as ws:
            assert [await ws.recv() for _ in recorded] == recorded
            async with connect(f"{url}?cursor=1990") as later:
                assert [await later.recv() for _ in range(10)] == recorded[1990:]


async def test_a_recording_has_the_keys_of_the_past(tmp_path: Path) -> None:
    """Keys are also rotated by chance. A replay serves the newest document of each account all the same."""
    path = tmp_path / "frames.bin.zst"
    world = ["--seed", "7", "--events", "1000", "--rotations", "0.01", *SMALL]
    code, output = await run("simulate", "--no-serve", "--record", str(path), *world)
    assert code == 0, output
    assert await run("verify", str(path)) == (0, "")
    found = recording.read_documents(path)
    rotated = [did for did, each in found.items() if isinstance(each, list)]
    assert 0 < len(rotated) < len(found)
    async with simulating("--replay", str(path)) as url, aiohttp.ClientSession() as http:
        base = "http" + url.removeprefix("ws").removesuffix(server.SUBSCRIBE)
        for did in rotated:
            async with http.get(f"{base}/{did}") as answer:
                assert (await answer.json(content_type=None))["id"] == did


async def test_a_world_without_a_seed_is_a_new_one_each_time() -> None:
    firsts = []
    for _ in range(2):
        async with simulating("--rate", "0", *SMALL) as url, connect(url, max_queue=None) as ws:
            firsts.append(await ws.recv())
    assert firsts[0] != firsts[1]


async def test_it_sends_as_many_messages_as_asked_for_and_then_is_silent() -> None:
    async with simulating("--rate", "0", "--events", "20", *SMALL) as url, connect(url) as ws:
        numbers = [libipld.decode_dag_cbor_multi(await ws.recv(decode=False))[1]["seq"] for _ in range(20)]
        await (await ws.ping())  # whatever is sent after the last frame has come before the pong
        assert numbers == list(range(1, 21))
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(ws.recv(), 0)


async def test_a_running_firehose_is_recorded_with_its_documents(tmp_path: Path) -> None:
    path = tmp_path / "frames.bin.zst"
    network = simulated_network()
    async with network.serving():
        network.emit(60)
        upstream = network.firehose_url.removesuffix(server.SUBSCRIBE)
        code, output = await run(
            *("record", str(path), "--upstream", upstream, "--frames", "50", "--cursor", "0"),
            *("--directory", network.url),
        )
    assert code == 0, output
    recorded = list(recording.read(path))
    assert [recording.seq_of(frame) for frame in recorded] == list(range(1, 51))
    documents = recording.read_documents(path)
    wanted = {did for did in recording.dids_of(recorded) if did.startswith("did:plc:")}
    assert wanted
    assert wanted <= set(documents)


async def test_a_firehose_that_ends_too_soon_is_reported_and_its_frames_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "frames.bin.zst"
    network = simulated_network()
    async with network.serving():
        network.emit(5, faults=["error_frame"])
        code, output = await run("record", str(path), "--upstream", network.firehose_url, "--cursor", "0")
    assert code == 1
    assert "ended after 2 of 10000 frames" in output
    assert len(list(recording.read(path))) == 2


@pytest.mark.parametrize(
    ("arguments", "code", "output"),
    [
        (["simulate", "--no-serve"], 2, "needs --events"),
        (["simulate", "--port", "0", "--host", "256.0.0.1", *SMALL], 1, "256.0.0.1"),
    ],
)
async def test_a_process_that_fails_prints_one_line(arguments: list[str], code: int, output: str) -> None:
    got, line = await run(*arguments)
    assert (got, line.count("\n")) == (code, 1), line
    assert output in line
