"""The request of a subscription: URL, filter and cursor. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import orjson
from yarl import URL

from jetstream import urls
from jetstream.errors import InvalidParameter
from jetstream.model.filter import Filter

DEFAULT_URL: Final = "ws://localhost:6008/subscribe"
PATH: Final = "/subscribe"
# What common proxies accept as a request line (nginx: 8 KiB). A longer filter is sent as a message.
URL_CHARS_MAX: Final = 8000
_SCHEMES: Final = {"ws": "ws", "http": "ws", "wss": "wss", "https": "wss"}
_SIZES: Final = ("maxMessageSizeBytes", "maxSize")  # two names of one parameter
_UNSUPPORTED: Final = {
    "compress": "this client reads uncompressed messages only: leave it out",
    "requireHello": "this client sets it when needed: leave it out",
}


def parse_url(text: str) -> URL:
    """Parse a host, a base URL or a full URL. Return the WebSocket URL.

    `http` and `https` mean `ws` and `wss`; without a path it is `/subscribe`. Without a scheme, it is `ws`
    for a local host, an IP address, or a port other than 443, else `wss`. Raises InvalidParameter.
    """
    try:
        url = URL(text if "://" in text else f"ws://{text}")
        port = url.explicit_port
    except ValueError as error:
        raise InvalidParameter("url", text, f"is not a URL: {error}") from error
    if url.scheme not in _SCHEMES or not url.host or any(map(str.isspace, text)):
        raise InvalidParameter("url", text, "is not a host or URL such as ws://localhost:6008/subscribe")
    if "://" not in text and port in {None, 443} and not _is_local(url.host):
        url = url.with_scheme("wss")
    for name, problem in _UNSUPPORTED.items():
        if name in url.query:
            raise InvalidParameter("url", text, f"has {name}, but {problem}")
    if url.path in {"", "/"}:
        url = url.with_path(PATH, keep_query=True)
    return url.with_scheme(_SCHEMES[url.scheme]).with_fragment(None)


@dataclass(frozen=True, slots=True)
class Request:
    """Where to connect, and what to send first."""

    url: URL  # without a cursor
    hello: str  # the filter as an `options_update` message, if it is too long for a URL; else empty
    cursor: int | None  # where to start; None: live

    @classmethod
    def parse(
        cls, url: str, collections: Sequence[str] = (), dids: Sequence[str] = (), cursor: int | None = None
    ) -> Request:
        """Check the arguments of a subscription. Raises InvalidParameter.

        A cursor in the URL is used if `cursor` is None.
        """
        for name, items in (("collections", collections), ("dids", dids)):
            if isinstance(items, str):
                raise InvalidParameter(name, items, "is a string: give a list of strings")
        Filter.parse(collections, dids)
        target = parse_url(url)
        start = _cursor(url, target.query.getall("cursor", [])) if cursor is None else cursor
        if start is not None and start < 0:
            raise InvalidParameter("cursor", str(start), "is before 1970: give unix microseconds")
        target = target.without_query_params("cursor")
        wanted = {"wantedCollections": list(collections), "wantedDids": list(dids)}
        full = target.extend_query(wanted)
        if len(str(full)) <= URL_CHARS_MAX:
            return cls(full, "", start)
        # The server resets the options that an update lacks. So those in the URL are moved into it.
        payload: dict[str, object] = {
            name: [*_items(target.query.getall(name, [])), *items] for name, items in wanted.items()
        }
        wire = "classic"
        for name in _SIZES:
            size = target.query.get(name, "")
            if size.isascii() and size.isdigit():
                payload["maxMessageSizeBytes"] = int(size)
                target = target.without_query_params(name)
                wire = "v1"  # which the name selects, for it came with v1
        hello = orjson.dumps({"type": "options_update", "payload": payload}).decode()
        target = target.without_query_params(*wanted).update_query(requireHello="true")
        path = target.path.rstrip("/")
        if path.endswith(PATH) and not path.endswith("/v1" + PATH) and not target.query.get("wire"):
            # Else `requireHello` would select v1 there, and a long filter would change the spelling.
            target = target.update_query(wire=wire)
        return cls(target, hello, start)

    def at(self, cursor: int | None) -> URL:
        """Return the URL to start at a cursor; None: live."""
        return self.url if cursor is None else self.url.update_query(cursor=str(cursor))


def shown(url: URL) -> str:
    """Return a URL for logs and errors: without password and query."""
    return urls.shown(str(url))


def _items(values: Sequence[str]) -> list[str]:
    """Return the items of a list parameter: a value may have several, separated by commas."""
    return [item for value in values for item in value.split(",")]


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
