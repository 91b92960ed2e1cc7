"""The processes of a cluster as values: what each is called, where it listens, how it is started. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Final, Literal

HOST: Final = "127.0.0.1"
Kind = Literal["postgres", "relay", "ingest", "edge"]
# In the order in which they are started. They are stopped in the opposite one.
KINDS: Final[tuple[Kind, ...]] = ("postgres", "relay", "ingest", "edge")
# A value of a setting: several stand for a flag that is repeated.
Value = str | Sequence[str]
_NONE: Final[Mapping[str, Value]] = MappingProxyType({})
_NO_VARIABLES: Final[Mapping[str, str]] = MappingProxyType({})


@dataclass(frozen=True)
class Member:
    """A process of a cluster.

    `settings` are flags of the program without `--`, or settings of PostgreSQL; the value "" leaves one out,
    and the value "yes" gives a flag alone. `arguments` come after them. `environment` is added to that of this process.
    `program` is run instead of `jetstream`, with the same arguments; it has no meaning for PostgreSQL.
    """

    kind: Kind
    number: int  # from 1 on, of its kind
    port: int
    settings: Mapping[str, Value] = field(default=_NONE)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default=_NO_VARIABLES)
    program: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Its name, such as `edge-2`."""
        return f"{self.kind}-{self.number}"

    def changed(self, change: Change) -> Member:
        """Return it with settings, arguments and variables added, or replaced where it has them."""
        return replace(
            self,
            settings={**self.settings, **change.settings},
            arguments=(*self.arguments, *change.arguments),
            environment={**self.environment, **change.environment},
            program=change.program or self.program,
        )

    def flags(self) -> list[str]:
        """Return the arguments of a program of ours."""
        flags: list[str] = []
        for name, value in self.settings.items():
            values = [value] if isinstance(value, str) else value
            flags += [f"--{name}" if each == "yes" else f"--{name}={each}" for each in values if each]
        return [*flags, *self.arguments]


@dataclass(frozen=True)
class Change:
    """What a caller adds to a member, or to all of a kind: see `Member`."""

    settings: Mapping[str, Value] = field(default=_NONE)
    arguments: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default=_NO_VARIABLES)
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
    upstreams: tuple[str, ...] = ()
    rate: float = 50.0

    @property
    def size(self) -> int:
        """How many processes there are, and so how many ports they need."""
        return self.servers + self.ingests + self.edges + (not self.upstreams)


def members(
    shape: Shape, ports: Sequence[int], directory: Path, changes: Mapping[str, Change] | None = None
) -> list[Member]:
    """Return the processes of a cluster, in the order in which they are started.

    `ports` are `shape.size` of them, for edges, ingests, the relay and PostgreSQL, in this order. `changes`
    are by the name of a member (`ingest-2`) or by its kind (`ingest`); both may be there, the name counts more.
    """
    free = iter(ports)
    edges, ingests = (range(1, count + 1) for count in (shape.edges, shape.ingests))
    edge_ports, ingest_ports = [next(free) for _ in edges], [next(free) for _ in ingests]
    relay_port = None if shape.upstreams else next(free)
    server_ports = [next(free) for _ in range(shape.servers)]
    upstreams = shape.upstreams or (f"ws://{HOST}:{relay_port}",)
    log = log_address(server_ports)
    found = [Member("postgres", number, port, synchronous(shape.servers)) for number, port in _numbered(server_ports)]
    if relay_port is not None:
        found.append(Member("relay", 1, relay_port, {"port": str(relay_port), "rate": f"{shape.rate:g}"}))
    for number, port in _numbered(ingest_ports):
        settings = {**_serve("ingest", log, port, directory / f"ingest-{number}"), "upstream": upstreams}
        found.append(Member("ingest", number, port, settings))
    for number, port in _numbered(edge_ports):
        settings = {**_serve("edge", log, port, directory / f"edge-{number}"), "drain": "1s"}
        found.append(Member("edge", number, port, settings))
    return [_changed(each, changes or {}) for each in found]


def log_address(ports: Sequence[int]) -> str:
    """Return the address of the log in servers of PostgreSQL on these ports, for `--log`."""
    return f"postgresql://postgres@{','.join(f'{HOST}:{port}' for port in ports)}/postgres"


def synchronous(servers: int) -> dict[str, str]:
    """Return the settings of PostgreSQL with which a commit waits until one other server has it."""
    if servers < 2:
        return {}
    names = ", ".join(f'"postgres-{number}"' for number in range(1, servers + 1))
    return {"synchronous_standby_names": f"ANY 1 ({names})"}


def _serve(role: str, log: str, port: int, data_dir: Path) -> dict[str, Value]:
    return {"role": role, "log": log, "listen": f"{HOST}:{port}", "data-dir": str(data_dir)}


def _numbered(ports: Sequence[int]) -> list[tuple[int, int]]:
    return list(enumerate(ports, 1))


def _changed(member: Member, changes: Mapping[str, Change]) -> Member:
    for key in (member.kind, member.name):
        if key in changes:
            member = member.changed(changes[key])
    return member
