"""An `Admission` under test: its log is in memory, and the test says when keys come and what time it is."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from tests.signed import KEY, START_US, Account

from jetstream.admission.accounts import Accounts
from jetstream.admission.admission import Admission
from jetstream.admission.deletions import Deletions
from jetstream.admission.examiners.examination import Finding, Task, examine
from jetstream.admission.identities import Identities
from jetstream.admission.parts import Parts
from jetstream.admission.rules import Rules
from jetstream.atproto.compact_did import compact_did
from jetstream.atproto.encoded_key import EncodedKey, parse_multikey
from jetstream.conditions import Conditions
from jetstream.errors import LogError
from jetstream.eventlog import Changes, Cursors, Gap
from jetstream.identity.answers import Answer, Candidates
from jetstream.limits import Limits
from jetstream.metrics import AdmissionMetrics, Metrics
from jetstream.model.event import Event, Key
from jetstream.simulator.frames import Message, encode
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.upstream.pipeline import DecodedBatch
from jetstream.upstreams import Upstream
from jetstream.verify.chain import State
from jetstream.verify.verdict import REFUSALS, VERDICTS
from jetstream.verify_modes import Mode

OWN = parse_multikey(KEY.multibase)


class FakeLog:
    """The log as a list, which stores all of an append or nothing."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self.appended: list[int] = []  # how many events each append had
        self.gaps: list[Gap] = []
        self.repos: dict[bytes, bytes] = {}
        self.cursors: Cursors = {}
        self.floor = 0
        self.asked: list[Key] = []
        # Clear it to have appends wait.
        self.open = asyncio.Event()
        self.open.set()

    @property
    def tip(self) -> int:
        return len(self.events)

    def repo(self, did: bytes) -> bytes | None:
        return self.repos.get(did)

    async def holds(self, keys: Collection[Key]) -> dict[Key, int]:
        self.asked += keys
        places = {event.key: place for place, event in enumerate(self.events, 1)}
        return {key: places[key] for key in keys if key in places}

    async def keys_from(self, position: int, stop: int) -> set[Key]:
        return {event.key for event in self.events}

    async def append(
        self, events: Sequence[Event], changes: Callable[[int], Changes], received_at: float | None
    ) -> None:
        await self.open.wait()
        stored = changes(self.tip + 1)
        self.events += events
        self.appended.append(len(events))
        self.gaps += stored.gaps
        self.cursors = stored.cursors
        for did, state in stored.repos.items():
            if state is None:
                self.repos.pop(did, None)
            else:
                self.repos[did] = state

    def state(self, account: Account) -> State | None:
        packed = self.repos.get(compact_did(account.repo.did))
        return None if packed is None else State.unpacked(packed)

    @property
    def rkeys(self) -> list[str]:
        """The records of all events, and a name for what is none."""
        return [event.rkey.decode() or event.kind.decode() for event in self.events]


class FarLog(FakeLog):
    """A log whose states are in a database: at hand are those that were loaded last, and no others."""

    def __init__(self) -> None:
        super().__init__()
        self.at_hand: set[bytes] = set()

    def has_repo(self, did: bytes) -> bool:
        return did in self.at_hand

    async def load_repos(self, dids: Collection[bytes]) -> None:
        await asyncio.sleep(0)
        self.at_hand = set(dids)

    def repo(self, did: bytes) -> bytes | None:
        if did not in self.at_hand:
            raise LogError("far", "was not loaded")
        return super().repo(did)


class FakeKeys:
    """Keys of accounts. Those in `known` are in memory; others come when `bring` is called."""

    def __init__(self) -> None:
        self.known: dict[str, EncodedKey] = {}
        self.earlier: dict[str, Candidates] = {}
        self.found: set[str] = set()
        self.hosts: dict[str, str] = {}
        self.coming_hosts: dict[str, str] = {}
        # Clear it to have `find_pds` wait.
        self.hosts_come = asyncio.Event()
        self.hosts_come.set()
        self.asked: list[tuple[str, str]] = []
        self.loaded: list[str] = []
        self.is_out = False
        # Whether `after_failure` never returns.
        self.hangs = False
        self._brought: dict[str, asyncio.Future[Answer]] = {}

    def cached(self, did: str) -> EncodedKey | None:
        return self.known.get(did)

    async def load(self, dids: Iterable[str]) -> None:
        self.loaded += dids

    async def wait(self, did: str, source: str) -> Answer:
        self.asked.append(("wait", did))
        brought = self._brought.setdefault(did, asyncio.get_running_loop().create_future())
        return await asyncio.shield(brought)

    def bring(self, did: str, key: EncodedKey | None = OWN) -> None:
        if key is not None:
            self.known[did] = key
        self._brought.pop(did).set_result(Answer(key, "" if key else "timeout"))

    async def after_failure(self, did: str, rev: str, source: str) -> Candidates:
        self.asked.append(("after_failure", did))
        if self.hangs:
            await asyncio.get_running_loop().create_future()
        self.found.add(did)
        return self.earlier.get(did, Candidates([], ""))

    def known_at(self, did: str, rev: str) -> list[EncodedKey]:
        return self.earlier[did].keys if did in self.found and did in self.earlier else []

    def pds(self, did: str) -> str | None:
        return self.hosts.get(did)

    async def find_pds(self, did: str, source: str) -> None:
        self.asked.append(("find_pds", did))
        await self.hosts_come.wait()
        await asyncio.sleep(0)
        self.hosts |= {did: self.coming_hosts[did]} if did in self.coming_hosts else {}

    def announced(self, did: str) -> None:
        self.asked.append(("announced", did))


