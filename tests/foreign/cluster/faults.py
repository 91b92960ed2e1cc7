"""What breaks during the soak, one thing at a time, each followed by a wait until all is well again."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Final

from tests.foreign.cluster.network import Relays
from tests.foreign.cluster.proxy import Breaks, How
from tests.foreign.cluster.readers import Edge
from tests.foreign.cluster.verdict import Problem

from jetstream.cluster.cluster import Cluster

KINDS: Final = (
    "ingest killed",
    "ingest frozen",
    "edge killed",
    "edge frozen",
    "database killed",
    "primary lost",
    "commit cut",
    "answer lost",
    "notifications lost",
    "relay lost",
)
FROZEN_S: Final = 5.0
TAKEOVER_S: Final = 3.0
_REFUSED_S: Final = TAKEOVER_S + 1.5  # in which a standby would have taken over
_OUT_S: Final = (1.0, 4.0)
_UNNOTIFIED_S: Final = 2.0
_HAPPENS_S: Final = 30.0
_LEADER_SHARE: Final = 0.8  # of faults of ingests, those of the one that leads
_PRIMARY_SHARE: Final = 0.7  # of databases that are killed, and started again
AHEAD_US: Final = 2 * 3_600_000_000
BEHIND_US: Final = -30_000_000


class Failed(Exception):
    """Something did not come to pass that should have."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        super().__init__(f"{problem.kind}: {problem.text}")


def schedule(each: int, dice: random.Random, total: int = 0) -> list[str]:
    """Return `each` faults of each kind, and more of any kind up to `total`, in any order."""
    faults = [kind for kind in KINDS for _ in range(each)]
    faults += [dice.choice(KINDS) for _ in range(total - len(faults))]
    dice.shuffle(faults)
    return faults


