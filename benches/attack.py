"""Attack a server as clients, accounts and a relay may. Check a reader and the server meanwhile.

python -m benches.attack [--seconds S] [--after S] [fragments deep info …]     (no name: all)

Each attack starts a server of its own, a relay that sends it 500 events/s, and one live reader, which checks
every event. After the flood the server is watched for a minute. The exit code is 1 when a limit was missed.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from benches import machine, signed
from benches.bad_relay import ACCOUNTS, DIDS, FLOODS, REPOS
from benches.floods import floods
from benches.frames import recorded
from benches.helper import Helper, arrived, reading
from benches.limits import Limit, report
from benches.stand import NOWHERE
from cyclopts import App, Parameter

from jetstream.bench import process
from jetstream.limits import UpstreamLimits, WebLimits

RATE: Final = 500
SECONDS: Final = 20.0
AFTER_S: Final = 60.0
WARM_UP_S: Final = 3.0
FOLLOWED_WAIT_S: Final = 90.0
STOP_TIMEOUT_S: Final = 20.0
FILES_FEW: Final = 256
SAMPLE_S: Final = 0.1
MIB: Final = 1 << 20

COMMON: Final = (
    Limit("turn_max_ms", 20),
    Limit("rss_max_mib", 400),
    Limit("rss_after_mib", 200),
    Limit("lost", 0),
    Limit("wrong", 0),
    Limit("largest_bytes", 1_000_000),
    Limit("log_mb", 1),
)
LIVE: Final = (Limit("p99_ms", 50), *COMMON)
# Uploaded lists are kept for an hour, so their memory is in use after the flood as well.
_LISTS_MIB: Final = WebLimits().did_lists_bytes_max / MIB
FULL: Final = tuple(
    replace(limit, value=limit.value + _LISTS_MIB) if limit.figure.startswith("rss_") else limit
    for limit in LIVE
)
# The bad relay sends no events, so there are no delays. What counts is how soon a good one is followed:
# after many connections without an event the server waits for up to 30 s.
AS_RELAY: Final = (Limit("followed_s", UpstreamLimits().backoff_max_s + 5), *COMMON)
# Attacks on a server that verifies.
VERIFYING: Final = {name for name, account in ACCOUNTS.items() if account.fresh}
LIMITS: Final[dict[str, tuple[Limit, ...]]] = {
    **dict.fromkeys((*floods(), *ACCOUNTS), LIVE),
    **dict.fromkeys(FLOODS, AS_RELAY),
    **dict.fromkeys(VERIFYING, COMMON),  # their revs are signed, so they do not tell when they were sent
    "silent": (*LIVE, Limit("let_in_s", 12)),
    "uploads": FULL,
}

Figures = dict[str, float]

app = App(name="attack", help="Attack a server, and check its limits.")


class Server:
    """`jetstream serve` with a probe in its event loop, its RSS sampled, and its log in a file."""

    def __init__(self, upstream: str, directory: Path, files: int | None, *options: str) -> None:
        self._turns = directory / "turns.json"
        self._log = directory / "log.jsonl"
        command = [sys.executable, "-m", "benches.turns_probe", str(self._turns), "serve"]
        command += ["--upstream", upstream, "--data-dir", str(directory / "data")]
        command += ["--listen", "127.0.0.1:0", "--log-format", "json", *options]

        def set_limit() -> None:
            if files is not None:
                resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))

        with self._log.open("wb") as log:
            self._process = subprocess.Popen(command, stderr=log, preexec_fn=set_limit)  # noqa: PLW1509 - it only sets a limit
        self.port = self._listening()
        self.rss_max = 0
        self._over = threading.Event()
        threading.Thread(target=self._sample, daemon=True).start()

    def _listening(self) -> int:
        while True:
            for line in self._log.read_bytes().splitlines():
                facts = json.loads(line)
                if facts["event"] == "listening":
                    return urlsplit(str(facts["subscribe"])).port or 0
            if self._process.poll() is not None:
                raise RuntimeError(f"the server has ended: {self._log.read_text()[-2000:]}")
            time.sleep(SAMPLE_S)

    def _sample(self) -> None:
        while not self._over.wait(SAMPLE_S):
            self.rss_max = max(self.rss_max, self.rss())

    def rss(self) -> int:
        """Return its resident memory in bytes; 0 when it is gone."""
        try:
            return process.memory_bytes(self._process.pid)
        except OSError:
            return 0

    def begin(self) -> None:
        """Start to measure turns, without those of the start-up."""
        self._turns.unlink(missing_ok=True)
        while not self._turns.exists():
            time.sleep(SAMPLE_S)

    def turns(self) -> dict[str, Any]:
        """Return what the probe has measured."""
        facts: dict[str, Any] = json.loads(self._turns.read_bytes())
        return facts

    def log_bytes(self) -> int:
        """Return the size of its log."""
        return self._log.stat().st_size

    def worst_lines(self) -> list[str]:
        """Return the first lines of its log that are errors."""
        with self._log.open("rb") as lines:
            return [line.decode()[-700:] for line in lines if b'"level": "error"' in line][:3]

    def stop(self) -> None:
        """Stop it with SIGTERM; kill it if that takes too long."""
        self._over.set()
        self._process.terminate()
        try:
            self._process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


@contextmanager
def stand(name: str) -> Iterator[tuple[Helper, Server, Helper]]:
    """Start a relay, a server and a reader. Stop them in the end, and remove the data directory."""
    directory = Path(tempfile.mkdtemp(prefix="jetstream-attack-"))
    options: list[str] = []
    if name in VERIFYING:
        relay = Helper("benches.bad_relay", signed.recorded(), 0)
        signed.write_keys(signed.recorded(), _made(directory / "data"))
        options = ["--plc-url", f"http://{NOWHERE}", "--verify", "full", "--unresolved", "drop"]
    else:
        relay = Helper("benches.bad_relay", recorded(), REPOS)
    try:
        url = f"ws://127.0.0.1:{relay.receive('port')['port']}"
        server = Server(url, directory, FILES_FEW if name == "silent" else None, *options)
        try:
            relay.receive("connected")
            with reading("benches.live_reader", server.port, DIDS) as reader:
                yield relay, server, reader
        finally:
            server.stop()
    finally:
        relay.stop()
        shutil.rmtree(directory, ignore_errors=True)


def _made(directory: Path) -> Path:
    directory.mkdir()
    return directory


def measure(name: str, seconds: float, after_s: float) -> Figures:
    """Run one attack; return its figures."""
    with stand(name) as (relay, server, reader):
        relay.send(rate=RATE, events=RATE * WARM_UP_S, seconds=60)
        sent = relay.receive("events")["events"]
        server.begin()
        reader.ask()
        if name in FLOODS:
            figures, more = _as_relay(name, seconds, after_s, relay, reader)
        else:
            figures, more = _beside_relay(name, seconds, after_s, relay, server, reader)
        seen = arrived(reader, sent + more)
        turns = server.turns()
        figures |= {
            "turn_max_ms": turns["max_ms"],
            "turns_over_20_ms": turns["turns"],
            "rss_max_mib": server.rss_max / MIB,
            "rss_after_mib": server.rss() / MIB or float("inf"),
            "good": seen["good"],
            "lost": sent + more - seen["good"],
            "wrong": seen["wrong"] + bool(seen["closed"]),
            "attack_events": seen["attacks"],
            "largest_bytes": seen["largest"],
            "log_mb": server.log_bytes() / 1e6,
        }
        for turn in turns["worst"][:3]:
            print(f"    {turn['ms']:.0f} ms: {turn['stack']}", flush=True)
        for line in (*server.worst_lines(), *([f"reader: {seen['closed']}"] if seen["closed"] else [])):
            print(f"    {line}", flush=True)
    return figures


def _beside_relay(
    name: str, seconds: float, after_s: float, relay: Helper, server: Server, reader: Helper
) -> tuple[Figures, int]:
    """Flood as clients or as an account while a good relay sends. Measure the reader's delays meanwhile."""
    relay.send(rate=RATE, events=1 << 40, seconds=seconds, account=name if name in ACCOUNTS else "")
    figures: Figures = {}
    if name in ACCOUNTS:
        sent = relay.receive("events", seconds + 120)["events"]
    else:
        flood = Helper("benches.floods", name, server.port, seconds)
        if name == "silent":
            time.sleep(seconds / 4)
            figures["let_in_s"] = _let_in_s(server.port, seconds)
        sent = relay.receive("events", seconds + 120)["events"]
        done = flood.receive("sent", 60)
        flood.stop()
        figures |= {"flood_mb": done["sent"] / 1e6, "flood_cut": done["cut"], "flood_opened": done["opened"]}
    during = reader.ask()
    if name not in VERIFYING:
        figures |= {"p50_ms": during["p50_ms"], "p99_ms": during["p99_ms"], "max_ms": during["max_ms"]}
    relay.send(rate=RATE, events=1 << 40, seconds=after_s)
    return figures, sent + int(relay.receive("events", after_s + 120)["events"])