@dataclass
class Clock:
    """Monotonic seconds, as the test sets them."""

    now: float = 1_000.0

    def __call__(self) -> float:
        return self.now


Measured = tuple[Metrics, AdmissionMetrics]


def measured(sources: tuple[str, ...]) -> Measured:
    """Return new metrics, with those of some sources in them."""
    metrics = Metrics()
    for name in sources:
        metrics.upstream(name, (), DROP_REASONS)
    return metrics, metrics.admission(VERDICTS, REFUSALS)


@dataclass
class Server:
    """What is around an admission. It can be built again on the same log, as after a crash."""

    mode: Any = "full"
    upstreams: Sequence[str] = ("a",)
    pds: Sequence[str] = ()
    pass_unverified: bool = True
    pass_unproven: bool = True
    limits: Limits = field(default_factory=Limits)
    log: FakeLog = field(default_factory=FakeLog)
    keys: FakeKeys = field(default_factory=FakeKeys)
    clock: Clock = field(default_factory=Clock)
    deletions: Deletions = field(default_factory=lambda: Deletions(100))
    connected: list[str] = field(default_factory=list)
    examined: list[Task] = field(default_factory=list)
    measured: Callable[[tuple[str, ...]], Measured] = measured
    examine_one: Callable[[Task, Mode], Finding] = examine

    def __post_init__(self) -> None:
        self.connected = self.connected or [*self.upstreams, *self.pds]

    async def examine(self, tasks: Sequence[Task]) -> list[Finding]:
        await asyncio.sleep(0)
        self.examined += tasks
        return [self.examine_one(task, self.mode) for task in tasks]

    @asynccontextmanager
    async def running(self) -> AsyncIterator[Admission]:
        self.metrics, self.counted = self.measured((*self.upstreams, *self.pds))
        rules = Rules(
            self.mode,
            chained=self.mode == "full" or self.is_merged,
            pass_unverified=self.pass_unverified,
            pass_unproven=self.pass_unproven,
        )
        accounts = Accounts(self.upstreams, self.pds, {}, now=self.clock(), grace_s=30.0, rows_max=100)
        parts = Parts(
            self.log,
            self.log.append,
            self.examine,
            self.keys if self.mode in {"signature", "full"} or self.pds else None,
            accounts,
            Identities(600_000_000, 100),
            self.deletions,
            lambda: self.connected,
            self.counted,
            Conditions(),
            lambda: START_US + 1_000_000,
            self.log if isinstance(self.log, FarLog) else None,
        )
        self.admission = Admission(rules, parts, self.limits, self.clock)
        self.stores = {name: self.admission.join(name) for name in self.upstreams}
        self.stores |= {name: self.admission.join(name, f"wss://{name}") for name in self.pds}
        relays = [Upstream(name, f"wss://{name}") for name in self.upstreams]
        await self.admission.use(relays + [Upstream(name, f"wss://{name}", "pds") for name in self.pds])
        async with self.admission.running():
            yield self.admission

    @property
    def is_merged(self) -> bool:
        return len(self.upstreams) + len(self.pds) > 1

    async def offer(self, source: str, *messages: tuple[int, Envelope]) -> None:
        """Offer messages in one batch. The cursor is the number of the last one."""
        last = messages[-1][0] if messages else None
        await self.stores[source](DecodedBatch(seq=last, accepted_messages=list(messages)), self.clock())

    async def take(self, source: str, *messages: tuple[int, Envelope]) -> None:
        """Offer messages, and return when they are judged."""
        await self.offer(source, *messages)
        await self.settle()

    async def settle(self) -> None:
        """Return when everything is done that can be done now."""
        await self.admission.holds([])
        for _ in range(20):
            await asyncio.sleep(0)

    async def passed(self, seconds: float) -> None:
        """Let time pass, and return when everything is done that is due."""
        self.clock.now += seconds
        self.admission.check()
        await self.settle()

    @property
    def verdicts(self) -> dict[str, int]:
        """How many messages were judged how."""
        found = {
            f"{name}: {reason}" if reason else name: each
            for (name, reason), each in self.counted.verdicts.items()
        }
        return {name: int(value_of(counter)) for name, counter in found.items() if value_of(counter)}

    def dropped(self, source: str, reason: str) -> int:
        return int(value_of(self.counted.drops(source)[reason]))


def value_of(counter: Any) -> float:
    """Return the value of a counter."""
    value: float = counter._value.get()
    return value


def message(number: int, content: Message) -> tuple[int, Envelope]:
    """Return a message as a pipeline passes it on."""
    return number, read_envelope(encode(content, number))
