"""A server that is killed again and again, while a relay sends 5,000 frames a second, loses nothing."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import pytest
from tests.programs import jetstream, simulated_relay
from websockets.sync.client import connect

RATE: Final = 5_000
RUN_S: Final = (0.02, 0.7)
FRAMES_EACH: Final = 1_500  # so many more than are sent between two kills that the stream does not run dry
QUIET_S: Final = 60.0  # for the last server to catch up


@pytest.fixture
def recording(tmp_path: Path, kills: int) -> tuple[Path, list[Any]]:
    """Frames, and the events that are in them."""
    frames, truth = tmp_path / "frames.bin.zst", tmp_path / "truth.jsonl"
    command = [sys.executable, "-m", "jetstream", "simulate", "--no-serve", "--seed", "7"]
    command += ["--repos", "300", "--records", "5", "--events", str(FRAMES_EACH * kills)]
    subprocess.run([*command, "--record", frames, "--truth", truth], check=True, capture_output=True)
    return frames, [json.loads(line) for line in truth.read_bytes().splitlines()]


def test_a_killed_server_serves_each_event_once(
    tmp_path: Path, kills: int, recording: tuple[Path, list[Any]]
) -> None:
    frames, truth = recording
    dice = random.Random(kills)
    with simulated_relay("--replay", frames, "--rate", str(RATE)) as upstream:
        serve: list[str | Path] = ["serve", "--upstream", upstream, "--listen", "127.0.0.1:0"]
        serve += ["--data-dir", tmp_path / "data", "--forget", "none", "--log-format", "json"]
        for _ in range(kills):
            with jetstream(*serve, awaited="listening") as (server, _):
                time.sleep(dice.uniform(*RUN_S))
                server.send_signal(signal.SIGKILL)
                server.wait()
        with jetstream(*serve, awaited="listening") as (_, facts):
            events = received(urlsplit(facts["subscribe"]).netloc, len(truth))
    times = [event.pop("time_us") for event in events]
    assert events == truth
    assert times == sorted(set(times))


def received(address: str, count: int) -> list[Any]:
    """Read a server's events from the oldest on, until there are `count`; and see that no more come."""
    with connect(f"ws://{address}/v1/subscribe?cursor=0", max_size=None, ping_interval=None) as socket:
        events = [json.loads(socket.recv(QUIET_S)) for _ in range(count)]
        with pytest.raises(TimeoutError):
            socket.recv(0.5)
    return events