def _as_relay(
    name: str, seconds: float, after_s: float, relay: Helper, reader: Helper
) -> tuple[Figures, int]:
    """Flood as the relay, then be a good one at the same address. Measure how soon the server follows it."""
    relay.send(rate=0, events=0, seconds=seconds, flood=name)
    flooded = relay.receive("flooded", seconds + 60)["flooded"]
    ended, before = time.monotonic(), reader.ask()["good"]
    figures: Figures = {"flood_mb": flooded / 1e6, "followed_s": float("inf")}
    try:
        relay.receive("connected", FOLLOWED_WAIT_S)
    except TimeoutError:
        return figures, 0
    relay.send(rate=RATE, events=1 << 40, seconds=after_s)
    while time.monotonic() < ended + FOLLOWED_WAIT_S:
        if reader.ask()["good"] > before:
            figures["followed_s"] = time.monotonic() - ended
            break
        time.sleep(SAMPLE_S)
    return figures, int(relay.receive("events", after_s + 120)["events"])


def _let_in_s(port: int, most_s: float) -> float:
    """Return how long a new client waits for an answer; infinity if there is none."""
    began = time.monotonic()
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=most_s) as answer:
            answer.read()
    except OSError:
        return float("inf")
    return time.monotonic() - began


@app.default
def main(
    *names: str,
    seconds: Annotated[float, Parameter(help="How long each flood lasts.")] = SECONDS,
    after: Annotated[float, Parameter(help="How long the server is watched afterwards.")] = AFTER_S,
) -> None:
    """Run attacks by name, or all."""
    unknown = set(names) - set(LIMITS)
    if unknown:
        print(
            f"attack: there is no {', '.join(sorted(unknown))}; there are {', '.join(LIMITS)}",
            file=sys.stderr,
        )
        sys.exit(2)
    facts = machine.describe()
    print(f"{facts['processor']}, {facts['memory']}, Python {facts['Python']}, commit {facts['commit']}")
    missed = []
    for name in names or LIMITS:
        print(f"{name}: {seconds:g} s, load {os.getloadavg()[0]:.1f}", flush=True)
        if not report(LIMITS[name], measure(name, seconds, after)):
            missed.append(name)
    print(f"{len(names or LIMITS) - len(missed)} held" + (f", MISSED: {', '.join(missed)}" if missed else ""))
    sys.exit(bool(missed))


if __name__ == "__main__":
    app()
