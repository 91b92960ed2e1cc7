"""Two relays of one simulated network, as a process that is told what to do.

    python -m tests.foreign.cluster.network DIRECTORY SEED RATE

It reads orders from its standard input, and says what it has done on its standard output, both as lines of
JSON: `go`, `lose RELAY`, `restore`, `stop`. The truth and the ledger are in its directory.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson

from jetstream.clock import unix_us
from jetstream.runtime import end_with_parent
from jetstream.simulator.faults import Faults
from jetstream.simulator.losses import Fate, Losses
from jetstream.simulator.network import Network, Sinks
from jetstream.simulator.pacing import at_rate
from jetstream.simulator.relays import Relay
from jetstream.simulator.server import SUBSCRIBE
from jetstream.simulator.world import Population

ROOT: Final = Path(__file__).parents[3]
LOSS: Final = 0.05  # of each relay
_WHOLE: Final = 200  # messages at the beginning, which both have
RELAYS: Final = (Relay(name="a"), Relay(name="b", seq=5_000_000))
# Keys are replaced by one in 700 messages, so that no account has more than eight in five minutes.
POPULATION: Final = Population(repos=150, records=20, lifecycle=0.03)
SLOW: Final = Faults(directory_slow=0.2)  # so many keys come late
_SLOW_SHARE: Final = 0.5  # of the five seconds that a slow answer takes
_ANSWER_S: Final = 30.0


class Told:
    """The network, and what it was told."""

    def __init__(self, directory: Path, seed: int, rate: float) -> None:
        self._rate = rate
        self._truth, self._ledger = (
            (directory / "truth.jsonl").open("wb"),
            (directory / "ledger.jsonl").open("wb"),
        )
        self._network = Network(
            POPULATION,
            seed,
            unix_us,
            SLOW,
            sinks=Sinks(truth=self._line(self._truth), ledger=self._line(self._ledger)),
            relays=RELAYS,
            sleep=lambda seconds: asyncio.sleep(seconds * _SLOW_SHARE),
        )
        self._losses = Losses([Relay(name=each.name, loss=LOSS) for each in RELAYS], seed, disjoint=True)
        # How many messages were made.
        self._made = 0
        # The relay that is out, if one is; and what makes messages, since `go`.
        self._out = ""
        self._making: asyncio.Task[None] | None = None

    @staticmethod
    def _line(file: Any) -> Any:
        return lambda line: file.write(line + b"\n")

    async def run(self) -> None:
        """Serve, and follow orders until the input ends."""
        async with self._network.serving():
            urls = {
                name: f"ws{feed.url.removeprefix('http')}{SUBSCRIBE}"
                for name, feed in self._network.feeds.items()
            }
            _say(
                urls=urls,
                directory=self._network.url,
                dids=[each.did for each in self._network.world.accounts],
            )
            loop = asyncio.get_running_loop()
            reader = asyncio.StreamReader()
            await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
            while line := await reader.readline():
                name, *arguments = line.decode().split()
                _say(**await getattr(self, f"_{name}")(*arguments))

    async def _go(self) -> dict[str, Any]:
        self._making = asyncio.create_task(self._make())
        return {}

    async def _lose(self, relay: str) -> dict[str, Any]:
        self._out = relay
        self._network.feeds[relay].firehose.set_out(True)
        return {}

    async def _restore(self) -> dict[str, Any]:
        self._out = ""
        self._network.end_outages()
        return {}

    async def _stop(self) -> dict[str, Any]:
        """Make nothing any more; tell the numbers of the newest frames."""
        assert self._making is not None
        self._making.cancel()
        await asyncio.gather(self._making, return_exceptions=True)
        await self._restore()
        for file in (self._truth, self._ledger):
            file.flush()
        return {"seqs": {name: feed.stream.seq for name, feed in self._network.feeds.items()}}

    async def _make(self) -> None:
        messages = self._network.world.messages()
        async for due in at_rate(self._rate):
            for _ in range(due):
                self._network.append_to(next(messages), self._fates())
            self._network.publish()

    def _fates(self) -> list[Fate]:
        """Return what becomes of a message: while one relay is out, the other one loses nothing.

        Neither loses the first ones: nothing tells that what comes before all that was read is missing.
        """
        self._made += 1
        if self._made <= _WHOLE:
            return [Fate.SENT] * len(RELAYS)
        if self._out:
            return [Fate.OUT if each.name == self._out else Fate.SENT for each in RELAYS]
        return self._losses.fates(self._network.world.now_us)


def _say(**what: object) -> None:
    sys.stdout.buffer.write(orjson.dumps(what) + b"\n")
    sys.stdout.buffer.flush()


class Relays:
    """The process, as the soak has it."""

    def __init__(self, process: asyncio.subprocess.Process, directory: Path) -> None:
        self._process = process
        self._directory = directory
        # What it has said first: where its relays are, and its accounts.
        self.urls: dict[str, str] = {}
        self.directory_url = ""
        self.dids: list[str] = []

    async def begun(self) -> None:
        """Wait until it serves."""
        said = await self._said()
        self.urls, self.directory_url, self.dids = said["urls"], said["directory"], said["dids"]

    async def tell(self, *order: str) -> dict[str, Any]:
        """Give an order, and return what it says of it."""
        assert self._process.stdin is not None
        self._process.stdin.write(" ".join(order).encode() + b"\n")
        return await self._said()

    async def _said(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        async with asyncio.timeout(_ANSWER_S):
            line = await self._process.stdout.readline()
        assert line, "the network has ended"
        said: dict[str, Any] = orjson.loads(line)
        return said

    def truth(self) -> list[dict[str, Any]]:
        """Return all events that have happened, after `stop`."""
        return _lines(self._directory / "truth.jsonl")

    def ledger(self) -> list[dict[str, Any]]:
        """Return what each relay has lost, after `stop`."""
        return _lines(self._directory / "ledger.jsonl")


def _lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


@asynccontextmanager
async def relays(directory: Path, seed: int, rate: float) -> AsyncIterator[Relays]:
    """Run the network in a process of its own. It makes no messages yet."""
    with (directory / "network.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", __name__, str(directory), str(seed), str(rate)),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=log,
            limit=1 << 20,
            cwd=ROOT,
        )
    try:
        found = Relays(process, directory)
        await found.begun()
        yield found
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


if __name__ == "__main__":
    end_with_parent()
    asyncio.run(Told(Path(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])).run())
