"""The filter of a subscription: the names of its parameters, and what they become. Pure.

A query and an `options_update` have the same names. `Given` reads their values from either.

    Given.strings, .flag, .number ──▶ parse_filter ──▶ Filter     kinds, collections, DIDs, a sample
                                                  └──▶ Content    what a record must have; None: anything

What a value must be is decided in `model.filter` and `model.content`, which raise `InvalidParameter` with
the names given here. Equal short filters become the same objects: delivery soon finds that such
subscribers have equal options.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import Final, NamedTuple

from jetstream.model.content import Content
from jetstream.model.did_set import NO_DIDS, DidSet
from jetstream.model.filter import Filter
from jetstream.steps import Steps, finish
from jetstream.web.did_lists import DidList

# Lists, by the argument of `Filter.parse_steps` or `Content.parse_steps` that each is.
LISTS: Final = {
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
# The parameters of a filter that are no lists: true or false, and a number.
_HAS_MEDIA: Final = "hasMedia"
_SAMPLE: Final = "sample"

# Most clients have one of a few short filters, and come back with it. To parse one takes 15 µs, a tenth of a
# handshake. So many are remembered, with up to so many values a list, and characters of them. The whole
# query of `/subscribe` is remembered in `parameters`.
REMEMBERED: Final = 256
SHORT_VALUES: Final = 10
SHORT_CHARS: Final = 300

# The values of lists, by argument, without those that are empty.
Lists = Mapping[str, Sequence[str]]
# The same as a tuple, which a cache can have as its key.
Frozen = tuple[tuple[str, tuple[str, ...]], ...]
# The arguments that are absent.
_NO_LISTS: Final[Lists] = dict.fromkeys(LISTS, ())
_NO_CONTENT: Final[Lists] = dict.fromkeys(_CONTENT_LISTS, ())

# The lists whose values a query may separate by commas. A phrase may have some.
COMMA_LISTS: Final = frozenset({*LISTS.values(), *_CONTENT_LISTS.values()} - {"text"})
# All parameters of a filter.
FILTER: Final = (*LISTS.values(), *_CONTENT_LISTS.values(), _HAS_MEDIA, _SAMPLE)


class Given(NamedTuple):
    """How the values of a query or an update are read, by name. Each raises InvalidParameter."""

    strings: Callable[[str], Sequence[str]]  # a list; empty when absent
    flag: Callable[[str], bool]  # false when absent
    number: Callable[[str], str]  # as text; empty when absent


def parse_filter(
    given: Given, did_list: DidList | None, names: Mapping[str, str] = LISTS
) -> Steps[tuple[Filter, Content | None]]:
    """Parse the parameters of a filter, in steps. Raises InvalidParameter.

    `did_list` is an uploaded list whose DIDs are wanted, too. `names` are the names of the lists of `Filter`.

    The second value is None where records are not looked at. A filter with an uploaded list is not
    remembered: the cache would keep the memory of the list.
    """
    strings = given.strings
    content = {argument: values for argument, name in _CONTENT_LISTS.items() if (values := strings(name))}
    lists = {argument: values for argument, name in names.items() if (values := strings(name))}
    has_media, sample = given.flag(_HAS_MEDIA), given.number(_SAMPLE)
    if did_list is None and _is_short(content) and _is_short(lists):
        return _remembered(_frozen(content), _frozen(lists), has_media, sample)
    listed = did_list.dids if did_list else NO_DIDS
    return (yield from _parse(content, lists, has_media, sample, listed))


def _parse(
    content: Lists, lists: Lists, has_media: bool, sample: str, listed: DidSet
) -> Steps[tuple[Filter, Content | None]]:
    """Parse the values of a filter, in steps. Raises InvalidParameter.

    `content` and `lists` have the values by argument, and may lack some; `listed` are the DIDs of an
    uploaded list.
    """
    parsed = yield from Content.parse_steps(**{**_NO_CONTENT, **content}, has_media=has_media)
    first = _first(content, has_media)
    lists = {**_NO_LISTS, **lists}
    wanted = yield from Filter.parse_steps(**lists, sample=sample, content=first, listed=listed)
    return wanted, parsed


@lru_cache(REMEMBERED)
def _remembered(
    content: Frozen, lists: Frozen, has_media: bool, sample: str
) -> tuple[Filter, Content | None]:
    """Parse the values of a short filter at once. Subscribers that ask for the same share what it becomes.

    Its steps are few: a short filter takes 15 µs. Errors are not remembered.
    """
    return finish(_parse(dict(content), dict(lists), has_media, sample, NO_DIDS))


def _is_short(lists: Lists) -> bool:
    """Tell whether all values of some lists together are few and short.

    Each list may have `SHORT_VALUES` values and `SHORT_CHARS` characters.
    """
    for values in lists.values():
        if len(values) > SHORT_VALUES or sum(map(len, values)) > SHORT_CHARS:
            return False
    return True


def _frozen(lists: Lists) -> Frozen:
    """Return lists as a key of the cache, in the order in which they were read."""
    return tuple([(argument, tuple(values)) for argument, values in lists.items()])


def _first(lists: Lists, has_media: bool) -> tuple[str, str] | None:
    """Return a parameter that judges records by what is in them, with a value, for error messages.

    `lists` has the content lists by argument. None if there is no such parameter.
    """
    for argument, values in lists.items():
        if values:
            return _CONTENT_LISTS[argument], values[0]
    return (_HAS_MEDIA, "true") if has_media else None
