"""Who subscribes to what: filters as real subscribers have them, out of a description such as `dids:20`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise
from random import Random
from typing import Final, NamedTuple

# What there is on the network; the first two thirds are what most of it is.
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
DIDS_EACH_MAX: Final = 10_000  # a server's limit for one subscriber


class Wanted(NamedTuple):
    """A filter; an empty set is no limit."""

    collections: frozenset[str] = frozenset()
    dids: frozenset[str] = frozenset()

    @property
    def kind(self) -> str:
        """What sort of filter it is, as a description names it."""
        return "dids" if self.dids else "collections" if self.collections else "unfiltered"

    def query(self) -> list[tuple[str, str]]:
        """Write it as the parameters of a URL."""
        return [("wantedCollections", name) for name in sorted(self.collections)] + [
            ("wantedDids", did) for did in sorted(self.dids)
        ]

    def wants(self, did: str, collection: str) -> bool:
        """Tell whether an event is wanted; identity and account events have an empty collection."""
        if self.dids and did not in self.dids:
            return False
        return not (collection and self.collections) or self.wants_collection(collection)

    def wants_collection(self, collection: str) -> bool:
        """Tell whether one of the names, or of the prefixes such as `app.bsky.*`, is the collection's."""
        return any(
            collection.startswith(name[:-1]) if name.endswith(".*") else collection == name
            for name in self.collections
        )


EVERYTHING: Final = Wanted()


class Part(NamedTuple):
    """One kind of subscriber: `number` is the DIDs of each, or how many collection filters there are."""

    kind: str
    number: int
    share: float


def parse(text: str) -> list[Part]:
    """Read `unfiltered`, `dids:20`, `collections:50`, or several with shares: `unfiltered=9,dids:20=1`.

    Raises ValueError with a sentence for a person.
    """
    parts = []
    for item in text.split(","):
        found = re.fullmatch(r"(unfiltered|dids:(\d+)|collections:(\d+))(?:=(\d+(?:\.\d+)?))?", item.strip())
        if found is None:
            raise ValueError(f"{item.strip()!r} is none of unfiltered, dids:N and collections:N, or N=share")
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

    Raises ValueError where there are fewer than one subscriber names.
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
    """Return so many different filters of one to four collections or prefixes."""
    made: dict[Wanted, None] = {}
    while len(made) < count:
        names = rng.sample(COLLECTIONS, rng.randint(1, _COLLECTIONS_EACH_MAX))
        made[Wanted(frozenset(names))] = None
    return list(made)


def choose_checked(wanted: Sequence[Wanted], each: int, most: int, rng: Random) -> set[int]:
    """Return which subscribers to check message by message, spread over the order of connecting.

    Of each kind at least `each`, and up to `most` where its filters differ; all with DIDs, who get little.
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