class Faults:
    """Breaks something of a cluster. `note` is told what is done."""

    def __init__(
        self,
        cluster: Cluster,
        edges: Sequence[Edge],
        breaks: Breaks,
        relays: Relays,
        dice: random.Random,
        note: Callable[[str], None],
    ) -> None:
        self._cluster = cluster
        self._edges = edges
        self._breaks = breaks
        self._relays = relays
        self._dice = dice
        self._note = note
        # Whether the clock of `ingest-2` keeps it from leading.
        self.is_ahead = False
        # How many of each kind were done, and what happened meanwhile.
        self.done: Counter[str] = Counter()
        self.outcomes: Counter[str] = Counter()
        self._acts: Mapping[str, Callable[[], Awaitable[None]]] = {
            "ingest killed": self._kill_ingest,
            "ingest frozen": self._freeze_ingest,
            "edge killed": self._kill_edge,
            "edge frozen": self._freeze_edge,
            "database killed": self._kill_database,
            "primary lost": self._lose_primary,
            "commit cut": self._cut_commit,
            "answer lost": self._lose_answer,
            "notifications lost": self._lose_notifications,
            "relay lost": self._lose_relay,
        }

    async def do(self, kind: str) -> None:
        """Let a fault happen, and mend what it broke. Raises Failed, and MemberFailed."""
        await self._acts[kind]()
        self.done[kind] += 1

    # --- ingests ---

    async def _kill_ingest(self) -> None:
        leader = await self._cluster.wait_leader()
        victim = self._ingest(leader)
        self._note(f"kill {victim}, {leader} leads")
        await self._cluster.kill(victim)
        if victim == leader and self.is_ahead:
            await self._see_refusal(victim)
        elif victim == leader:
            began = time.monotonic()
            found = await self._cluster.wait_leader(besides=victim)
            self._note(f"{found} leads after {time.monotonic() - began:.1f} s")
            self.outcomes["another ingest took over"] += 1
        await self._cluster.spawn(victim)

    def _ingest(self, leader: str) -> str:
        """Return which ingest is hit: mostly the one that leads."""
        if self._dice.random() < _LEADER_SHARE:
            return leader
        return next(name for name in self._cluster.names("ingest") if name != leader)

    async def _see_refusal(self, victim: str) -> None:
        """See that the standby, whose clock is wrong, does not lead although nobody does."""
        standby = next(name for name in self._cluster.names("ingest") if name != victim)
        await asyncio.sleep(_REFUSED_S)
        status: Mapping[str, Any] = await self._cluster.status(standby) or {}
        reasons = {each["condition"]: each["text"] for each in status.get("reasons", ())}
        leader = await self._cluster.leader()
        if leader is not None or "its clock is" not in reasons.get("not_leading", ""):
            text = (
                f"{standby}, whose clock is two hours ahead: {leader} leads, and its conditions are {reasons}"
            )
            raise Failed(Problem("clock", text))
        self._note(f"{standby} does not lead: {reasons['not_leading']}")
        self.outcomes["a wrong clock kept a standby from leading"] += 1

    async def _freeze_ingest(self) -> None:
        leader = await self._cluster.wait_leader()
        victim = self._ingest(leader)
        self._note(f"freeze {victim}, {leader} leads")
        await self._frozen(victim)
        now = await self._cluster.leader()
        if now != leader:
            self._note(f"{now} leads")
            self.outcomes["a frozen ingest was replaced"] += 1

    async def _frozen(self, name: str) -> None:
        self._cluster.freeze(name)
        await asyncio.sleep(FROZEN_S)
        self._cluster.thaw(name)

    # --- edges ---

    async def _kill_edge(self) -> None:
        edge = self._dice.choice(self._edges)
        self._note(f"kill {edge.name}")
        edge.is_up = False
        await self._cluster.kill(edge.name)
        await asyncio.sleep(self._dice.uniform(0.0, 0.5))
        await self._cluster.spawn(edge.name)
        edge.began()

    async def _freeze_edge(self) -> None:
        edge = self._dice.choice(self._edges)
        self._note(f"freeze {edge.name}")
        await self._frozen(edge.name)

    # --- databases ---

    async def _kill_database(self) -> None:
        primary = self._primary()
        victim = primary if self._dice.random() < _PRIMARY_SHARE else self._standby(primary)
        self._note(f"kill {victim}, and start it again; {primary} is the primary")
        await self._cluster.kill(victim)
        await asyncio.sleep(self._dice.uniform(0.0, 1.0))
        await self._cluster.spawn(victim)
        await self._cluster.wait_synchronous()

    async def _lose_primary(self) -> None:
        primary = self._primary()
        standby = self._standby(primary)
        self._note(f"kill {primary}, and promote {standby}")
        await self._cluster.kill(primary)
        await self._cluster.promote(standby)
        self._note(f"make {primary} a standby of {standby}")
        await self._cluster.rebuild(primary)
        await self._cluster.wait_synchronous()

    def _primary(self) -> str:
        primary = self._cluster.primary
        assert primary is not None
        return primary

    def _standby(self, primary: str) -> str:
        return next(name for name in self._cluster.names("postgres") if name != primary)

    # --- what passes between ---

    async def _cut_commit(self) -> None:
        await self._break_commit(self._dice.choice(("half", "after")))

    async def _lose_answer(self) -> None:
        await self._break_commit("answer")

    async def _break_commit(self, how: How) -> None:
        """Break a commit of the leader, which must find out what became of it, and go on."""
        before = await self._cluster.term()
        self._note(f"break a commit: {how}")
        async with asyncio.timeout(_HAPPENS_S):
            await self._breaks.commit(how)
        await self._appended()
        after = await self._cluster.term()
        if before != after:
            text = (
                f"a commit was broken ({how}), and the term {before} has become {after}: it was not settled"
            )
            raise Failed(Problem("term", text))
        self.outcomes[f"a commit was settled ({how})"] += 1

    async def _appended(self) -> None:
        """Wait until the leader has stored something more."""
        newest = await self._newest()
        async with asyncio.timeout(_HAPPENS_S):
            while await self._newest() <= newest:
                await asyncio.sleep(0.1)

    async def _newest(self) -> int:
        rows = await self._cluster.ask("SELECT max(last_us) FROM tail")
        return rows[0][0] if rows else 0

    async def _lose_notifications(self) -> None:
        self._note("lose all notifications for a while")
        before = self._breaks.dropped
        self._breaks.notifies = False
        try:
            async with asyncio.timeout(_HAPPENS_S):
                while self._breaks.dropped == before:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(_UNNOTIFIED_S)
        finally:
            self._breaks.notifies = True
        self.outcomes["notifications that were lost"] += self._breaks.dropped - before

    async def _lose_relay(self) -> None:
        relay = self._dice.choice(list(self._relays.urls))
        seconds = self._dice.uniform(*_OUT_S)
        self._note(f"lose relay {relay} for {seconds:.1f} s")
        await self._relays.tell("lose", relay)
        await asyncio.sleep(seconds)
        await self._relays.tell("restore")
