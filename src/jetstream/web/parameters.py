"""What a subscriber asks for, in its URL and in its messages. Pure, and strict.

`parse_request` reads a URL's query string, and `parse_message` an `options_update`. A value that cannot be
used raises `InvalidParameter` with the name, the value and a sentence; so does a name that is surely a
mistake. Other unknown names are ignored, as clients of other servers send some.

A client may send 10,000 DIDs, which take 30 ms. So both are generators: they yield after less than a
millisecond, and the caller decides when to go on (`scheduling.Worker`).

To add a parameter: its name to `_KNOWN`, its value to `parse_request` and, if it may change while connected,
to `_OPTIONS` and `parse_message`. One that filters: `web/filters.py`.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from functools import partial
from typing import Any, Final, NamedTuple
from urllib.parse import unquote_plus

import orjson

from jetstream.delivery.renderers import RENDERERS
from jetstream.delivery.renderers.v1 import V1
from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.syntax import DID_CHARS_MAX
from jetstream.steps import Steps
from jetstream.web.filters import COMMA_LISTS, FILTER, Given, parse_filter
from jetstream.web.http import Request

# An update has at most 10,000 wanted and 10,000 excluded DIDs, some hundred other names, and a comma for
# each. A million take 0.1 s to parse.
COMMAS_MAX: Final = 24_000
# A query has as many entries, each with its own name or after a comma.
PARAMETERS_MAX: Final = 24_000
_PARAMETERS_PER_STEP: Final = 250  # decoded between two yields: 0.7 ms
_NAME_CHARS_MAX: Final = 64  # decoded of a name: no parameter's is nearly as long
# Decoded of a value, percent-encoded. The rest of a longer one does not matter: it is refused all the same.
_VALUE_CHARS_MAX: Final = 3 * (DID_CHARS_MAX + 1)
# Names that came with the v1 wire. `maxSize` is what the Go client sends for `maxMessageSizeBytes`.
_V1: Final = ("compress", "requireHello", "maxMessageSizeBytes", "maxSize")
# All parameters, and those that can change while connected.
_KNOWN: Final = (*FILTER, "cursor", "wire", *_V1)
_OPTIONS: Final = (*FILTER, "maxMessageSizeBytes", "maxSize")
_COMMA: Final = re.compile(",|%2[cC]")
# A cursor or a size. Twenty digits are more than 64 bits; Python's integers have no limit.
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch

# The decoded values of a query string by name, in the order in which they came. Each item of a list is a
# value, whether it came by repetition or after a comma.
Query = dict[str, list[str]]


class SubscribeRequest(NamedTuple):
    """What a client asked for in its URL."""

    options: SubscriberOptions  # until the first `options_update`
    cursor: int | None  # in unix microseconds, to start at; None: live
    require_hello: bool  # whether nothing is sent before the first `options_update`
    wire: str | None  # the name of the wire; None: that of the path
    compress: bool  # whether messages are compressed with the public dictionary


def decode_query(text: str) -> Steps[Query]:
    """Decode a query string, in steps. Raises InvalidParameter for more than `PARAMETERS_MAX` values.

    Only commas that separate the items of a list are separators, percent-encoded or not. `+` means a space.
    """
    if text.count("&") + text.count(",") + text.count("%2C") + text.count("%2c") > PARAMETERS_MAX:
        raise InvalidParameter("query", text, f"has more than {PARAMETERS_MAX} parameters")
    query: Query = {}
    count = 0
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        name = unquote_plus(name[:_NAME_CHARS_MAX])
        for item in _COMMA.split(value) if name in COMMA_LISTS else (value,):
            query.setdefault(name, []).append(unquote_plus(item[:_VALUE_CHARS_MAX]))
            count += 1
            if count % _PARAMETERS_PER_STEP == 0:
                yield
    query.pop("", None)
    return query


def parse_request(request: Request) -> Steps[SubscribeRequest]:
    """Read the parameters of a request, in steps. Raises InvalidParameter."""
    query = yield from decode_query(request.query)
    first = {name: values[0] for name, values in query.items()}
    yield from _refuse_mistakes(first, _KNOWN)
    given = Given(lambda name: query.get(name, []), partial(_switch, query), partial(_once, query))
    wanted, content = yield from parse_filter(given)
    size = _number(query, _size_name(first), "is not a number of bytes")
    cursor = _number(query, "cursor", "is not a time in unix microseconds")
    return SubscribeRequest(
        SubscriberOptions(wanted, size or 0, content),
        cursor,
        _flag(query, "requireHello"),
        _wire(query, request.headers),
        _flag(query, "compress") or "zstd" in request.tokens("socket-encoding"),
    )


def parse_message(text: bytes) -> Steps[SubscriberOptions | None]:
    """Read a client's message, in steps: the new options, or None for an unknown type, which is ignored.

    An update replaces all options; those that are absent are reset. Raises JSONDecodeError for what is not
    JSON, and InvalidParameter for a bad update.
    """
    # Before parsing, which is one step: `orjson` cannot be interrupted.
    if text.count(b",") > COMMAS_MAX:
        raise InvalidParameter("message", f"{len(text)} bytes", f"has more than {COMMAS_MAX} entries")
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
    given = Given(partial(_strings, payload), partial(_boolean, payload), partial(_decimal, payload))
    wanted, content = yield from parse_filter(given)
    size_name = _size_name(payload)
    size = payload.get(size_name)
    if size is None:
        size = 0
    if type(size) is not int or size < 0:
        raise InvalidParameter(size_name, _shown(size), "is not a number of bytes")
    return SubscriberOptions(wanted, size, content)


def _size_name(given: Mapping[str, object]) -> str:
    """Return by which of its two names the limit of messages is given. Raises InvalidParameter for both."""
    if "maxSize" not in given:
        return "maxMessageSizeBytes"
    if "maxMessageSizeBytes" in given:
        raise InvalidParameter(
            "maxSize", _text(given["maxSize"]), "is given beside maxMessageSizeBytes, its other name"
        )
    return "maxSize"


def _key(name: str) -> str:
    """Return a name without what is often wrong in it: case, separators, and the plural."""
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
    """
    for count, (name, value) in enumerate(given.items(), 1):
        meant = _MEANT.get(_key(name[:_NAME_CHARS_MAX]))
        if meant in known and name not in known:
            text = f"is given to an unknown parameter: did you mean {meant}?"
            raise InvalidParameter(name, _text(value), text)
        if count % _PARAMETERS_PER_STEP == 0:
            yield


