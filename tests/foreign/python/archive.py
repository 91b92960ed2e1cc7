"""Asks a Jetstream for its archive, and prints what a library says to that: its error, by name and text.

archive.py atproto|jetstream-lakehouse ORIGIN
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any


def atproto(origin: str) -> Iterator[Any]:
    """Replay with `atproto`."""
    from atproto_jetstream import JetstreamClient  # type: ignore[import-not-found]

    url = origin.replace("http", "ws", 1) + "/xrpc"
    yield from JetstreamClient(base_uri=url, api_key="any").replay()


def jetstream_lakehouse(origin: str) -> Iterator[Any]:
    """Replay with `jetstream-lakehouse`."""
    from jetstream_lakehouse import Client, Config  # type: ignore[import-not-found]

    yield from Client(Config(endpoint=origin, api_key="any", max_retries=0)).replay(0)


LIBRARIES = {"atproto": atproto, "jetstream-lakehouse": jetstream_lakehouse}
try:
    print(next(LIBRARIES[sys.argv[1]](sys.argv[2])))
except Exception as error:  # noqa: BLE001 - each library has its own
    print(f"{type(error).__name__}: {error!r}")
