"""What a subscriber asks for, in its URL and in its messages: pure, and strict (`wire.md`, "Subscribing")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol
from urllib.parse import unquote_plus

import orjson

from jetstream.delivery.subscriber import SubscriberOptions
from jetstream.errors import InvalidParameter
from jetstream.model.filter import Filter
from jetstream.model.syntax import DID_CHARS_MAX
from jetstream.scheduling import Steps, finish

# An update has at most 10,100 entries, and a comma for each. A million take 0.1 s to parse.
COMMAS_MAX: Final = 20_000
# A query has at most 10,100 entries, each with its own name or after a comma.
PARAMETERS_MAX: Final = 20_000
_PARAMETERS_PER_STEP: Final = 250
_NAME_CHARS_MAX: Final = 64  # of a parameter: what is longer is none of ours
_VALUE_CHARS_MAX: Final = 3 * (DID_CHARS_MAX + 1)  # percent-encoded; what is longer is refused all the same
_LISTS: Final = ("wantedCollections", "wantedDids")
_KNOWN: Final = (*_LISTS, "cursor", "maxMessageSizeBytes", "compress", "requireHello")
_COMMA: Final = re.compile(",|%2[cC]")
_CURSOR: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch
_SIZE: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch


class Query(Protocol):
    """A multi-valued query string."""

    def __iter__(self) -> Iterator[str]:
        """Give the names that are in it."""

    def getall(self, key: str, default: list[str], /) -> list[str]:
        """Return every value of a key."""


class Values(dict[str, list[str]]):
    """A query string that was read: the values of each name, decoded; of a list, its items."""

    def getall(self, key: str, default: list[str], /) -> list[str]:
        """Return every value of a key."""
        return self.get(key, default)


class NotJson(Exception):
    """A client's message is not JSON."""


@dataclass(frozen=True, slots=True)
class SubscribeRequest:
    """A request to subscribe: the options to begin with, and where and when to begin.

    `cursor` is None where the client gave none.
    """

    options: SubscriberOptions
    cursor: int | None
    require_hello: bool


def read_query(text: str) -> Steps[Values]:
    """Decode a query string, in steps of well under a millisecond. Raises InvalidParameter."""
    if text.count("&") + text.count(",") + text.count("%2C") + text.count("%2c") > PARAMETERS_MAX:
        raise InvalidParameter("query", text, f"has more than {PARAMETERS_MAX} parameters")
    values, count = Values(), 0
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        name = _decoded(name, _NAME_CHARS_MAX)
        for item in _COMMA.split(value) if name in _LISTS else (value,):
            values.setdefault(name, []).append(_decoded(item, _VALUE_CHARS_MAX))
            count += 1
            if count % _PARAMETERS_PER_STEP == 0:
                yield
    values.pop("", None)
    return values


def _decoded(text: str, chars_max: int) -> str:
    return unquote_plus(text[:chars_max])


def parse_query(query: Query, headers: Mapping[str, str]) -> SubscribeRequest:
    """Read the parameters of a request at once; raises as `query_steps` does."""
    return finish(query_steps(query, headers))


def query_steps(query: Query, headers: Mapping[str, str]) -> Steps[SubscribeRequest]:
    """Read the parameters of a request, in steps.

    Raises InvalidParameter; what is unknown is ignored, unless it is surely a mistake.
    """
    _refuse_mistakes(query)
    _refuse_compression(query, headers)
    wanted = yield from Filter.parse_steps(_list(query, "wantedCollections"), _list(query, "wantedDids"))
    size = _once(query, "maxMessageSizeBytes")
    if size and not _SIZE(size):
        raise InvalidParameter("maxMessageSizeBytes", size, "is not a number of bytes")
    cursor = _once(query, "cursor")
    if cursor and not _CURSOR(cursor):
        raise InvalidParameter("cursor", cursor, "is not a time in unix microseconds")
    return SubscribeRequest(
        SubscriberOptions(wanted, int(size or 0)),
        int(cursor) if cursor else None,
        _flag(query, "requireHello"),
    )


def parse_message(text: bytes) -> SubscriberOptions | None:
    """Read a client's message at once; raises as `message_steps` does."""
    return finish(message_steps(text))


def message_steps(text: bytes) -> Steps[SubscriberOptions | None]:
    """Read a client's message, in steps: the new options, or None for a type that is unknown.

    Raises NotJson for what is not JSON and InvalidParameter for a bad update.
    """
    if text.count(b",") > COMMAS_MAX:
        raise InvalidParameter("message", f"{len(text)} bytes", f"has more than {COMMAS_MAX} entries")
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise NotJson(str(error)) from error
    if type(message) is not dict:
        raise InvalidParameter("message", _shown(message), "is not an object with a type")
    if message.get("type") != "options_update":
        return None
    payload = message.get("payload")
    if type(payload) is not dict:
        raise InvalidParameter("payload", _shown(payload), "is not an object of options")
    yield
    collections, dids = _strings(payload, "wantedCollections"), _strings(payload, "wantedDids")
    wanted = yield from Filter.parse_steps(collections, dids)
    size = payload.get("maxMessageSizeBytes")
    if size is None:
        size = 0
    if type(size) is not int or size < 0:
        raise InvalidParameter("maxMessageSizeBytes", _shown(size), "is not a number of bytes")
    return SubscriberOptions(wanted, size)


def _key(name: str) -> str:
    """Return a name without what people get wrong: case, separators, and the plural."""
    return name.lower().replace("_", "").replace("-", "").removesuffix("s")


# Beside those of the v2 endpoint that mean the same.
_MEANT: Final = {_key(name): name for name in _KNOWN} | {
    "collection": "wantedCollections",
    "did": "wantedDids",
}


def _refuse_mistakes(query: Query) -> None:
    for name in query:
        meant = _MEANT.get(_key(name))
        if meant is not None and name not in _KNOWN:
            text = f"is given to an unknown parameter: did you mean {meant}?"
            raise InvalidParameter(name, query.getall(name, [])[0], text)


def _refuse_compression(query: Query, headers: Mapping[str, str]) -> None:
    encoding = headers.get("Socket-Encoding", "")
    if _flag(query, "compress") or encoding.strip().lower() == "zstd":
        raise InvalidParameter(
            "compress",
            encoding or "true",
            "is not offered yet: leave it out for plain JSON",
        )


def _list(query: Query, name: str) -> list[str]:
    """Return a list given by repetition, by commas, or both."""
    return [item for value in query.getall(name, []) for item in value.split(",")]


def _once(query: Query, name: str) -> str:
    values = query.getall(name, [])
    if len(values) > 1:
        raise InvalidParameter(name, ", ".join(values), "is given more than once")
    return values[0] if values else ""


def _flag(query: Query, name: str) -> bool:
    value = _once(query, name)
    if value not in {"", "true", "false"}:
        raise InvalidParameter(name, value, "is neither true nor false")
    return value == "true"


def _strings(payload: dict[str, Any], name: str) -> list[str]:
    items = payload.get(name)
    if items is None:
        return []
    if type(items) is not list:
        raise InvalidParameter(name, _shown(items), "is not a list")
    _require_strings(name, items)
    return items


def _require_strings(name: str, items: Iterable[object]) -> None:
    for item in items:
        if type(item) is not str:
            raise InvalidParameter(name, _shown(item), "is not a string")


def _shown(value: object) -> str:
    try:
        return orjson.dumps(value).decode()
    except TypeError:  # orjson reads deeper nesting than it writes
        return "…"
