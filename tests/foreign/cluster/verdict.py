"""What all readers have received, and what is wrong with it: lost, twice, different. Pure."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from tests.foreign.cluster.facts import Fact, Wanted, of_v1

from jetstream.simulator.ledger import missing


class Problem(NamedTuple):
    """Something that must not be."""

    kind: str  # lost, twice, differs, erased, truth, closed, refused, stuck, term, ended
    text: str


Report = Callable[[Problem], None]


class Stream:
    """The events by position, as any reader has received them first. Problems are reported at once."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self.facts: dict[int, Fact] = {}
        # Their positions, rising.
        self._order: list[int] = []
        # The position of each commit that was seen, by its digest.
        self._commits: dict[bytes, int] = {}
        # The position at which an account was deleted, by its DID.
        self.deleted: dict[str, int] = {}

    @property
    def newest(self) -> int:
        """The position of the newest event; 0: there is none."""
        return self._order[-1] if self._order else 0

    def note(self, position: int, fact: Fact, reader: str) -> None:
        """Note that a reader has received an event."""
        known = self.facts.get(position)
        if known is not None:
            if known != fact:
                self._report(Problem("differs", f"{reader} has {fact} at {position}, another has {known}"))
            return
        self.facts[position] = fact
        insort(self._order, position)
        if fact.kind == "commit":
            before = self._commits.setdefault(fact.digest, position)
            if before != position:
                self._report(Problem("twice", f"{reader}: {_shown(fact)} is at {before} and at {position}"))
        elif fact.ends:
            self.deleted[fact.did] = max(position, self.deleted.get(fact.did, 0))

    def is_erased(self, position: int) -> bool:
        """Tell whether readers need not get an event, since its account was deleted after it."""
        fact = self.facts[position]
        return fact.is_erasable and position < self.deleted.get(fact.did, 0)

    def between(self, start: int, stop: int) -> list[int]:
        """Return the positions from `start` to below `stop`, rising."""
        return self._order[bisect_left(self._order, start) : bisect_left(self._order, stop)]

    def lost(self, have: Sequence[int], wanted: Wanted, start: int, stop: int) -> list[int]:
        """Return what a reader should have got of a range, and has not. `have` rises."""
        got = set(have[bisect_left(have, start) : bisect_left(have, stop)])
        return [
            position
            for position in self.between(start, stop)
            if position not in got and wanted.wants(self.facts[position]) and not self.is_erased(position)
        ]

    def show(self, positions: Sequence[int], most: int = 5) -> str:
        """Return some positions with their events, for people."""
        shown = [f"{each} {_shown(self.facts[each])}" for each in positions[:most]]
        return ", ".join(shown) + (f" and {len(positions) - most} more" if len(positions) > most else "")


def _shown(fact: Fact) -> str:
    return f"{fact.kind} {fact.operation} {fact.collection} {fact.did}".replace("  ", " ")


def against_truth(
    stream: Stream,
    truth: Sequence[Mapping[str, Any]],
    ledger: Sequence[Mapping[str, Any]],
    relays: Sequence[str],
) -> Iterator[Problem]:
    """Compare the stream with what has happened in the network, account by account.

    Commits are chained, so each account's are compared in order. Identities and accounts may overtake commits
    that wait. Of accounts, the first relay decides: what only others have is not told.
    """
    nowhere, not_first = missing(ledger, relays, "full"), missing(ledger, relays[:1], "full")
    if nowhere:
        yield Problem("truth", f"no relay has sent {len(nowhere)} events: the test is wrong")
    wanted = [
        of_v1(event)
        for index, event in enumerate(truth)
        if index not in (not_first if event["kind"] == "account" else nowhere)
    ]
    got = [fact for _, fact in sorted(stream.facts.items()) if fact.kind != "sync"]
    yield from _commits(stream, got, wanted)
    for kind in ("identity", "account"):
        yield from _counted(kind, got, wanted)


def _commits(stream: Stream, got: Sequence[Fact], wanted: Sequence[Fact]) -> Iterator[Problem]:
    have, want = _by_account(got), _by_account(wanted)
    for did in want.keys() | have.keys():
        ours, theirs = have.get(did, []), want.get(did, [])
        is_right = _is_part(ours, theirs) if did in stream.deleted else ours == theirs
        if not is_right:
            at = next(
                (at for at, pair in enumerate(zip(ours, theirs, strict=False)) if pair[0] != pair[1]), -1
            )
            lost, more = len(set(theirs) - set(ours)), len(set(ours) - set(theirs))
            text = f"commits of {did}: {len(ours)} of {len(theirs)}, first difference at {at}"
            yield Problem("truth", f"{text}, {lost} lost, {more} unknown")


def _by_account(facts: Iterable[Fact]) -> Mapping[str, list[bytes]]:
    found: dict[str, list[bytes]] = defaultdict(list)
    for fact in facts:
        if fact.kind == "commit":
            found[fact.did].append(fact.digest)
    return found


def _is_part(some: Iterable[bytes], of_all: Iterable[bytes]) -> bool:
    """Tell whether `some` are among `of_all`, in the same order."""
    rest = iter(of_all)
    return all(each in rest for each in some)


def _counted(kind: str, got: Iterable[Fact], wanted: Iterable[Fact]) -> Iterator[Problem]:
    ours, theirs = (Counter(fact for fact in facts if fact.kind == kind) for facts in (got, wanted))
    for name, difference in (("lost", theirs - ours), ("too many", ours - theirs)):
        if difference:
            some = ", ".join(fact.did for fact in list(difference)[:5])
            yield Problem("truth", f"{kind} events {name}: {difference.total()}, of {some}")
