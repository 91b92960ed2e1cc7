"""Ask a running server: requests of JSON, with a token if it needs one.

For `jetstream top` and `jetstream subscribers`. Whatever goes wrong with a request is a NoAnswer, whose
text is one line for the operator, without secrets of a URL. Requests block: these commands do nothing
meanwhile.
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from http.client import HTTPException
from pathlib import Path
from typing import Any, Final
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import HTTPSHandler, OpenerDirector, ProxyHandler, Request, build_opener

import orjson

from jetstream.errors import JetstreamError, SettingError
from jetstream.urls import shown, without_secrets

# A server with the default settings on this machine.
DEFAULT_URL: Final = "http://localhost:6008"
# Seconds for the connection and for each read.
TIMEOUT_S: Final = 5.0
# Bytes of a response that are read. A page of subscribers and a status are well below.
BODY_BYTES_MAX: Final = 8 << 20
# Bytes of an error's body, of which the first line is shown.
_SENTENCE_BYTES_MAX: Final = 300
# A URL to subscribe at may be given as it is: its host counts.
_SCHEMES: Final = {"ws": "http", "wss": "https", "http": "http", "https": "https"}
# Hosts that are this machine.
_LOCAL: Final = {"localhost", "127.0.0.1", "::1"}


class NoAnswer(JetstreamError):
    """A server has not answered with what it was asked for.

    It cannot be reached, refuses the request, or is something else than a server of ours.
    """


def address_of(text: str, path: str, flag: str = "URL") -> str:
    """Return the URL of a path of a server. Raises SettingError.

    `text` is a host or a URL, whose own path, user and password are dropped. `flag` names it in the
    error.
    """
    try:
        parts = urlsplit(text if "://" in text else f"http://{text}")
        host = parts.hostname and f"{parts.netloc.rpartition('@')[2]}"
        usable = parts.port != 0
    except ValueError:
        host, usable = None, False
    scheme = _SCHEMES.get(parts.scheme) if host else None
    if not scheme or not usable or any(map(str.isspace, text)):
        raise SettingError(flag, shown(text), f"is not a host or URL such as {DEFAULT_URL}")
    return f"{scheme}://{host}{path}"


def read_token(file: Path | None) -> str | None:
    """Return the first token of a file: a line with it, or with `name:token`. Raises SettingError.

    So a file of `--operator-tokens` can be used as it is. Empty lines and comments are skipped. None
    without a file.
    """
    if file is None:
        return None
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        problem = getattr(error, "strerror", None) or "is no text"
        raise SettingError("--token-file", str(file), f"cannot be read: {problem}") from error
    found = next((line for line in lines if line and not line.startswith("#")), "")
    token = found.rpartition(":")[2]
    if not token or ":sha256:" in found:
        raise SettingError("--token-file", str(file), "has no token in its first line: a hash cannot be sent")
    return token


def ask(address: str, token: str | None = None, body: Mapping[str, object] | None = None) -> Any:
    """Get a path of a server, or post a body to it; return the JSON of its response. Raises NoAnswer.

    `address` is a URL of `address_of`. A token is sent as a bearer token (RFC 6750). With a `body`, the
    request is a POST.
    """
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    data = None if body is None else orjson.dumps(body)
    request = Request(address, data, headers)  # noqa: S310 - http and https only, by `address_of`
    try:
        with _opener(address).open(request, timeout=TIMEOUT_S) as response:
            return orjson.loads(response.read(BODY_BYTES_MAX))
    except HTTPError as error:
        with error:
            text = error.read(_SENTENCE_BYTES_MAX).decode(errors="replace").partition("\n")[0]
        # With these, a server of ours says in one sentence what is wrong. The page of another one is not
        # shown.
        text = text if error.code in (400, 401, 403) else "is this a Jetstream server of ours?"
        raise NoAnswer(f"{address}: HTTP {error.code}: {text}{_hint(error.code)}") from error
    except orjson.JSONDecodeError as error:
        raise NoAnswer(f"{address} does not answer with JSON") from error
    except (OSError, HTTPException, ValueError) as error:
        raise NoAnswer(f"{address}: {without_secrets(str(error))}") from error


def _hint(status: int) -> str:
    """Return which flag gives a token, where one is missing or is not known."""
    return " (here: --token-file)" if status in (401, 403) else ""


def _opener(address: str) -> OpenerDirector:
    """Return what asks a server. One on this machine has a certificate for its public name, and no proxy."""
    if urlsplit(address).hostname not in _LOCAL:
        return build_opener()
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return build_opener(ProxyHandler({}), HTTPSHandler(context=context))
