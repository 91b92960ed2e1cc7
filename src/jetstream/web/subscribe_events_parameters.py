"""The parameters of `network.bsky.jetstream.subscribeEvents`. Pure, and strict.

They have other names than those of `/subscribe` and rules of their own, which clients rely on: lists are
repeated and never separated by commas, and an empty value is a mistake. They are checked in the order of the
lexicon: compression, filters, cursor. A name of `/subscribe` is refused with the right one, and any other
unknown name is ignored. All other parameters of a filter, `until`, `limit` and `heartbeat` are ours, as at
`/subscribe`.

`cursor` is a position, whether the client took it for a `seq` or for a time: one number is both.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple

from jetstream.delivery.subscriber import Bounds, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.content import Content
from jetstream.model.filter import Filter
from jetstream.model.syntax import is_nsid
from jetstream.steps import Steps
from jetstream.web.did_lists import DidList, no_list
from jetstream.web.filter_parameters import LISTS, parse_filter
from jetstream.web.http import Request
from jetstream.web.parameters import (
    FindList,
    bounds_of,
    read_heartbeat,
    read_limit,
    read_list,
    read_until,
)
from jetstream.web.query import Query, decode_query, given_in

KINDS_MAX: Final = 4  # values, also repeated ones
# The names here of parameters of `/subscribe`, and all lists of a filter with these names.
_NAMES: Final = {"wantedCollections": "collections", "wantedDids": "dids"}
_LISTS: Final = {argument: _NAMES.get(name, name) for argument, name in LISTS.items()}
# Names of `/subscribe`, and what is meant here.
_ELSEWHERE: Final = {
    "wantedDids": "use dids",
    "wantedCollections": "use collections",
    "requireHello": "the options of a connection cannot change here",
}
# For clients that ask for compression in the ways of `/subscribe`.
_USE_DICTIONARY: Final = (
    "is of /subscribe: use zstdDictionary with the ID of the dictionary of getZstdDictionary"
)
# A percent sign without two hexadecimal digits. Decoding would leave it as it is.
_BAD_ESCAPE: Final = re.compile("%(?![0-9a-fA-F]{2}).{0,2}").search
# A number, maybe too large: then the sentence says how large it may be.
_NUMBER: Final = re.compile(r"[0-9]{1,40}", re.ASCII).fullmatch
# The lexicon's types: 32 bits for a size and an ID, 63 bits for a cursor.
_SIZE_MAX: Final = (1 << 32) - 1
_CURSOR_MAX: Final = (1 << 63) - 1


class SubscribeEventsRequest(NamedTuple):
    """What a client asked for in its URL."""

    # The filter, which cannot change while connected.
    options: SubscriberOptions
    # A position to start at, or 0 for the oldest event; None: live.
    cursor: int | None
    dictionary_id: int | None = None  # of the dictionary to compress messages with; None: plain text
    bounds: Bounds | None = None  # where the subscription ends by itself
    heartbeat_s: int | None = None  # seconds without an event until there is a heartbeat; None: the wire's
    did_list: DidList | None = None  # the uploaded list whose DIDs are part of the filter


def parse_subscribe_events(
    request: Request, find_list: FindList = no_list, *, now_us: int
) -> Steps[SubscribeEventsRequest]:
    """Read the parameters of a request, in steps. `now_us` is what ages in `until` count from.

    `find_list` returns an uploaded list by its ID, or raises InvalidParameter. Raises InvalidParameter.
    """
    if bad := _BAD_ESCAPE(request.query):
        raise InvalidParameter("query", bad[0], "is no percent-encoding")
    # Commas separate nothing here: they are a part of a value.
    query = yield from decode_query(request.query, lists=())
    dictionary_id = _dictionary_id(query, request)
    for name, meant in _ELSEWHERE.items():
        if name in query:
            raise InvalidParameter(name, query[name][0], f"is given to a parameter of /subscribe: {meant}")
    did_list = read_list(query, find_list)
    wanted, content = yield from _wanted(query, did_list)
    options, cursor = SubscriberOptions(wanted, _size(query), content), _cursor(query)
    until, limit = read_until(query, cursor, now_us), read_limit(query)
    bounds = bounds_of(until, limit)
    return SubscribeEventsRequest(options, cursor, dictionary_id, bounds, read_heartbeat(query), did_list)


def _dictionary_id(query: Query, request: Request) -> int | None:
    """Return the ID of a dictionary, unless a client asks for compression in another way.

    The first value counts. None for plain text. Raises InvalidParameter.
    """
    if "true" in query.get("compress", ()):
        raise InvalidParameter("compress", "true", _USE_DICTIONARY)
    encoding = request.headers.get("socket-encoding", "")
    if "zstd" in encoding:
        raise InvalidParameter("Socket-Encoding", encoding, _USE_DICTIONARY)
    text = query.get("zstdDictionary", [""])[0]
    if text and not (_NUMBER(text) and 0 < int(text) <= _SIZE_MAX):
        raise InvalidParameter("zstdDictionary", text, "is not the ID of a dictionary, a positive number")
    return int(text) if text else None


def _wanted(query: Query, did_list: DidList | None) -> Steps[tuple[Filter, Content | None]]:
    """Return the filter that a request asks for, in steps.

    Errors have the names of this endpoint, also those that `model.filter` raises. Raises InvalidParameter.
    """
    collections, kinds = query.get("collections", []), query.get("kinds", [])
    for name in collections:
        if not is_nsid(name) and not (name.endswith(".*") and is_nsid(name[:-1] + "x")):
            text = "is neither a collection nor a prefix of two names or more, such as app.bsky.*"
            raise InvalidParameter("collections", name, text)
    if len(kinds) > KINDS_MAX:
        raise InvalidParameter("kinds", str(len(kinds)), f"are too many: at most {KINDS_MAX}")
    try:
        return (yield from parse_filter(given_in(query), did_list, _LISTS))
    except InvalidParameter as error:
        problem = error.problem
        for there, here in _NAMES.items():
            problem = problem.replace(there, here)
        raise InvalidParameter(_NAMES.get(error.name, error.name), error.value, problem) from None


def _size(query: Query) -> int:
    """Return the limit of messages in bytes; 0: none.

    Given more than once, or empty, it is a mistake. Raises InvalidParameter.
    """
    values = query.get("maxMessageSizeBytes", ["0"])
    if len(values) > 1 or not _NUMBER(values[0]) or int(values[0]) > _SIZE_MAX:
        text = f"is not one number of bytes from 0 to {_SIZE_MAX}"
        raise InvalidParameter("maxMessageSizeBytes", ", ".join(values), text)
    return int(values[0])


def _cursor(query: Query) -> int | None:
    """Return the first cursor; None if it is absent or empty.

    Later values are ignored. Raises InvalidParameter.
    """
    text = query.get("cursor", [""])[0]
    if text and not (_NUMBER(text) and int(text) <= _CURSOR_MAX):
        raise InvalidParameter("cursor", text, "is not a seq or a time in unix microseconds, as a number")
    return int(text) if text else None
