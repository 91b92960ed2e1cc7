"""The ledger of a network: a line of JSON for each fault and each loss, and what follows from them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

import orjson

from jetstream.simulator.truth import Event
from jetstream.simulator.verdicts import Verdict

Sink = Callable[[bytes], None]
LEVELS: Final = ("frame", "cid", "full")  # of checking; each includes those before it


class Ledger:
    """Writes the lines of one host, with its name, to a sink; without a sink, none."""

    def __init__(self, sink: Sink | None, host: str) -> None:
        self._sink = sink
        self._host = host

    def add(
        self,
        fault: str,
        seq: int,
        *,
        level: str | None = None,
        events: Iterable[Mapping[str, object]] = (),
        verdict: Verdict | None = None,
        **details: object,
    ) -> None:
        """Add a line: a fault at the number `seq`, with the events that it loses at a level of checking."""
        if self._sink is None:
            return
        line = {"relay": self._host, "seq": seq, "fault": fault, **details, "level": level}
        line |= {"events": list(events), "verdict": verdict and verdict.name}
        if verdict is not None and verdict.reason is not None:
            line["reason"] = verdict.reason
        self._sink(orjson.dumps(line))


def named(events: list[Event], first: int, lost: Iterable[int]) -> list[dict[str, object]]:
    """Return lost events of a message as lines have them. `first` is the index of the first in the truth."""
    return [
        {"index": first + i, "did": events[i]["did"], "kind": events[i]["kind"]}
        for i in lost
        if i < len(events)
    ]


def missing(lines: Iterable[Mapping[str, Any]], relays: Iterable[str], level: str = "cid") -> set[int]:
    """Return the indexes of the events of the truth that a correct reader of these relays does not have.

    It checks what it reads up to a level. An event is missing if every relay has lost it.
    """
    by_relay: dict[str, set[int]] = {relay: set() for relay in relays}
    for line in lines:
        if line["relay"] in by_relay:
            by_relay[line["relay"]] |= _lost(line, LEVELS[: LEVELS.index(level) + 1])
    return set.intersection(*by_relay.values())


def _lost(line: Mapping[str, Any], levels: tuple[str, ...]) -> set[int]:
    lost = {event["index"] for event in line["events"]} if line["level"] in levels else set()
    return lost.union(line.get("refused", ())) if "full" in levels else lost
