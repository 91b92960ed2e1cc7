"""The request of a subscription: URL, filter and cursor. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final, Literal, cast, get_args

import orjson
from yarl import URL

from jetstream import urls
from jetstream.errors import InvalidParameter
from jetstream.model.filter import Filter
from jetstream.model.timestamp import parse_time

DEFAULT_URL: Final = "ws://localhost:6008/subscribe"
PATH: Final = "/subscribe"
# What common proxies accept as a request line (nginx: 8 KiB). A longer filter is sent as a message.
URL_CHARS_MAX: Final = 8000
_SCHEMES: Final = {"ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}
_SIZES: Final = frozenset({"maxMessageSizeBytes", "maxSize"})  # two names of one parameter
# Parameters that are lists of strings in a message.
_LISTS: Final = frozenset(
    {
        *("wantedCollections", "wantedDids", "kinds", "operations", "excludeCollections", "excludeDids"),
        *("lang", "mentions", "replyTo", "subject", "text"),
    }
)
# Parameters that this client must know of, so that it can do its part.
_UNSUPPORTED: Final = {
    "compress": "give compress=True instead: this client has no public dictionary",
    "zstdDictionary": "give compress=True instead",
    "requireHello": "this client sets it when needed: leave it out",
    "heartbeat": "give it as an argument instead",
    "until": "give it as an argument instead",
    "limit": "give it as an argument instead",
}
HEARTBEAT_MAX_S: Final = 300

Wire = Literal["classic", "v1"]
Kind = Literal["commit", "identity", "account"]
Operation = Literal["create", "update", "delete"]


def parse_url(text: str) -> URL:
    """Parse a host, a base URL or a full URL. Return the WebSocket URL.

    `http` and `https` mean `ws` and `wss`; without a path it is `/subscribe`. Without a scheme, it is `ws`
    for a local host, an IP address, or a port other than 443, else `wss`. Raises InvalidParameter.
    """
    has_scheme = "://" in text.partition("?")[0]  # a value in the query may have one too
    try:
        url = URL(text if has_scheme else f"ws://{text}")
        port = url.explicit_port
    except ValueError as error:
        raise InvalidParameter("url", text, f"is not a URL: {error}") from error
    if url.scheme not in _SCHEMES or not url.host or any(map(str.isspace, text)):
        raise InvalidParameter("url", text, "is not a host or URL such as ws://localhost:6008/subscribe")
    if not has_scheme and port in {None, 443} and not _is_local(url.host):
        url = url.with_scheme("wss")
    for name, problem in _UNSUPPORTED.items():
        if name in url.query:
            raise InvalidParameter("url", text, f"has {name}, but {problem}")
    if url.path in {"", "/"}:
        url = url.with_path(PATH, keep_query=True)
    return url.with_scheme(_SCHEMES[url.scheme]).with_fragment(None)


@dataclass(frozen=True, slots=True)
class Options:
    """What a subscription asks for, wherever it connects. Raises InvalidParameter."""

    collections: Sequence[str] = ()
    dids: Sequence[str] = ()
    kinds: Sequence[Kind] = ()
    operations: Sequence[Operation] = ()
    wire: Wire | None = None  # None: what the URL selects
    heartbeat: int | None = None  # seconds; None: no heartbeats
    until: int | None = None  # the position at which the stream ends

    def __post_init__(self) -> None:
        for name, items in self.lists.items():
            if isinstance(items, str):
                raise InvalidParameter(name, items, "is a string: give a list of strings")
        Filter.parse(self.collections, self.dids)
        _check_names("kinds", self.kinds, get_args(Kind))
        _check_names("operations", self.operations, get_args(Operation))
        _check_names("wire", [] if self.wire is None else [self.wire], get_args(Wire))
        if self.heartbeat is not None and not 1 <= self.heartbeat <= HEARTBEAT_MAX_S:
            raise InvalidParameter(
                "heartbeat", str(self.heartbeat), f"is not a number of seconds from 1 to {HEARTBEAT_MAX_S}"
            )

    @property
    def lists(self) -> Mapping[str, Sequence[str]]:
        """The lists by the names of their arguments."""
        return {
            "collections": self.collections,
            "dids": self.dids,
            "kinds": self.kinds,
            "operations": self.operations,
        }

    @property
    def filter(self) -> Mapping[str, list[str]]:
        """The filter as parameters, which are the same in a query and in a message."""
        more = {"kinds": self.kinds, "operations": self.operations}
        return {
            "wantedCollections": list(self.collections),
            "wantedDids": list(self.dids),
            **{name: list(values) for name, values in more.items() if values},
        }

    @property
    def query(self) -> Mapping[str, str]:
        """The parameters beside the filter."""
        values = {"wire": self.wire, "heartbeat": self.heartbeat, "until": self.until}
        return {name: str(value) for name, value in values.items() if value is not None}


@dataclass(frozen=True, slots=True)
class Request:
    """Where to connect, and what to send first."""

    url: URL  # without a cursor
    hello: str  # the filter as an `options_update` message, if it is too long for a URL; else empty
    cursor: int | None  # where to start, as the URL says; None: live

    @classmethod
    def parse(cls, url: str, options: Options) -> Request:
        """Make the request for one URL. Raises InvalidParameter."""
        target = parse_url(url)
        start = _cursor(url, target.query.getall("cursor", []))
        target = target.without_query_params("cursor").update_query(options.query)
        full = target.extend_query(options.filter)
        if len(str(full)) <= URL_CHARS_MAX:
            return cls(full, "", start)
        # The server resets the options that an update lacks. So those in the URL are moved into it.
        payload: dict[str, object] = dict(_moved(target))
        for name, items in options.filter.items():
            payload[name] = [*cast("list[str]", payload.get(name, [])), *items]
        hello = orjson.dumps({"type": "options_update", "payload": payload}).decode()
        # The size selects v1, since its name came with v1.
        wire = "v1" if payload.keys() & _SIZES else "classic"
        moved = {*payload, *(_SIZES if payload.keys() & _SIZES else ())}
        target = target.without_query_params(*moved).update_query(requireHello="true")
        path = target.path.rstrip("/")
        if path.endswith(PATH) and not path.endswith("/v1" + PATH) and not target.query.get("wire"):
            # Else `requireHello` would select v1 there, and a long filter would change the spelling.
            target = target.update_query(wire=wire)
        return cls(target, hello, start)

    def at(self, cursor: int | None, *, limit: int | None = None, dictionary: int | None = None) -> URL:
        """Return the URL to start at a cursor; None: live. `dictionary` is the ID for compressed messages."""
        values = {"cursor": cursor, "limit": limit, "zstdDictionary": dictionary}
        return self.url.update_query(
            {name: str(value) for name, value in values.items() if value is not None}
        )

    @property
    def dictionary_url(self) -> URL:
        """Where the server has its own zstd dictionary: beside the path of the subscription."""
        path = self.url.path.rstrip("/")
        for end in ("/v1" + PATH, PATH):
            if path.endswith(end):
                path = path.removesuffix(end)
                break
        scheme = {"ws": "http", "wss": "https"}[self.url.scheme]
        return self.url.with_scheme(scheme).with_path(path + "/zstd-dictionary")


def start_of(requests: Sequence[Request], cursor: int | None) -> int | None:
    """Return where a subscription starts: at a cursor, or where the first URL with a cursor says."""
    starts = (cursor, *(request.cursor for request in requests))
    return next((start for start in starts if start is not None), None)


def shown(url: URL) -> str:
    """Return a URL for logs and errors: without password and query."""
    return urls.shown(str(url))


def _check_names(name: str, values: Collection[str], known: Sequence[str]) -> None:
    for value in values:
        if value not in known:
            raise InvalidParameter(name, value, f"is not one of {', '.join(known)}")


def parse_position(name: str, time: int | str | None, now_us: int) -> int | None:
    """Parse a time: unix microseconds, or a text for `parse_time`. Raises InvalidParameter."""
    if isinstance(time, str):
        try:
            return parse_time(time, now_us)
        except ValueError as error:
            raise InvalidParameter(name, time, str(error)) from error
    if time is not None and time < 0:
        raise InvalidParameter(name, str(time), "is before 1970: give unix microseconds")
    return time


def _moved(url: URL) -> Iterator[tuple[str, object]]:
    """Return the options of a URL as they are in a message, without those that a server will refuse."""
    for name in dict.fromkeys(url.query):
        values = url.query.getall(name)
        first = values[0]
        if name == "text":
            yield name, values
        elif name == "filter":
            yield name, first
        elif name in _LISTS:
            yield name, [item for value in values for item in value.split(",")]
        elif name in _SIZES and first.isascii() and first.isdigit():
            yield "maxMessageSizeBytes", int(first)
        elif name == "hasMedia" and first in {"", "true"}:
            yield name, True
        elif name == "sample":
            with suppress(ValueError):
                yield name, float(first)


def _cursor(url: str, values: list[str]) -> int | None:
    if not values or values == [""]:
        return None
    [value, *more] = values
    if more or not (value.isascii() and value.isdigit()):
        raise InvalidParameter("url", url, "has a cursor that is not one time in unix microseconds")
    return int(value)


def _is_local(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
