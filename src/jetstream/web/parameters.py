"""What a subscriber asks for, in its URL and in its messages: pure, and strict (`wire.md`, "Subscribing")."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

import orjson

from jetstream.errors import InvalidParameter
from jetstream.filters import Filter
from jetstream.hub.subscriber import Options

UPDATE_BYTES_MAX: Final = 10_000_000
# An update has at most 10,100 entries, and a comma for each. Ten million commas take a second to parse.
COMMAS_MAX: Final = 20_000
_CURSOR: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch
_SIZE: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch


class Query(Protocol):
    """A multi-valued query string, such as aiohttp's `request.query`."""

    def getall(self, key: str, default: list[str], /) -> list[str]:
        """Return every value of a key."""


class NotJson(Exception):
    """A client's message is not JSON."""


@dataclass(frozen=True, slots=True)
class Subscription:
    """A request to subscribe: the options to begin with, and where and when to begin.

    `cursor` is None where the client gave none.
    """

    options: Options
    cursor: int | None
    require_hello: bool


def parse_query(query: Query, headers: Mapping[str, str]) -> Subscription:
    """Read the parameters of a request. Raises InvalidParameter; what is unknown is ignored."""
    _refuse_compression(query, headers)
    wanted = Filter.parse(_list(query, "wantedCollections"), _list(query, "wantedDids"))
    size = _once(query, "maxMessageSizeBytes")
    if size and not _SIZE(size):
        raise InvalidParameter("maxMessageSizeBytes", size, "is not a number of bytes")
    cursor = _once(query, "cursor")
    if cursor and not _CURSOR(cursor):
        raise InvalidParameter("cursor", cursor, "is not a time in unix microseconds")
    return Subscription(
        Options(wanted, int(size or 0)), int(cursor) if cursor else None, _flag(query, "requireHello")
    )


def parse_message(text: bytes) -> Options | None:
    """Read a client's message: the new options, or None for a type that is unknown.

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
    wanted = Filter.parse(_strings(payload, "wantedCollections"), _strings(payload, "wantedDids"))
    size = payload.get("maxMessageSizeBytes")
    if size is None:
        size = 0
    if type(size) is not int or size < 0:
        raise InvalidParameter("maxMessageSizeBytes", _shown(size), "is not a number of bytes")
    return Options(wanted, size)


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
