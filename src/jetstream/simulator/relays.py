"""What one relay of a network is like: its numbers, its lag, what it loses, and its faults."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any, Final

from jetstream.errors import SettingError
from jetstream.settings import parse_duration
from jetstream.simulator.faults import STREAM_FAULTS, Faults
from jetstream.simulator.stream import NAME

LAG_MAX_S: Final = 60.0
SEQ_MAX: Final = 1 << 52  # so that numbers stay below the 2^53 that JSON readers know
_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,63}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Relay:
    """One relay. Shares are from 0 to 1. Raises SettingError for a value that cannot be used."""

    name: str = NAME
    """In the ledger, and for people."""
    port: int | None = None
    """Where it listens; None: the port after that of the relay before."""
    seq: int = 0
    """The number before that of its first frame."""
    lag_s: float = 0
    """Seconds from a message to its frame."""
    loss: float = 0
    """Share of messages that it never gets. They have no number, so no number is missing."""
    outage_s: float = 0
    """Seconds of the longest outage: connections end, none is accepted, and what happens is lost."""
    every_s: float = 30
    """Seconds between outages, on average."""
    takedowns: float = 0
    """Share of messages after which it takes an account down, or restores one."""
    faults: Faults | None = None
    """Its own faults; None: those of the network."""

    def __post_init__(self) -> None:
        self._require(
            "name", self.name, _NAME.fullmatch(self.name) is not None, "is not a name such as relay-b"
        )
        for name, share in (("loss", self.loss), ("takedowns", self.takedowns)):
            self._require(name, share, 0 <= share <= 1, "is not a share from 0 to 1")
        self._require("seq", self.seq, 0 <= self.seq <= SEQ_MAX, f"is not a number from 0 to {SEQ_MAX}")
        self._require("lag", self.lag_s, 0 <= self.lag_s <= LAG_MAX_S, f"is not from 0 to {LAG_MAX_S:g} s")
        self._require("port", self.port, self.port is None or 0 <= self.port <= 65535, "is not a port")
        self._require("outage", self.outage_s, self.outage_s >= 0, "must not be negative")
        self._require("every", self.every_s, self.every_s > 0, "must be above 0")

    @staticmethod
    def _require(name: str, value: object, usable: bool, problem: str) -> None:
        if not usable:
            raise SettingError(f"relay.{name}", value, problem)


def _duration(text: str) -> float:
    return 0 if text in ("0", "none") else parse_duration(text)


_FIELDS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "name": ("name", str),
    "port": ("port", int),
    "seq": ("seq", int),
    "lag": ("lag_s", _duration),
    "loss": ("loss", float),
    "outage": ("outage_s", _duration),
    "every": ("every_s", parse_duration),
    "takedowns": ("takedowns", float),
}


def parse_relay(text: str, common: Faults) -> Relay:
    """Parse `name=b,lag=200ms,loss=0.05`. Faults that it names replace those of the network.

    Raises SettingError.
    """
    given = _pairs(text)
    rates = {name: _value(text, name, float, given.pop(name)) for name in list(given) if _fault(name)}
    relay = {_FIELDS[name][0]: _value(text, name, _FIELDS[name][1], value) for name, value in given.items()}
    own = replace(common, **{_fault(name): rate for name, rate in rates.items()}) if rates else None
    return Relay(**relay, faults=own)


def _pairs(text: str) -> dict[str, str]:
    pairs: dict[str, str] = {}
    for item in text.split(","):
        name, equals, value = (part.strip() for part in item.partition("="))
        if not equals or not value:
            raise SettingError("--relay", text, f"{item!r} is not of the form name=value")
        if name in pairs:
            raise SettingError("--relay", text, f"has {name} twice")
        if name not in _FIELDS and not _fault(name):
            known = ", ".join(_FIELDS)
            raise SettingError(
                "--relay", text, f"{name} is not one of {known}, and not a fault of the stream"
            )
        pairs[name] = value
    return pairs


def _fault(name: str) -> str:
    """Return the field of a fault that is given as `bit-flipped`; empty for any other name."""
    field = name.replace("-", "_")
    return field if field in STREAM_FAULTS else ""


def _value(text: str, name: str, parse: Callable[[str], Any], value: str) -> Any:
    try:
        return parse(value)
    except ValueError as error:
        problem = f"is not {_KINDS[parse]}" if parse in _KINDS else str(error)
        raise SettingError("--relay", text, f"{name}: {value!r} {problem}") from error


_KINDS: Final[Mapping[Callable[[str], Any], str]] = {int: "a whole number", float: "a number"}
assert {field for field, _ in _FIELDS.values()} | {"faults"} == {field.name for field in fields(Relay)}


def pds_name(number: int) -> str:
    """Return the name of a PDS, in the ledger and elsewhere."""
    return f"pds{number}"


def check_relays(relays: tuple[Relay, ...], *, disjoint: bool, pdses: int = 0) -> None:
    """Raise SettingError for equal names, and for disjoint losses that exceed everything."""
    names = [relay.name for relay in relays]
    taken = {pds_name(number) for number in range(1, pdses + 1)}
    for name in names:
        if names.count(name) > 1 or name in taken:
            whose = "a PDS" if name in taken else "two relays"
            raise SettingError("--relay", name, f"is the name of {whose}")
    total = sum(relay.loss for relay in relays)
    if disjoint and total > 1:
        raise SettingError("--losses", "disjoint", f"cannot be with losses of {total:g} together")
