"""`Filter`: which events a reader wants, by kind, by collection and by repo. Pure.

A filter is used in three places, each with its own question:

    parsing a request        `Filter.parse_steps`: are these names and DIDs valid, and at most so many?
    delivery, at the tip     equal filters are one group; `wants_collection` and `wants` fill its index
    delivery, and the log    `select`: which events of a batch are wanted?

Identity, account and sync events have no collection. They pass a filter by collection, unless `kinds` leaves
them out. `Filter._passes` says so, in one place: everything else asks `wants_collection`, with an empty name.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Final
from zlib import crc32

from jetstream.errors import InvalidParameter
from jetstream.model.batch import Batch
from jetstream.model.did_set import NO_DIDS, DidSet
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE
from jetstream.model.lists import parse_collections, refuse_many, refuse_unknown, subtract
from jetstream.model.sample import SAMPLE_WHOLE, hashes_below, in_sample, parse_sample
from jetstream.model.syntax import is_did
from jetstream.steps import Steps, finish

# What `docs/api.md` allows in one list of DIDs.
DIDS_MAX: Final = 10_000
# How many DIDs are parsed, or put into an index, between two turns of the event loop: 0.3 ms.
DIDS_PER_STEP: Final = 500

# Kinds of `model.event` by the names that clients use.
OPERATIONS: Final = {"create": CREATE, "update": UPDATE, "delete": DELETE}
COMMITS: Final = frozenset(OPERATIONS.values())
RECORDS: Final = COMMITS - {DELETE}  # of commits that carry one
KINDS: Final = {
    "commit": COMMITS,
    "identity": frozenset({IDENTITY}),
    "account": frozenset({ACCOUNT}),
    "sync": frozenset({SYNC}),
}
ALL_KINDS: Final = frozenset(kind for kinds in KINDS.values() for kind in kinds)
# Kinds of events without a collection.
NO_COMMITS: Final = ALL_KINDS - COMMITS

_NONE: Final = frozenset[bytes]()


@dataclass(frozen=True, slots=True)
class Filter:
    """A set of events, in normal form: two filters that ask for the same compare equal.

    An event must pass the kinds, the collections and the DIDs. A list of DIDs stays as it is, so filters may
    differ in what they subtract from it and select the same. `parse_steps` makes the normal form; a filter
    that is made otherwise must be as the comments say.
    """

    # Full NSIDs, without those that a prefix covers; empty together with `prefixes`: every collection.
    collections: frozenset[bytes] = _NONE
    # Each ends in its dot and is covered by no other.
    prefixes: frozenset[bytes] = _NONE
    # Empty, with `listed`: every repo.
    dids: DidSet = NO_DIDS
    # Kinds of `model.event`. Empty: every kind. If none of them is of commits, no collection is named.
    kinds: frozenset[bytes] = _NONE
    # Exceptions from the prefixes, or from every collection. Exceptions from `collections` have been
    # subtracted. None is covered by an excluded prefix.
    excluded_collections: frozenset[bytes] = _NONE
    excluded_prefixes: frozenset[bytes] = _NONE
    # Exceptions from every repo, or from `listed`. From `dids` they have been subtracted.
    excluded_dids: DidSet = NO_DIDS
    # Ten-thousandths of all repos: see `in_sample`. The whole if `dids` are named, and no list: those outside
    # the sample have been subtracted, as have exceptions outside it.
    sample: int = SAMPLE_WHOLE
    # A large list of DIDs that are wanted, too; `dids` has none of them. Many filters share it, so nothing is
    # ever added to it or subtracted from it.
    listed: DidSet = NO_DIDS
    # Whether commits of every collection are wanted, as far as the kinds and the repo allow.
    every_collection: bool = field(init=False, repr=False, compare=False)
    # Whether only repos that are named or listed are wanted.
    names_dids: bool = field(init=False, repr=False, compare=False)
    # Whether the DIDs decide alone.
    dids_only: bool = field(init=False, repr=False, compare=False)
    # Whether some repos are left out, of all or of those that are listed.
    leaves_out_dids: bool = field(init=False, repr=False, compare=False)
    # Whether every event is wanted.
    everything: bool = field(init=False, repr=False, compare=False)
    # The prefixes, and those that are excluded, each in order.
    _sorted: tuple[tuple[bytes, ...], tuple[bytes, ...]] = field(init=False, repr=False, compare=False)
    # Computed once: each subscriber that comes looks for its group by it.
    _hash: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        # Computed once: they are asked for each event. The class is frozen, so they are set in this way.
        excluded = self.excluded_collections or self.excluded_prefixes
        every_collection = not (self.collections or self.prefixes or excluded)
        dids_only = every_collection and not self.kinds
        object.__setattr__(self, "every_collection", every_collection)
        object.__setattr__(self, "dids_only", dids_only)
        names_dids = bool(self.dids or self.listed)
        leaves_out_dids = bool(self.excluded_dids) or self.sample != SAMPLE_WHOLE
        object.__setattr__(self, "leaves_out_dids", leaves_out_dids)
        object.__setattr__(self, "names_dids", names_dids)
        prefixes = tuple(sorted(self.prefixes)), tuple(sorted(self.excluded_prefixes))
        object.__setattr__(self, "_sorted", prefixes)
        object.__setattr__(self, "everything", dids_only and not names_dids and not leaves_out_dids)
        named = self.collections, self.prefixes, self.dids, self.listed
        excluded_names = self.excluded_collections, self.excluded_prefixes, self.excluded_dids
        object.__setattr__(self, "_hash", hash((named, excluded_names, self.kinds, self.sample)))

    def __hash__(self) -> int:
        return self._hash

    @classmethod
    def parse(cls, collections: Sequence[str], dids: Sequence[str], **more: Any) -> Filter:
        """Do all of `parse_steps` at once."""
        return finish(cls.parse_steps(collections, dids, **more))

    @classmethod
    def parse_steps(  # noqa: PLR0913 - one argument for each parameter of a filter
        cls,
        collections: Sequence[str],
        dids: Sequence[str],
        *,
        kinds: Sequence[str] = (),
        operations: Sequence[str] = (),
        exclude_collections: Sequence[str] = (),
        exclude_dids: Sequence[str] = (),
        sample: str = "",
        content: tuple[str, str] | None = None,
        listed: DidSet = NO_DIDS,
    ) -> Steps[Filter]:
        """Parse the parameters of a filter, in steps of well under a millisecond.

        `listed` are more DIDs that are wanted, which may be many (`web.did_lists`). They are not copied.

        `content` is a parameter that judges records by what is in them, if there is one: its name and a
        value. Only creates and updates have a record. So other commits are left out then, and events of other
        kinds unless `kinds` names them.

        Raises InvalidParameter for more than 100 collections or 10,000 DIDs in a list; for a collection that
        is neither an NSID nor NSID segments followed by `.*`; for what is not a DID, a kind or an operation;
        for an exception from what is not wanted, or from all that is wanted; for collections and operations
        if the kinds leave commits out; and for a sample that is no percentage or leaves none of the DIDs.
        """
        wanted_kinds = _kinds(kinds or (["commit"] if content else ()), operations)
        if content:
            wanted_kinds = _with_records(*content, wanted_kinds)
        share = parse_sample(sample)
        _refuse_without_commits("wantedCollections", collections, wanted_kinds)
        _refuse_without_commits("excludeCollections", exclude_collections, wanted_kinds)
        wanted, excluded = subtract(
            parse_collections("wantedCollections", collections),
            parse_collections("excludeCollections", exclude_collections),
        )
        named = yield from _dids("wantedDids", dids, share)
        if (dids or listed) and not named and not (yield from _leaves_any(listed, NO_DIDS, share)):
            raise InvalidParameter("sample", sample, "leaves none of wantedDids")
        not_wanted = yield from _dids("excludeDids", exclude_dids, share)
        named, not_wanted = yield from _subtract_dids(named, listed, not_wanted, share)
        share = SAMPLE_WHOLE if named and not listed else share
        return cls(*wanted, named, wanted_kinds, *excluded, not_wanted, share, listed)

    def wants_collection(self, collection: bytes) -> bool:
        """Tell whether any events of `collection` are wanted, as far as their repo allows.

        Identity and account events have no collection, which is an empty name.
        """
        if self.kinds and self.kinds.isdisjoint(COMMITS if collection else NO_COMMITS):
            return False
        return self._passes(collection)

    def _passes(self, collection: bytes) -> bool:
        """Tell whether a collection passes the collections. Events that have none pass any."""
        if not collection or self.every_collection:
            return True
        prefixes, excluded = self._sorted
        named = (
            collection in self.collections
            or _starts_with_any(collection, prefixes)
            or not (self.collections or prefixes)
        )
        return named and not (
            collection in self.excluded_collections or _starts_with_any(collection, excluded)
        )

    def wants(self, kind: bytes, did: bytes, collection: bytes) -> bool:
        """Tell whether one event is wanted. The cheapest and most selective test is first: the DID."""
        if self.names_dids and did not in self.dids.members and did not in self.listed.members:
            return False
        if self.leaves_out_dids and (did in self.excluded_dids.members or not in_sample(did, self.sample)):
            return False
        return self.wants_of_repo(kind, collection)

    def wants_of_repo(self, kind: bytes, collection: bytes) -> bool:
        """Tell whether an event of a wanted repo is wanted, by its kind and its collection."""
        return (not self.kinds or kind in self.kinds) and self._passes(collection)

    def select(self, batch: Batch, start: int, stop: int) -> Sequence[int]:
        """Return the indices of the wanted events of `batch[start:stop]`, rising; a range if all are wanted.

        One pass over the column that leaves out most: the DIDs, or else the distinct collections. Kinds and
        exceptions judge what it leaves.
        """
        if self.everything:
            return range(start, stop)
        if self.names_dids:
            named = self._of_dids(batch, start, stop)
            if not self.dids_only:
                named = [i for i in named if self.wants_of_repo(batch.kinds[i], batch.collections[i])]
            return self.leave_out_dids(batch, named) if self.leaves_out_dids else named
        chosen = self._of_collections(batch, start, stop)
        if self.kinds:
            kinds, wanted = batch.kinds, self.kinds
            chosen = _whole_if_all(chosen, [i for i in chosen if kinds[i] in wanted])
        return self.leave_out_dids(batch, chosen) if self.leaves_out_dids else chosen

    def leave_out_dids(self, batch: Batch, chosen: Sequence[int]) -> Sequence[int]:
        """Return those of `chosen` whose repo is in the sample and not excluded; `chosen` itself for all."""
        dids, excluded, sample = batch.dids, self.excluded_dids.members, self.sample
        kept = [i for i in chosen if dids[i] not in excluded] if excluded else chosen
        if sample != SAMPLE_WHOLE:
            below = hashes_below(sample)
            kept = [i for i in kept if crc32(dids[i]) < below]
        return _whole_if_all(chosen, kept)

    def _of_dids(self, batch: Batch, start: int, stop: int) -> list[int]:
        """Return the indices of `batch[start:stop]` whose repo is named or listed."""
        dids, named, listed = batch.dids, self.dids.members, self.listed.members
        if not listed:
            return [i for i in range(start, stop) if dids[i] in named]
        if not named:
            return [i for i in range(start, stop) if dids[i] in listed]
        return [i for i in range(start, stop) if dids[i] in listed or dids[i] in named]

    def _of_collections(self, batch: Batch, start: int, stop: int) -> Sequence[int]:
        """Return the indices of `batch[start:stop]` whose collection is wanted; a range if all are."""
        if self.every_collection:
            return range(start, stop)
        column = batch.collections[start:stop]
        names = set(column)
        wanted = {name for name in names if self.wants_collection(name)}
        if len(wanted) == len(names):
            return range(start, stop)
        return [i for i, name in enumerate(column, start) if name in wanted]


EVERYTHING: Final = Filter()


def _starts_with_any(collection: bytes, prefixes: tuple[bytes, ...]) -> bool:
    """Tell whether a collection has one of `prefixes`, which are in order, and none of which covers another.

    So it can only be the last that is not greater: what lies between a prefix and the collection has the
    prefix, too. There may be 100 prefixes, and this is asked for each event.
    """
    at = bisect_right(prefixes, collection)
    return at > 0 and collection.startswith(prefixes[at - 1])


def _whole_if_all(whole: Sequence[int], part: Sequence[int]) -> Sequence[int]:
    """Return `whole`, which may be a range, if `part` has all of it."""
    return whole if len(part) == len(whole) else part


# Parsing


def _dids(parameter: str, dids: Sequence[str], sample: int) -> Steps[DidSet]:
    """Parse a list of DIDs, in steps; return those in the sample. Raises InvalidParameter."""
    refuse_many(parameter, dids, DIDS_MAX)
    whole, named = sample == SAMPLE_WHOLE, dict[bytes, None]()
    for start in range(0, len(dids), DIDS_PER_STEP):
        for did in dids[start : start + DIDS_PER_STEP]:
            if not is_did(did):
                raise InvalidParameter(parameter, did, "is not a DID, such as did:plc:…")
            encoded = did.encode()
            if whole or in_sample(encoded, sample):
                named[encoded] = None
        yield
    return DidSet(named)


def _kinds(kinds: Sequence[str], operations: Sequence[str]) -> frozenset[bytes]:
    """Return the kinds of events that both select; none for all of them. Raises InvalidParameter."""
    refuse_unknown("kinds", kinds, KINDS)
    refuse_unknown("operations", operations, OPERATIONS)
    wanted = _NONE.union(*(KINDS[name] for name in kinds or KINDS))
    if operations:
        _refuse_without_commits("operations", operations, wanted)
        wanted -= COMMITS - {OPERATIONS[name] for name in operations}
    return _NONE if wanted == ALL_KINDS else wanted


def _with_records(parameter: str, value: str, kinds: frozenset[bytes]) -> frozenset[bytes]:
    """Leave out commits without a record. Raises InvalidParameter if no others are left."""
    if kinds and kinds.isdisjoint(RECORDS):
        raise InvalidParameter(
            parameter, value, "applies to creates and updates, and kinds or operations leave them out"
        )
    return (kinds or ALL_KINDS) - (COMMITS - RECORDS)


def _subtract_dids(
    named: DidSet, listed: DidSet, excluded: DidSet, sample: int
) -> Steps[tuple[DidSet, DidSet]]:
    """Return what is left of `named`, without what is listed, and the exceptions from every repo or the list.

    Raises InvalidParameter for exceptions from what is not wanted, or from all that is.
    """
    left = named - listed - excluded
    if not excluded or not (named or listed):
        return left, excluded
    if strange := excluded - named - listed:
        raise InvalidParameter(
            "excludeDids", min(strange).decode(), "excludes nothing: it is not in wantedDids"
        )
    if not left and not (yield from _leaves_any(listed, excluded, sample)):
        raise InvalidParameter("excludeDids", min(excluded).decode(), "leaves none of wantedDids")
    return left, DidSet(did for did in excluded if did in listed.members)


def _leaves_any(listed: DidSet, excluded: DidSet, sample: int) -> Steps[bool]:
    """Tell, in steps, whether a list has a DID that is in the sample and not excluded."""
    for count, did in enumerate(listed, 1):
        if did not in excluded.members and in_sample(did, sample):
            return True
        if count % DIDS_PER_STEP == 0:
            yield
    return False


def _refuse_without_commits(parameter: str, values: Sequence[str], kinds: frozenset[bytes]) -> None:
    """Refuse values that apply to commits where the kinds leave commits out. Raises InvalidParameter."""
    if values and kinds and kinds.isdisjoint(COMMITS):
        text = "applies to commits, and kinds leaves them out: add commit to kinds, or leave this out"
        raise InvalidParameter(parameter, values[0], text)
