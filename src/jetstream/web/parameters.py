"""What a subscriber asks for, in its URL and in its messages. Pure, and strict.

`parse_request` reads a URL's query string, and `parse_message` an `options_update`. A value that cannot be
used raises `InvalidParameter` with the name, the value and a sentence; so does a name that is surely a
mistake. Other unknown names are ignored, as clients of other servers send some.

A client may send 10,000 DIDs, which take 30 ms. So both are generators: they yield after less than a
millisecond, and the caller decides when to go on (`scheduling.Worker`).

What a short query means is remembered. To add a parameter: its name to `_KNOWN`, its value to `_read` and, if
it may change while connected, to `_OPTIONS` and `parse_message`. One whose meaning depends on more than the
query, such as the time: to `_VARYING` and `parse_request`. One that filters: `web/filter_parameters.py`.

    query string ──▶ decode_query ──▶ Query ──▶ Given ──┐
                                                        ├──▶ parse_filter ──▶ SubscriberOptions
    options_update ──▶ JSON ──▶ Given ──────────────────┘

The same names mean the same in both. A query has more of them: where to begin and to end, and how events
are written. docs/api.md describes each parameter for clients, and `parameter_table` has a sentence and a
schema of each.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import lru_cache, partial
from typing import Any, Final, NamedTuple

import orjson

from jetstream.delivery.renderers.classic import CLASSIC
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.subscriber import Bounds, SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.steps import Steps, finish
from jetstream.web.did_lists import DidList, no_list
from jetstream.web.filter_parameters import FILTER, Given, parse_filter
from jetstream.web.http import Request
from jetstream.web.query import (
    NAME_CHARS_MAX,
    PARAMETERS_PER_STEP,
    Query,
    cut_cursor,
    decode_query,
    flag_in,
    given_in,
    number_in,
    once_in,
    time_in,
)

# An update has at most 10,000 wanted and 10,000 excluded DIDs, some hundred other names, and a comma for
# each. A million take 0.1 s to parse.
COMMAS_MAX: Final = 24_000
# Names that came with the v1 wire. `maxSize` is what the Go client sends for `maxMessageSizeBytes`.
_V1: Final = ("compress", "requireHello", "maxMessageSizeBytes", "maxSize")
# The wires of `/subscribe` and `/v1/subscribe`.
WIRES: Final = (CLASSIC.name, V1.name)  # v2 has an endpoint of its own
# Which requests get v1: for `/`, and for a request that lacks the upgrade.
WIRE_RULE: Final = (
    f"a request with Socket-Encoding, {', '.join(_V1[:-1])} or {_V1[-1]} is from a v1 client and gets v1,"
    " unless it names a wire"
)
# All parameters, and those that can change while connected.
_KNOWN: Final = (*FILTER, "filter", "cursor", "until", "limit", "heartbeat", "wire", "zstdDictionary", *_V1)
_OPTIONS: Final = (*FILTER, "filter", "maxMessageSizeBytes", "maxSize", "heartbeat")

# Most clients have one of a few short queries, and come back with it and a cursor. To read one takes a tenth
# of a handshake. So many are remembered, up to so many characters each.
REMEMBERED: Final = 256
SHORT_CHARS: Final = 400
# What these mean depends on the time, or on the lists that there are.
_VARYING: Final = frozenset({"cursor", "until", "filter"})

# Seconds of `heartbeat`. A client that waits longer takes the connection for dead.
HEARTBEAT_S: Final = range(1, 301)
_NO_HEARTBEAT: Final = "is not a whole number of seconds from 1 to 300"

# Returns an uploaded list by its ID. Raises InvalidParameter if there is none.
FindList = Callable[[str], DidList]


class SubscribeRequest(NamedTuple):
    """What a client asked for in its URL.

    Values are checked by themselves here. Whether an endpoint can serve them is decided by its `Dialect`.
    A short query may be remembered, so the value may be shared by many requests.
    """

    # Filter, content and size limit.
    options: SubscriberOptions  # until the first `options_update`
    cursor: int | None  # in unix microseconds, to start at; None: live
    require_hello: bool  # whether nothing is sent before the first `options_update`
    wire: str | None  # the name of the wire; None: that of the path
    compress: bool  # whether messages are compressed with the dictionary of v1 clients
    dictionary_id: int | None = None  # of the dictionary that a request names to compress them with
    until: int | None = None  # in unix microseconds: no event from here on is sent
    limit: int | None = None  # so many events are sent at most
    heartbeat_s: int | None = None  # seconds without an event until there is a heartbeat; None: the wire's
    did_list: DidList | None = None  # the uploaded list whose DIDs are part of the filter

    @property
    def bounds(self) -> Bounds | None:
        """Where the subscription ends by itself, for one subscriber.

        A new object with each call, as it counts the events of one subscriber.
        """
        return bounds_of(self.until, self.limit)


class OptionsUpdate(NamedTuple):
    """What a client asked for in an `options_update`.

    It replaces all options of the connection.
    """

    options: SubscriberOptions
    heartbeat_s: int | None  # None: that of the URL
    did_list: DidList | None = None  # the uploaded list whose DIDs are part of the filter


def bounds_of(until: int | None, limit: int | None) -> Bounds | None:
    """Return the bounds of one subscriber; None if it has none.

    `until` is in unix microseconds, `limit` a number of events; each may be None.
    """
    return None if until is None and limit is None else Bounds(until, limit)


def parse_request(
    request: Request,
    find_list: FindList = no_list,
    *,
    now_us: int,
    wires: Sequence[str] = WIRES,
    resumes: bool = False,
) -> Steps[SubscribeRequest]:
    """Read the parameters of a request, in steps. `now_us` is what ages in times count from.

    `find_list` returns an uploaded list by its ID, or raises InvalidParameter. `wires` are those of the
    endpoint. `resumes`: the request has a position that wins over `cursor`, so `until` may be past. Raises
    InvalidParameter.
    """
    zstd = "zstd" in request.tokens("socket-encoding") if "socket-encoding" in request.headers else None
    # Nearly all requests end here: their query is short and was read before, with or without a cursor.
    if len(request.query) <= SHORT_CHARS:
        text, number = cut_cursor(request.query)
        if (asked := _remembered(text, zstd, tuple(wires))) is not None:
            return asked if number is None else asked._replace(cursor=number)
    query = yield from decode_query(request.query)
    did_list = read_list(query, find_list)
    asked = yield from _read(query, zstd, wires, did_list)
    cursor = time_in(query, "cursor", now_us)
    until = read_until(query, 0 if resumes else cursor, now_us)
    return asked._replace(cursor=cursor, until=until, did_list=did_list)


@lru_cache(REMEMBERED)
def _remembered(text: str, zstd: bool | None, wires: Sequence[str]) -> SubscribeRequest | None:
    """Read a short query at once; None if what it means depends on more than its text.

    Raises InvalidParameter, and does so again for the same text: errors are not remembered.
    """
    query = finish(decode_query(text))
    return None if query.keys() & _VARYING else finish(_read(query, zstd, wires, None))


def _read(
    query: Query, zstd: bool | None, wires: Sequence[str], did_list: DidList | None
) -> Steps[SubscribeRequest]:
    """Read all but `_VARYING` of a query, in steps.

    `zstd`: whether the field `Socket-Encoding` names it; None: there is no such field.

    The cursor is None, and so are `until` and the list: `parse_request` sets them. Raises
    InvalidParameter.
    """
    first = {name: values[0] for name, values in query.items()}
    yield from _refuse_mistakes(first, _KNOWN)
    wanted, content = yield from parse_filter(given_in(query), did_list)
    # No number, and 0, is no limit.
    size = number_in(query, _size_name(first), "is not a number of bytes")
    return SubscribeRequest(
        SubscriberOptions(wanted, size or 0, content),
        None,
        flag_in(query, "requireHello"),
        _wire(query, zstd is not None, wires),
        flag_in(query, "compress") or zstd is True,
        number_in(query, "zstdDictionary", "is not the ID of a dictionary, which is a number"),
        limit=read_limit(query),
        heartbeat_s=read_heartbeat(query),
    )


def parse_message(text: bytes, find_list: FindList = no_list) -> Steps[OptionsUpdate | None]:
    """Read a client's message, in steps: the new options, or None for an unknown type, which is ignored.

    An update replaces all options; those that are absent are reset, `heartbeat` to that of the URL.
    `find_list` is that of `parse_request`. Raises JSONDecodeError for what is not JSON, and InvalidParameter
    for a bad update.

    The steps between two yields take less than a millisecond, but for `orjson`, whose work is bounded by
    `COMMAS_MAX` and by the length of a message (`websocket.MESSAGE_BYTES_MAX`).
    """
    # Before parsing, which is one step: `orjson` cannot be interrupted.
    if text.count(b",") + text.count(b"[") + text.count(b"{") > COMMAS_MAX:
        raise InvalidParameter(
            "message", f"{len(text)} bytes", f"has more than {COMMAS_MAX} entries: send fewer"
        )
    message = orjson.loads(text)
    if type(message) is not dict:
        raise InvalidParameter("message", _shown(message), "is not an object with a type")
    if message.get("type") != "options_update":
        return None
    payload = message.get("payload")
    if type(payload) is not dict:
        raise InvalidParameter("payload", _shown(payload), "is not an object of options")
    yield
    yield from _refuse_mistakes(payload, _OPTIONS)
    list_id = payload.get("filter")
    if list_id is not None and type(list_id) is not str:
        raise InvalidParameter("filter", _shown(list_id), "is not the ID of an uploaded list")
    did_list = find_list(list_id) if list_id else None
    given = Given(partial(_strings, payload), partial(_boolean, payload), partial(_decimal, payload))
    wanted, content = yield from parse_filter(given, did_list)
    size_name = _size_name(payload)
    size = payload.get(size_name)
    if size is None:
        size = 0
    # `type`, and not `isinstance`: JSON's true is not a number.
    if type(size) is not int or size < 0:
        raise InvalidParameter(size_name, _shown(size), "is not a number of bytes")
    heartbeat_s = payload.get("heartbeat")
    if heartbeat_s is not None and (type(heartbeat_s) is not int or heartbeat_s not in HEARTBEAT_S):
        raise InvalidParameter("heartbeat", _shown(heartbeat_s), _NO_HEARTBEAT)
    return OptionsUpdate(SubscriberOptions(wanted, size, content), heartbeat_s, did_list)


def _size_name(given: Mapping[str, object]) -> str:
    """Return by which of its two names the limit of messages is given. Raises InvalidParameter for both.

    `given` are the names of a query or an update with their values.
    """
    if "maxSize" not in given:
        return "maxMessageSizeBytes"
    if "maxMessageSizeBytes" in given:
        raise InvalidParameter(
            "maxSize", _text(given["maxSize"]), "is given beside maxMessageSizeBytes, its other name"
        )
    return "maxSize"


def _key(name: str) -> str:
    """Return a name without what is often wrong in it: its case, separators, and the plural.

    So `wanted_collection` and `wantedCollections` have the same key.
    """
    return name.lower().replace("_", "").replace("-", "").removesuffix("s")


# What names mean that are close to a parameter's, and names that other versions of Jetstream have for it.
_MEANT: Final = {_key(k): k for k in _KNOWN} | {
    "collection": "wantedCollections",
    "did": "wantedDids",
    "excludedcollection": "excludeCollections",
    "excludeddid": "excludeDids",
}


def _refuse_mistakes(given: Mapping[str, object], known: Collection[str]) -> Steps[None]:
    """Refuse, in steps, a name that would be ignored although a known one was meant.

    The client would get all events. Raises InvalidParameter.

    `known` are the names that count here: those of a query, or those of an update.
    """
    for count, (name, value) in enumerate(given.items(), 1):
        meant = None if name in known else _MEANT.get(_key(name[:NAME_CHARS_MAX]))
        if meant in known:
            text = f"is given to an unknown parameter: did you mean {meant}?"
            raise InvalidParameter(name, _text(value), text)
        if count % PARAMETERS_PER_STEP == 0:
            yield


def _wire(query: Query, encoded: bool, wires: Sequence[str]) -> str | None:
    """Return the wire that a request selects: by name, or v1 by a name that came with it; else None.

    `encoded`: whether it has the field `Socket-Encoding`, which came with it, too.

    `wires` are the names that this endpoint has. Raises InvalidParameter for any other.
    """
    wire = once_in(query, "wire")
    if wire and wire not in wires:
        there = f"{', '.join(wires[:-1])} and {wires[-1]}"
        raise InvalidParameter("wire", wire, f"is not a wire here: there are {there}")
    if not wire and (encoded or not query.keys().isdisjoint(_V1)):
        return V1.name
    return wire or None


def read_until(query: Query, cursor: int | None, now_us: int) -> int | None:
    """Return where the subscription ends, which is not before it starts. Raises InvalidParameter.

    In unix microseconds. `cursor` is where the subscription begins; None: at the present, `now_us`.
    """
    until = time_in(query, "until", now_us)
    if until is not None and until < (now_us if cursor is None else cursor):
        start = "the present, where it starts: give a cursor" if cursor is None else f"the cursor, {cursor}"
        raise InvalidParameter("until", once_in(query, "until"), f"is before {start}")
    return until


def read_list(query: Query, find_list: FindList) -> DidList | None:
    """Return the uploaded list that a request names. Raises InvalidParameter.

    None if it names none. A list that is unknown or not kept any more is an error.
    """
    list_id = once_in(query, "filter")
    return find_list(list_id) if list_id else None


def read_limit(query: Query) -> int | None:
    """Return how many events are sent. Raises InvalidParameter.

    None if there is no limit. 0 is refused: nothing would be sent.
    """
    limit = number_in(query, "limit", problem := "is not a number of events from 1 on")
    if limit == 0:
        raise InvalidParameter("limit", once_in(query, "limit"), problem)
    return limit


def read_heartbeat(query: Query) -> int | None:
    """Return the seconds between heartbeats. Raises InvalidParameter.

    None if the request has none: the wire decides then.
    """
    seconds = number_in(query, "heartbeat", _NO_HEARTBEAT)
    if seconds is not None and seconds not in HEARTBEAT_S:
        raise InvalidParameter("heartbeat", once_in(query, "heartbeat"), _NO_HEARTBEAT)
    return seconds


def _boolean(payload: dict[str, Any], name: str) -> bool:
    """Return an option that is true or false; false when it is absent or null. Raises InvalidParameter."""
    value = payload.get(name)
    if value is not None and type(value) is not bool:
        raise InvalidParameter(name, _shown(value), "is neither true nor false")
    return value is True


def _decimal(payload: dict[str, Any], name: str) -> str:
    """Return an option that is a number, as text; empty when it is absent or null.

    It is read from text, as in a query. Raises InvalidParameter.
    """
    value = payload.get(name)
    if value is not None and type(value) not in {int, float}:
        raise InvalidParameter(name, _shown(value), "is not a number")
    return "" if value is None else _shown(value)


def _strings(payload: dict[str, Any], name: str) -> list[str]:
    """Return an option that is a list of strings; an empty one when it is absent or null.

    Raises InvalidParameter for what is not a list, or has an item that is not a string.
    """
    items = payload.get(name)
    if items is None:
        return []
    if type(items) is not list:
        raise InvalidParameter(name, _shown(items), "is not a list")
    for item in items:
        if type(item) is not str:
            raise InvalidParameter(name, _shown(item), "is not a string")
    return items


def _text(value: object) -> str:
    """Return a value of a query or an update for an error message: text as it is, else JSON."""
    return value if type(value) is str else _shown(value)


def _shown(value: object) -> str:
    """Return a value as JSON, for an error message."""
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson reads deeper nesting than it can write
        return "…"
