"""A cluster of PostgreSQL in which everything breaks, and readers that must notice nothing but pauses.

    relays a, b (each loses 5 %) ──▶ ingest-1, ingest-2 ──▶ proxies ──▶ postgres-1, postgres-2
                                                               ▲
    14 readers ◀── edge-1, edge-2, edge-3 ─────────────────────┘

Each fault is mended before the next one, and all readers must have got something newer. At the end they must
have what the relays have sent, event by event.
"""

from __future__ import annotations

import asyncio
import random
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final

import orjson
from tests.foreign.cluster.facts import V2_KINDS, Wanted
from tests.foreign.cluster.faults import AHEAD_US, BEHIND_US, TAKEOVER_S, Failed, Faults
from tests.foreign.cluster.network import ROOT, Relays, relays
from tests.foreign.cluster.plan import Plan, Record
from tests.foreign.cluster.proxy import Breaks, Proxy, proxied
from tests.foreign.cluster.readers import Edge, Field, Reader, hopping, replay, replay_once, roam, stay
from tests.foreign.cluster.verdict import Problem, Stream, against_truth

from jetstream.cluster.answers import get
from jetstream.cluster.cluster import Cluster
from jetstream.cluster.members import Change, Shape, members
from jetstream.cluster.ports import free_ports

RETENTION: Final = "60s"
_POSTGRES: Final = {
    # Processes are killed here; the machine keeps its power.
    "fsync": "off",
    "full_page_writes": "off",
    "max_connections": "200",
    "shared_buffers": "32MB",
    "wal_retrieve_retry_interval": "200ms",
}
_FLOWS_S: Final = 120.0  # for all readers to get something new after a fault
_SETTLES_S: Final = 180.0  # for everything that was sent to be stored
_TRIMS_S: Final = 150.0  # for the first events to be older than retention allows
_ENDS_S: Final = 120.0  # for all readers to have it
_CALM_S: Final = (0.2, 1.2)  # between two faults
_QUIET_S: Final = 2.0  # without anything new, after which nothing more comes
_REPLAYS_MAX: Final = 10  # of an edge at the end, of which retention may cut each one short
_AGAIN_S: Final = 0.3  # between two of them


