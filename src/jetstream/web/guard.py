"""Who may use a route: clients with a bearer token, or programs of this machine.

    events, and what costs work    with --subscriber-tokens: a token of it, or of --operator-tokens
    figures                        with --operator-tokens: a token of it
    subscribers, one by one        the same; without --operator-tokens, programs of this machine

Each route has at most one guard, which is asked before the request is read any further.

With `--subscriber-tokens`, the token may be in the query: browsers cannot give a WebSocket a header field.
Figures and subscribers take it from the header field only, since queries end up in the logs of proxies.
All other pages are open to all. Which path has which guard is decided in `access`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from jetstream.errors import SettingError
from jetstream.web.http import Request
from jetstream.web.proxies import is_loopback
from jetstream.web.tokens import FILE_BYTES_MAX, Tokens, parse_tokens, presented

# For files that are read again; requests are logged by `Connections`.
logger = structlog.get_logger(__name__)


class Denied(NamedTuple):
    """Why a request is not answered: the status, one sentence, and more header fields."""

    # 401 where a token would help, else 403.
    status: int
    text: str
    # `WWW-Authenticate` of a 401 (RFC 9110, section 11.6.1).
    fields: Mapping[str, str] | None = None


class Guard(Protocol):
    """Decides whether a request is answered.

    It is asked once for each request, on the event loop's thread, and must not wait.
    """

    def check(self, request: Request, origin: str) -> str | Denied:
        """Return the name of a client, empty if it has none; or why its request is not answered.

        `origin` is the address that the connection came from.

        The name is shown to operators beside a subscriber's address. The query is still as it came.
        """


class TokenFile:
    """The tokens of a file. `flag` is the setting that names it. Raises SettingError if it cannot be used."""

    def __init__(self, flag: str, path: Path) -> None:
        # For errors: the setting and its file.
        self._flag = flag
        self._path = path
        # What the file had when it was last read without an error. Replaced by `reload`, as a whole.
        self.tokens = self._read()

    def reload(self) -> None:
        """Read the file again. One that cannot be used changes nothing, and is logged.

        Called at a SIGHUP. Subscribers that are connected with a token that is gone stay connected.
        """
        try:
            self.tokens = self._read()
        except SettingError as error:
            logger.error("tokens: the file cannot be used; all stay as they were", error=str(error))  # noqa: TRY400 - the operator's mistake has no traceback
        else:
            logger.info("tokens: the file was read again", setting=self._flag, tokens=len(self.tokens.known))

    def _read(self) -> Tokens:
        """Return the tokens of the file. Raises SettingError, whose text has no token."""
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
            if len(data) > FILE_BYTES_MAX:
                raise SettingError(self._flag, str(self._path), f"has more than {FILE_BYTES_MAX} bytes")
            return parse_tokens(data.decode())
        except OSError as error:
            raise SettingError(self._flag, str(self._path), f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise SettingError(self._flag, str(self._path), "is not UTF-8") from None
        except ValueError as error:
            raise SettingError(self._flag, str(self._path), str(error)) from None


class NeedsToken:
    """Lets those pass that have a token of one of the files. `in_query`: it may be in the query."""

    def __init__(self, files: Sequence[TokenFile], *, in_query: bool = False) -> None:
        # Asked in this order. Their tokens may be replaced at any time.
        self._files = files
        # Whether `access_token` in the query counts as well.
        self._in_query = in_query

    def check(self, request: Request, _origin: str) -> str | Denied:
        """Return the name of the token.

        Denied with 401: without a token, and with one that no file has (RFC 6750, section 3). A request
        with a header field `Authorization` of another kind has an unknown token.
        """
        token = presented(request.headers, request.query if self._in_query else "")
        if token is None:
            more = ", or the parameter access_token" if self._in_query else ""
            text = f"{request.route} needs a token: send the header Authorization: Bearer with it{more}"
            return Denied(401, text, {"WWW-Authenticate": "Bearer"})
        for file in self._files:
            if (name := file.tokens.name_of(token)) is not None:
                return name
        text = "the token is unknown: ask the operator of this server for one"
        return Denied(401, text, {"WWW-Authenticate": 'Bearer error="invalid_token"'})


# Fields of requests that a proxy has passed on.
_FORWARDED: Final = (
    "forwarded",
    "via",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-proto",
    "x-real-ip",
)


class OnlyLocal:
    """Lets programs of this machine pass.

    Their requests come from a loopback address, by no proxy, and for the name of one: a page in a browser on
    this machine has an `Origin`, or the name of its own site.
    """

    def check(self, request: Request, origin: str) -> str | Denied:
        """Return an empty name.

        `origin` is what the peer of the connection is. A head of the PROXY protocol may have changed it, a
        header field cannot. Denied with 403.
        """
        headers = request.headers
        passed_on = any(field in headers for field in _FORWARDED)
        if is_loopback(origin) and not passed_on and "origin" not in headers and _is_local_name(request.host):
            return ""
        text = f"{request.route} is for programs of this machine, or with --operator-tokens for operators"
        return Denied(403, text)


def _is_local_name(host: str) -> bool:
    """Tell whether a host, with or without a port, is this machine.

    `localhost`, or a loopback address. The name of a site that resolves to one (DNS rebinding) is not.
    """
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    return name.lower() == "localhost" or is_loopback(name)
