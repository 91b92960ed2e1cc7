"""Asks the server that runs on this machine what is wrong with it.

    /health   which server it is, and the reasons of its conditions
    /ready    the checks that fail, with what to do

Both answer without a token. A server of ours is known by the field `Server` of its responses.
"""

from __future__ import annotations

import json
import ssl
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPException
from typing import Any, Final
from urllib.error import HTTPError
from urllib.request import HTTPSHandler, ProxyHandler, build_opener

from jetstream.doctor.finding import Finding
from jetstream.settings import Address

# Seconds for the connection and for each read: it is on this machine.
_TIMEOUT_S: Final = 2.0
# Bytes of a response that are read. Another program may be at that port.
_BODY_BYTES_MAX: Final = 1 << 20
# It is this machine, whose certificate is for its public name, so the name is not compared. No proxy of
# the environment is asked, which could not reach it.
_TLS: Final = ssl.create_default_context()
_TLS.check_hostname, _TLS.verify_mode = False, ssl.CERT_NONE
_direct: Final = build_opener(ProxyHandler({}), HTTPSHandler(context=_TLS))


def is_jetstream(address: Address) -> bool:
    """Return whether a server of ours answers at an address, over HTTP or TLS.

    Takes up to some seconds if something else is there and does not answer.
    """
    return _answer(address, "/health") is not None


def check_running(address: Address) -> Iterator[Finding]:
    """Yield each check of `/ready` that fails, and each reason of `/health`, of the server at an address.

    Nothing if no server of ours runs there, or all is well.
    """
    # Without JSON in it, `health` is empty and not None: then it is a server of ours, and nothing is
    # known of it.
    health = _answer(address, "/health")
    if health is None:
        return
    checks = (_answer(address, "/ready") or {}).get("not_ready", [])
    for check in checks:
        yield Finding(
            "running", "fail", f"the server at {address} is not ready: {check['text']}", check["hint"]
        )
    for reason in health.get("reasons", []):
        yield Finding("running", "warn", f"the server at {address}: {reason}")


def _answer(address: Address, path: str) -> dict[str, Any] | None:
    """Return the JSON that a server of ours answers with; None if there is none, empty without JSON.

    An address without a host is asked at 127.0.0.1. TLS is tried if HTTP is not understood.
    """
    host = f"[{address.host}]" if ":" in address.host else address.host or "127.0.0.1"
    for scheme in ("http", "https"):
        if (body := _get(f"{scheme}://{host}:{address.port}{path}")) is not None:
            return _object(body)
    return None


def _get(url: str) -> bytes | None:
    """Return the body of a response, whatever its status, if its server names itself a Jetstream."""
    try:
        with _open(url) as response:
            is_ours = str(response.headers.get("Server", "")).startswith("jetstream/")
            return response.read(_BODY_BYTES_MAX) if is_ours else None
    except (OSError, HTTPException, ValueError):
        return None


def _open(url: str) -> Any:
    """Return a response, also one with the status of an error: `/ready` answers 503.

    Raises OSError, HTTPException, and ValueError for a URL that cannot be read.
    """
    try:
        return _direct.open(url, timeout=_TIMEOUT_S)
    except HTTPError as error:
        return error  # a response, too


def _object(body: bytes) -> dict[str, Any]:
    """Return the JSON object of a body; empty if it is something else."""
    with suppress(ValueError, RecursionError):
        value = json.loads(body)
        return value if isinstance(value, dict) else {}
    return {}