class Run:
    """One run, in a directory."""

    def __init__(self, plan: Plan, directory: Path, record: Record) -> None:
        self._plan = plan
        self._directory = directory
        self._record = record
        self._dice = random.Random(plan.seed)
        self._breaks = Breaks(random.Random(plan.seed + 1))
        self._clock = directory / "clock"
        self.stream = Stream(record.report)
        self.hoppers: list[Reader] = []
        self.stayers = [Reader("v1 stays"), Reader("v2 stays", "v2", wanted=Wanted(V2_KINDS))]
        # Up to which position all that read everything were compared.
        self._compared = 0
        # What runs beside: readers and replays.
        self._beside: list[asyncio.Task[None]] = []
        # Set once by `run`.
        self.cluster: Cluster
        self._relays: Relays
        self._field: Field
        self._faults: Faults

    @property
    def readers(self) -> list[Reader]:
        """All readers of which nothing may be lost."""
        return [*self.hoppers, *self.stayers]

    # --- the cluster ---

    async def run(self) -> str:
        """Run it; return a summary. Raises Failed, MemberFailed and others."""
        async with AsyncExitStack() as stack:
            plan = self._plan
            self._relays = await stack.enter_async_context(relays(self._directory, plan.seed, plan.rate))
            self._set_clock(AHEAD_US if plan.ahead else BEHIND_US)
            self.cluster = await stack.enter_async_context(await self._new_cluster(stack))
            await self.cluster.start(self._record.note)
            return await self._run()

    async def _new_cluster(self, stack: AsyncExitStack) -> Cluster:
        """Return the cluster; its processes reach their databases through proxies."""
        shape = Shape(upstreams=tuple(f"{name}={url}" for name, url in self._relays.urls.items()))
        ports = free_ports(shape.size)
        server_ports = [
            each.port for each in members(shape, ports, self._directory) if each.kind == "postgres"
        ]
        proxies = [await stack.enter_async_context(proxied(port, self._breaks)) for port in server_ports]
        return Cluster(members(shape, ports, self._directory, self._changes(proxies)), self._directory)

    def _changes(self, proxies: Sequence[Proxy]) -> Mapping[str, Change]:
        program = (sys.executable, "-m", "tests.foreign.cluster.member")
        environment = {"PYTHONPATH": f"{self._plan.source}:{ROOT}"}
        common = {"log": _address(proxies), "log-format": "json"}
        ingest = {
            "verify": "full",
            "plc-url": self._relays.directory_url,
            "plc-rate": "10000",
            "upstream-cursor": ("a=0", "b=5000000"),
            "retention": RETENTION,
            "takeover-after": f"{TAKEOVER_S:g}s",
            "ready-idle": "none",  # the relays are silent at first
        }
        return {
            "postgres": Change(settings=_POSTGRES),
            "ingest": Change(settings=common | ingest, program=program, environment=environment),
            "ingest-2": Change(environment={"CLOCK_FILE": str(self._clock)}),
            "edge": Change(settings=common, program=program, environment=environment),
            # This one reads the standby as long as that answers.
            "edge-3": Change(settings={"log": _address(proxies[::-1])}),
        }

    def _set_clock(self, ahead_us: int) -> None:
        """Set the clock of `ingest-2`."""
        new = self._clock.with_suffix(".new")
        new.write_text(str(ahead_us))
        new.replace(self._clock)
        self._record.note(f"the clock of ingest-2 is {ahead_us / 1e6:+,.0f} s off")

    # --- the run ---

    async def _run(self) -> str:
        cluster, record = self.cluster, self._record
        edges = [Edge(name, cluster.processes[name].port) for name in cluster.names("edge")]
        self._field = Field(edges, self.stream, record.report)
        self._faults = Faults(cluster, edges, self._breaks, self._relays, self._dice, record.note)
        self.hoppers = hopping(self._relays.dids)
        async with _background(replay(self._field, each) for each in edges) as replaying:
            readers = [
                *(
                    roam(self._field, each, random.Random(f"{self._plan.seed} {each.name}"))
                    for each in self.hoppers
                ),
                *(stay(self._field, each, edge) for each, edge in zip(self.stayers, edges, strict=False)),
            ]
            async with _background(readers) as reading:
                self._beside = [*replaying, *reading]
                await self._relays.tell("go")
                await self._flow()
                record.note("events flow")
                await self._break_things()
                await self._trimmed()
                stop = await self._settle(reading)
                self._check_all(stop)
        for edge in edges:
            if not await self._replayed(edge, stop):
                record.report(Problem("stuck", f"{edge.name} does not replay what it has"))
        await self._check_cluster()
        return await self._summary()

    async def _replayed(self, edge: Edge, stop: int) -> bool:
        """Replay what an edge has. Retention may overtake a reader of the oldest events; it begins again."""
        for _ in range(_REPLAYS_MAX):
            if await replay_once(self._field, edge, stop):
                return True
            await asyncio.sleep(_AGAIN_S)
        return False

    async def _break_things(self) -> None:
        plan, faults = self._plan, self._faults
        for number, kind in enumerate(plan.faults, 1):
            if number == plan.ahead + 1 and plan.ahead:
                self._set_clock(BEHIND_US)
            faults.is_ahead = number <= plan.ahead
            self._record.note(f"{number}/{len(plan.faults)} {kind}")
            await faults.do(kind)
            await self._flow()
            self._compare()
            self.cluster.bound_logs()
            await asyncio.sleep(self._dice.uniform(*_CALM_S))

    async def _trimmed(self) -> None:
        """Wait until retention has removed something: with a clock that is behind, that takes longer."""
        until = time.monotonic() + _TRIMS_S
        while time.monotonic() < until and not (await self.cluster.ask("SELECT floor_us FROM state"))[0][0]:
            self._stop_if_wrong()
            await asyncio.sleep(0.5)
        await self._flow()

    def _full(self) -> list[Reader]:
        """Return the readers that get every commit."""
        return [each for each in self.readers if each.wanted.is_all]

    async def _flow(self) -> None:
        """Wait until all readers have got something that is newer than all that was there."""
        newest, until = self.stream.newest, time.monotonic() + _FLOWS_S
        while min(each.newest for each in self._full()) <= newest:
            self._stop_if_wrong()
            if time.monotonic() > until:
                behind = {each.name: newest - each.newest for each in self._full() if each.newest <= newest}
                raise Failed(Problem("stuck", f"nothing new came to some readers (µs behind): {behind}"))
            await asyncio.sleep(0.05)

    def _stop_if_wrong(self) -> None:
        """Raise Failed where something is wrong already: what comes later would only hide it."""
        if self._record.problems:
            raise Failed(self._record.problems[0])
        for task in self._beside:
            if task.done():
                task.result()  # only an error ends it before the end
        if ended := self.cluster.ended():
            text = ", ".join(f"{each.name}: {each.how_ended}" for each in ended)
            raise Failed(Problem("ended", f"by themselves: {text}"))

    def _compare(self) -> None:
        """Compare the readers that get every commit, up to where all of them are."""
        stop = min(each.newest for each in self._full()) + 1
        for each in self._full():
            self._check(each, self._compared, stop)
        self._compared = stop
        self._stop_if_wrong()

    def _check(self, reader: Reader, start: int, stop: int) -> None:
        if lost := self.stream.lost(reader.positions, reader.wanted, start, stop):
            text = f"{reader.name}: {len(lost)} of {len(reader.positions)}: {self.stream.show(lost)}"
            self._record.report(Problem("lost", text))

    # --- the end ---

    async def _settle(self, reading: Sequence[asyncio.Task[None]]) -> int:
        """Let the relays stop, and wait until all readers have everything; return the position above it."""
        seqs = (await self._relays.tell("stop"))["seqs"]
        self._record.note(f"the relays have stopped at {seqs}")
        await self._stored(seqs)
        stop = await self._newest_stored() + 1
        self._record.note(f"all is stored, up to {stop - 1}")
        self._field.end.set_result(stop)
        _, late = await asyncio.wait(reading, timeout=_ENDS_S)
        if late:
            behind = {each.name: stop - 1 - each.newest for each in self.readers}
            raise Failed(Problem("stuck", f"readers do not come to the end (µs before it): {behind}"))
        return stop

    async def _stored(self, seqs: Mapping[str, int]) -> None:
        """Wait until the leader has stored all frames, and nothing waits."""
        until, newest, quiet_since = time.monotonic() + _SETTLES_S, 0, time.monotonic()
        while time.monotonic() - quiet_since < _QUIET_S:
            leader, before = await self.cluster.leader(), newest
            said = await self._health(leader) if leader else {}
            newest = await self._newest_stored()
            found = {each["name"]: each["seq"] for each in said.get("upstreams", ())}
            if found != seqs or said.get("waiting") or newest != before:
                quiet_since = time.monotonic()
            if time.monotonic() > until:
                text = f"{leader} has not stored all: the relays are at {seqs}, and it says {said}"
                raise Failed(Problem("stuck", text))
            await asyncio.sleep(0.2)

    async def _newest_stored(self) -> int:
        rows = await self.cluster.ask("SELECT max(last_us) AS newest FROM tail")
        return int(rows[0]["newest"]) if rows else 0

    async def _health(self, name: str) -> Mapping[str, Any]:
        answer = await get(self.cluster.processes[name].port, "/health")
        return orjson.loads(answer.body) if answer is not None else {}

    def _check_all(self, stop: int) -> None:
        for each in self.readers:
            self._check(each, 0, stop)
        for problem in against_truth(
            self.stream, self._relays.truth(), self._relays.ledger(), list(self._relays.urls)
        ):
            self._record.report(problem)

    async def _check_cluster(self) -> None:
        """Check that there was what the soak is about: sealing, trimming, erasing; and no gap."""
        (row,) = await self.cluster.ask(
            "SELECT floor_us, removed, revision, folded_id, (SELECT count(*) FROM segment) AS segments,"
            " (SELECT count(*) FROM gap) AS gaps FROM state"
        )
        self._figures = dict(row)
        self._record.note(f"the log: {self._figures}")
        if row["gaps"]:
            self._record.report(
                Problem("gap", f"the log tells of {row['gaps']} gaps, and the relays had everything")
            )
        idle = [name for name in ("floor_us", "revision", "folded_id", "segments") if not row[name]]
        if idle:
            self._record.report(Problem("idle", f"the soak was too short: {', '.join(idle)} is 0"))

    async def _summary(self) -> str:
        faults = ", ".join(f"{count} {kind}" for kind, count in sorted(self._faults.done.items()))
        outcomes = ", ".join(f"{what}: {count}" for what, count in sorted(self._faults.outcomes.items()))
        erased = sum(map(self.stream.is_erased, self.stream.facts))
        readers = ", ".join(f"{each.name} {len(each.positions)}/{each.hops}" for each in self.readers)
        return (
            f"seed {self._plan.seed}: {len(self.stream.facts)} events, {len(self.stream.deleted)} accounts"
            f" deleted ({erased} events erased), {self._field.replays} replays; {self._figures}"
            f"\nfaults: {faults}\noutcomes: {outcomes}\nevents/connections: {readers}"
        )


def _address(proxies: Sequence[Proxy]) -> str:
    return f"postgresql://postgres@{','.join(f'127.0.0.1:{each.port}' for each in proxies)}/postgres"


@asynccontextmanager
async def _background(works: Any) -> AsyncIterator[list[asyncio.Task[None]]]:
    """Run coroutines beside the block, and cancel them at its end. What one of them raises, this raises."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        yield tasks
    finally:
        for task in tasks:
            task.cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    for outcome in outcomes:
        if isinstance(outcome, Exception):
            raise outcome