def _wire(query: Query, headers: Mapping[str, str]) -> str | None:
    """Return the wire that a request selects: by name, or v1 by a name that came with it; else None."""
    wire = _once(query, "wire")
    if wire and wire not in RENDERERS:
        raise InvalidParameter("wire", wire, f"is not a wire: there are {' and '.join(RENDERERS)}")
    if not wire and ("socket-encoding" in headers or any(name in query for name in _V1)):
        return V1.name
    return wire or None


def _once(query: Query, name: str) -> str:
    """Return the only value of a parameter; an empty one when it is absent."""
    values = query.get(name, [])
    if len(values) > 1:
        raise InvalidParameter(name, ", ".join(values), "is given more than once")
    return values[0] if values else ""


def _number(query: Query, name: str, problem: str) -> int | None:
    """Return a parameter that is a number; None when it is absent or empty. Raises InvalidParameter."""
    value = _once(query, name)
    if value and not _NUMBER(value):
        raise InvalidParameter(name, value, problem)
    return int(value) if value else None


def _flag(query: Query, name: str) -> bool:
    """Return whether a parameter is `true`. Raises InvalidParameter for anything but `true` and `false`."""
    value = _once(query, name)
    if value not in {"", "true", "false"}:
        raise InvalidParameter(name, value, "is neither true nor false")
    return value == "true"


def _switch(query: Query, name: str) -> bool:
    """Return whether a parameter is there: `true`, or without a value. Raises InvalidParameter."""
    return query.get(name) == [""] or _flag(query, name)


def _boolean(payload: dict[str, Any], name: str) -> bool:
    """Return an option that is true or false; false when it is absent or null. Raises InvalidParameter."""
    value = payload.get(name)
    if value is not None and type(value) is not bool:
        raise InvalidParameter(name, _shown(value), "is neither true nor false")
    return value is True


def _decimal(payload: dict[str, Any], name: str) -> str:
    """Return an option that is a number, as text; empty when it is absent or null."""
    value = payload.get(name)
    if value is not None and type(value) not in {int, float}:
        raise InvalidParameter(name, _shown(value), "is not a number")
    return "" if value is None else _shown(value)


def _strings(payload: dict[str, Any], name: str) -> list[str]:
    """Return an option that is a list of strings; an empty one when it is absent or null."""
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
