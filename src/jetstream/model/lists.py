"""The lists of a filter as clients give them: what is refused in any, and collections. Pure.

    `parse_collections`   text to `Collections`, in normal form; done for the wanted and for the excluded ones
    `subtract`            the excluded ones from the wanted ones; what cannot be meant is refused

An exception that excludes nothing, or everything, is refused, because it is a mistake of the client. The
errors are InvalidParameter, with the name of the parameter and a text that follows its value in a sentence.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from jetstream.errors import InvalidParameter
from jetstream.model.syntax import is_nsid, is_nsid_prefix

# What `docs/api.md` allows in one list of names: collections, kinds, languages and the like.
NAMES_MAX: Final = 100


def refuse_many(parameter: str, values: Sequence[str], most: int) -> None:
    """Raise InvalidParameter if there are more than `most` values."""
    if len(values) > most:
        raise InvalidParameter(parameter, str(len(values)), f"are too many: at most {most}")


def refuse_unknown(parameter: str, values: Sequence[str], known: Iterable[str]) -> None:
    """Raise InvalidParameter for a value that is not known, and for more than 100 values.

    Names are compared as they are: case counts.
    """
    refuse_many(parameter, values, NAMES_MAX)
    for value in values:
        if value not in known:
            raise InvalidParameter(parameter, value, f"is none of {', '.join(known)}")


class Collections(NamedTuple):
    """Collections as a client lists them. A prefix keeps its dot and loses its star."""

    full: frozenset[bytes]  # NSIDs: app.bsky.feed.like
    prefixes: frozenset[bytes]  # app.bsky.feed. for app.bsky.feed.*

    def covers(self, name: bytes) -> bool:
        """Tell whether all of a full name or of a prefix is listed."""
        return name in self.full or name.startswith(tuple(self.prefixes))

    def meets(self, name: bytes) -> bool:
        """Tell whether any of a full name or of a prefix is listed."""
        inside = name.endswith(b".") and any(each.startswith(name) for each in self.full | self.prefixes)
        return inside or self.covers(name)

    def without(self, other: Collections) -> Collections:
        """Return what `other` does not cover. A prefix stays that `other` covers in part."""
        return Collections(*(frozenset(each for each in part if not other.covers(each)) for part in self))

    def within(self, prefixes: frozenset[bytes]) -> Collections:
        """Return what lies in one of `prefixes`; what is wider than a prefix does not."""
        return Collections(
            *(frozenset(each for each in part if each.startswith(tuple(prefixes))) for part in self)
        )

    def normal(self) -> Collections:
        """Return the normal form, without what another listed prefix covers.

        Two lists that cover the same have the same normal form, so that filters can be compared.
        """
        prefixes = tuple(self.prefixes)
        return Collections(
            frozenset(name for name in self.full if not name.startswith(prefixes)),
            frozenset(prefix for prefix in prefixes if not prefix[:-1].startswith(prefixes)),
        )


def parse_collections(parameter: str, collections: Sequence[str]) -> Collections:
    """Parse a list of collections into their normal form.

    Each is an NSID, or NSID segments followed by `.*`. Raises InvalidParameter for anything else, and for
    more than 100.
    """
    refuse_many(parameter, collections, NAMES_MAX)
    full, prefixes = set(), set()
    for name in collections:
        if is_nsid(name):
            full.add(name.encode())
        elif name.endswith("*") and is_nsid_prefix(name[:-1]):
            prefixes.add(name[:-1].encode())
        else:
            raise InvalidParameter(
                parameter,
                name,
                "is neither a collection, such as app.bsky.feed.like, nor a prefix, such as app.bsky.feed.*",
            )
    return Collections(frozenset(full), frozenset(prefixes)).normal()


def subtract(wanted: Collections, excluded: Collections) -> tuple[Collections, Collections]:
    """Return what is left of `wanted`, and the exceptions from that. Both are in normal form.

    Full names that are excluded are removed. Exceptions from a prefix cannot be, so they are returned, and
    all of them are if every collection is wanted. Raises InvalidParameter for an exception that excludes
    nothing of `wanted`, and if nothing is left.
    """
    if not any(wanted):
        return wanted, excluded
    shown = [*sorted(excluded.full), *(prefix + b"*" for prefix in sorted(excluded.prefixes))]
    for name in shown:
        if not wanted.meets(name.removesuffix(b"*")):
            raise InvalidParameter(
                "excludeCollections", name.decode(), "excludes nothing: it is not in wantedCollections"
            )
    left = wanted.without(excluded)
    if not any(left):
        raise InvalidParameter(
            "excludeCollections",
            b", ".join(shown).decode(),
            "leaves none of wantedCollections: for other events alone, use kinds=identity,account",
        )
    return left, excluded.within(left.prefixes)
