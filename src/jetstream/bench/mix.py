"""Who subscribes to what: realistic filters, made from a description such as `unfiltered=9,dids:20=1`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Final, NamedTuple

# Collections and prefixes of the real network, the most frequent first.
COLLECTIONS: Final = (
    "app.bsky.feed.like",
    "app.bsky.feed.post",
    "app.bsky.feed.repost",
    "app.bsky.graph.follow",
    "app.bsky.graph.block",
    "app.bsky.graph.listitem",
    "app.bsky.feed.threadgate",
    "app.bsky.actor.profile",
    "app.bsky.feed.*",
    "app.bsky.graph.*",
    "app.bsky.*",
    "com.example.*",
    "net.example.*",
)
_COLLECTIONS_EACH_MAX: Final = 4
COLLECTION_FILTERS_MAX: Final = 1_000
DIDS_EACH_MAX: Final = 10_000  # the limit of servers for one subscriber


class Wanted(NamedTuple):
    """A filter. An empty set does not filter."""

    collections: frozenset[str] = frozenset()
    dids: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """The kind of filter, as a description names it."""
        return "dids" if self.dids else "collections" if self.collections else "unfiltered"

    def query(self) -> list[tuple[str, str]]:
        """Return it as query parameters."""
        return [("wantedCollections", name) for name in sorted(self.collections)] + [
            ("wantedDids", did) for did in sorted(self.dids)
        ]

    def wants(self, did: str, collection: str) -> bool:
        """Return whether an event passes; identity and account events have an empty collection."""
        if self.dids and did not in self.dids:
            return False
        return not (collection and self.collections) or self.wants_collection(collection)

    def wants_collection(self, collection: str) -> bool:
        """Return whether a name, or a prefix such as `app.bsky.*`, matches the collection."""
        return any(
            collection.startswith(name[:-1]) if name.endswith(".*") else collection == name
            for name in self.collections
        )


EVERYTHING: Final = Wanted()


class Part(NamedTuple):
    """One kind of subscriber in a mix."""

    kind: str  # unfiltered, dids or collections
    number: int  # DIDs for each subscriber, or collection filters in all
    share: float  # of the subscribers, relative to the other parts


def parse(text: str) -> list[Part]:
    """Parse `unfiltered`, `dids:20`, `collections:50`, or several with shares: `unfiltered=9,dids:20=1`.

    Raises ValueError with a sentence for the user.
    """
    parts = []
    for item in text.split(","):
        found = re.fullmatch(r"(unfiltered|dids:(\d+)|collections:(\d+))(?:=(\d+(?:\.\d+)?))?", item.strip())
        if found is None:
            raise ValueError(
                f"{item.strip()!r} is not one of unfiltered, dids:N, collections:N, with or without =SHARE"
            )
        kind, number = found[1].partition(":")[0], int(found[2] or found[3] or 0)
        most = {"unfiltered": 0, "dids": DIDS_EACH_MAX, "collections": COLLECTION_FILTERS_MAX}[kind]
        if number > most or (most and not number):
            raise ValueError(f"{item.strip()!r}: the number must be from 1 to {most:,}")
        parts.append(Part(kind, number, float(found[4] or 1)))
    if not sum(part.share for part in parts):
        raise ValueError(f"{text!r} gives every part a share of 0")
    return parts


def filters(parts: Sequence[Part], subscribers: int, dids: Sequence[str], rng: Random) -> list[Wanted]:
    """Return a filter for each subscriber. `dids` are the accounts to choose from.

    Raises ValueError if there are fewer accounts than one subscriber wants.
    """
    collections = {
        part: _collection_filters(part.number, rng) for part in parts if part.kind == "collections"
    }
    if (most := max((part.number for part in parts if part.kind == "dids"), default=0)) > len(dids):
        raise ValueError(f"{most} DIDs each are more than the {len(dids)} accounts known")
    chosen = rng.choices(parts, [part.share for part in parts], k=subscribers)
    return [_filter(part, collections, dids, rng) for part in chosen]


def _filter(part: Part, collections: dict[Part, list[Wanted]], dids: Sequence[str], rng: Random) -> Wanted:
    if part.kind == "dids":
        return Wanted(dids=frozenset(rng.sample(dids, part.number)))
    return rng.choice(collections[part]) if part.kind == "collections" else EVERYTHING


def _collection_filters(count: int, rng: Random) -> list[Wanted]:
    """Return `count` different filters, each of one to four collections or prefixes."""
    made: dict[Wanted, None] = {}
    while len(made) < count:
        names = rng.sample(COLLECTIONS, rng.randint(1, _COLLECTIONS_EACH_MAX))
        made[Wanted(frozenset(names))] = None
    return list(made)


def choose_checked(wanted: Sequence[Wanted], each: int, most: int, rng: Random) -> set[int]:
    """Return the indexes of the subscribers to check message by message, spread over the order of connecting.

    These are at least `each` of every kind, and up to `most` if their filters differ. All subscribers with
    DIDs are checked, because they receive little.
    """
    chosen: set[int] = set()
    for kind in {one.kind for one in wanted}:
        places = [index for index, one in enumerate(wanted) if one.kind == kind]
        count = min(len(places), max(each, min(most, len({wanted[index] for index in places}))))
        if kind == "dids":
            count = len(places)
        edges = [len(places) * k // count for k in range(count + 1)]
        chosen |= {places[rng.randrange(low, high)] for low, high in pairwise(edges)}
    return chosen
