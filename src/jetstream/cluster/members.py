"""The processes of a cluster as values: what each is called, where it listens, how it is started. Pure.

    Shape, ports ─▶ `members` ─▶ Member, … ─▶ `process` and `postgres` start them
    Change, … ──────────┘ adds flags, for a demonstration or a test

Each ingest and edge is `jetstream serve` with flags, and the relay is `jetstream simulate`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import Final, Literal

HOST: Final = "127.0.0.1"
Kind = Literal["postgres", "relay", "ingest", "edge"]
# In the order in which they are started. They are stopped in the opposite one.
KINDS: Final[tuple[Kind, ...]] = ("postgres", "relay", "ingest", "edge")
# A value of a setting: several stand for a flag that is repeated.
Value = str | Sequence[str]


@dataclass(frozen=True)
class Member:
    """A process of a cluster.

    `settings` are flags of the program without `--`, or settings of PostgreSQL; the value "" leaves one out,
    and the value "yes" gives a flag alone. `arguments` come after them. `environment` is added to that of
    this process. `program` is run instead of `jetstream`, with the same arguments; PostgreSQL has none.
    """

    kind: Kind
    number: int  # from 1 on, of its kind
    port: int
    settings: Mapping[str, Value] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name, such as `edge-2`."""
        return f"{self.kind}-{self.number}"

    def changed(self, change: Change) -> Member:
        """Return it with settings, arguments and variables added, or replaced where it has them.

        Settings and variables of the change count more than those that are there; arguments come after
        them.
        """
        return replace(
            self,
            settings={**self.settings, **change.settings},
            arguments=(*self.arguments, *change.arguments),
            environment={**self.environment, **change.environment},
            program=change.program or self.program,
        )

    def flags(self) -> list[str]:
        """Return the arguments of a program of ours.

        Each has the form `--name=value`, so that a value may begin with a dash. Settings come first, in
        their order.
        """
        flags: list[str] = []
        for name, value in self.settings.items():
            values = [value] if isinstance(value, str) else value
            flags += [f"--{name}" if each == "yes" else f"--{name}={each}" for each in values if each]
        return [*flags, *self.arguments]


@dataclass(frozen=True)
class Change:
    """What a caller adds to a member, or to all of a kind: see `Member`.

    A setting of "" takes one away that the cluster sets.
    """

    settings: Mapping[str, Value] = field(default_factory=dict)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shape:
    """How many processes a cluster has, and what they read.

    The servers of PostgreSQL are one primary and, with two, its synchronous standby. Without `upstreams`, a
    relay of the simulator is one of the processes, with `rate` messages a second.
    """

    servers: Literal[1, 2] = 2
    ingests: int = 2
    edges: int = 3
    # Values of `--upstream` for all ingests; without any, the relay is read.
    upstreams: tuple[str, ...] = ()
    # Messages a second that the relay sends.
    rate: float = 50.0

    @property
    def size(self) -> int:
        """How many processes there are, and so how many ports they need."""
        return self.servers + self.ingests + self.edges + (not self.upstreams)


def members(
    shape: Shape, ports: Sequence[int], directory: Path, changes: Mapping[str, Change] | None = None
) -> list[Member]:
    """Return the processes of a cluster, in the order in which they are started.

    `ports` are `shape.size` of them, for edges, ingests, the relay and PostgreSQL, in this order.
    `changes` are by the kind of a member (`ingest`) or by its name (`ingest-2`), which counts more.

    All ingests read the same upstreams and write the same log. Each ingest has a directory for its
    data, and the edges share one.
    """
    free, counts = iter(ports), (shape.edges, shape.ingests, int(not shape.upstreams), shape.servers)
    edges, ingests, relays, servers = (list(islice(free, count)) for count in counts)
    upstreams = shape.upstreams or tuple(f"relay=ws://{HOST}:{port}" for port in relays)
    log = log_address(servers)

    def serve(role: Literal["ingest", "edge"], number: int, port: int, **more: Value) -> Member:
        """Return an ingest or an edge, with the flags of its role."""
        settings: dict[str, Value] = {"role": role, "log": log, "listen": f"{HOST}:{port}"}
        return Member(role, number, port, {**settings, **more})

    found = [
        *(
            Member("postgres", number, port, synchronous(shape.servers))
            for number, port in enumerate(servers, 1)
        ),
        *(
            Member("relay", number, port, simulated(port, shape.rate))
            for number, port in enumerate(relays, 1)
        ),
        *(
            serve(
                "ingest",
                number,
                port,
                upstream=upstreams,
                **{"data-dir": str(directory / f"ingest-{number}")},
            )
            for number, port in enumerate(ingests, 1)
        ),
        *(
            serve("edge", number, port, drain="1s", **{"data-dir": str(directory / "edges")})
            for number, port in enumerate(edges, 1)
        ),
    ]
    return [_changed(each, changes or {}) for each in found]


def log_address(ports: Sequence[int]) -> str:
    """Return the address of the log in servers of PostgreSQL on these ports, for `--log`.

    It names all servers, and a client of the log uses the one that can be written to.
    """
    return f"postgresql://postgres@{','.join(f'{HOST}:{port}' for port in ports)}/postgres"


def simulated(port: int, rate: float) -> dict[str, str]:
    """Return the settings of a relay of the simulator, with so many messages a second."""
    return {"port": str(port), "rate": f"{rate:g}"}


def synchronous(servers: int) -> dict[str, str]:
    """Return the settings of PostgreSQL with which a commit waits until one other server has it.

    `ANY 1` is a quorum of the standbys: the name of the primary itself counts for nothing. With one
    server, commits wait for none.
    """
    if servers < 2:
        return {}
    names = ", ".join(f'"postgres-{number}"' for number in range(1, servers + 1))
    return {"synchronous_standby_names": f"ANY 1 ({names})"}


def _changed(member: Member, changes: Mapping[str, Change]) -> Member:
    """Return a member with the changes of its kind, and then those of its name."""
    for key in (member.kind, member.name):
        if key in changes:
            member = member.changed(changes[key])
    return member
