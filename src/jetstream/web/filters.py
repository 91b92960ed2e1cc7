"""The filter of a subscription: the names of its parameters, and what they become. Pure.

A query and an `options_update` have the same names. `Given` reads their values from either.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final, NamedTuple

from jetstream.model.content import Content
from jetstream.model.did_set import NO_DIDS
from jetstream.model.filter import Filter
from jetstream.steps import Steps
from jetstream.web.did_lists import DidList

# Lists, by the argument of `Filter.parse_steps` or `Content.parse_steps` that each is.
_LISTS: Final = {
    "collections": "wantedCollections",
    "dids": "wantedDids",
    "kinds": "kinds",
    "operations": "operations",
    "exclude_collections": "excludeCollections",
    "exclude_dids": "excludeDids",
}
_CONTENT_LISTS: Final = {
    "lang": "lang",
    "mentions": "mentions",
    "reply_to": "replyTo",
    "subject": "subject",
    "text": "text",
}
_HAS_MEDIA: Final = "hasMedia"
_SAMPLE: Final = "sample"

# The lists whose values a query may separate by commas. A phrase may have some.
COMMA_LISTS: Final = frozenset({*_LISTS.values(), *_CONTENT_LISTS.values()} - {"text"})
# All parameters of a filter.
FILTER: Final = (*_LISTS.values(), *_CONTENT_LISTS.values(), _HAS_MEDIA, _SAMPLE)


class Given(NamedTuple):
    """How the values of a query or an update are read, by name. Each raises InvalidParameter."""

    strings: Callable[[str], Sequence[str]]  # a list; empty when absent
    flag: Callable[[str], bool]  # false when absent
    number: Callable[[str], str]  # as text; empty when absent


def parse_filter(
    given: Given, did_list: DidList | None, names: Mapping[str, str] = _LISTS
) -> Steps[tuple[Filter, Content | None]]:
    """Parse the parameters of a filter, in steps. Raises InvalidParameter.

    `did_list` is an uploaded list whose DIDs are wanted, too. `names` are the names of the lists of `Filter`.
    """
    lists = {argument: given.strings(name) for argument, name in _CONTENT_LISTS.items()}
    has_media = given.flag(_HAS_MEDIA)
    content = yield from Content.parse_steps(**lists, has_media=has_media)
    wanted = yield from Filter.parse_steps(
        **{argument: given.strings(name) for argument, name in names.items()},
        sample=given.number(_SAMPLE),
        content=_first(lists, has_media),
        listed=did_list.dids if did_list else NO_DIDS,
    )
    return wanted, content


def _first(lists: dict[str, Sequence[str]], has_media: bool) -> tuple[str, str] | None:
    """Return a parameter that judges records by what is in them, with a value, for error messages."""
    for argument, values in lists.items():
        if values:
            return _CONTENT_LISTS[argument], values[0]
    return (_HAS_MEDIA, "true") if has_media else None
