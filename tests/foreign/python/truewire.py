"""Prints the events of a Jetstream, one JSON object a line, with `truewire-bluesky` 0.1.0.

    truewire.py URL CURSOR [COLLECTION…]

A CURSOR of 0 means live. The library validates events, and makes dates of times. It does not reconnect by
itself, so this program does, one microsecond after the last event.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from bluesky import Bluesky  # type: ignore[import-not-found]
from truewire_core.exceptions import NetworkError  # type: ignore[import-not-found]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MICROSECOND = timedelta(microseconds=1)


async def show(url: str, cursor: datetime | None, collections: list[str]) -> datetime | None:
    """Print events until the connection ends. Returns where to resume."""
    async with Bluesky.new(ws_url=url) as client:
        options: dict[str, Any] = {"cursor": cursor, "wanted_collections": collections or None}
        try:
            async with client.jetstream.events(**options) as stream:
                async for event in stream:
                    cursor = event["time_us"] + MICROSECOND
                    time_us = (event["time_us"] - EPOCH) // MICROSECOND
                    print(json.dumps(event | {"time_us": time_us}, default=datetime.isoformat), flush=True)
        except (NetworkError, OSError) as error:
            print(error, file=sys.stderr)
    return cursor


async def main(url: str, cursor_text: str, *collections: str) -> None:
    """Print events until killed."""
    cursor = EPOCH + int(cursor_text) * MICROSECOND if cursor_text != "0" else None
    while True:
        cursor = await show(url, cursor, [*collections])
        await asyncio.sleep(0.05)


asyncio.run(main(*sys.argv[1:]))
