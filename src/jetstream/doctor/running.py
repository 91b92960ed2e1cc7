"""Asks the server that runs on this machine what is wrong with it."""

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

_TIMEOUT_S: Final = 2.0
_BODY_BYTES_MAX: Final = 1 << 20
# It is this machine, whose certificate is for its public name.
_TLS: Final = ssl.create_default_context()
_TLS.check_hostname, _TLS.verify_mode = False, ssl.CERT_NONE
_direct: Final = build_opener(ProxyHandler({}), HTTPSHandler(context=_TLS))


def is_jetstream(address: Address) -> bool:
    """Return whether a server of ours answers at an address."""
    return _answer(address, "/health") is not None


def check_running(address: Address) -> Iterator[Finding]:
    """Yield each check of `/ready` that fails, and each reason of `/health`, of the server at an address.

    Nothing if no server of ours runs there, or all is well.
    """
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
    """Return the JSON that a server of ours answers with; None if there is none, empty without JSON."""
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
    try:
        return _direct.open(url, timeout=_TIMEOUT_S)
    except HTTPError as error:
        return error  # a response, too


def _object(body: bytes) -> dict[str, Any]:
    with suppress(ValueError, RecursionError):
        value = json.loads(body)
        return value if isinstance(value, dict) else {}
    return {}
