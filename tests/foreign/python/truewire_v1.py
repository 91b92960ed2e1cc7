"""Prints the events of a Jetstream, one JSON object a line, with `truewire-bluesky` 0.1.0.

    truewire_v1.py URL CURSOR [COLLECTION…]

A CURSOR of 0 means live. The library checks each event, and makes dates of its times: those inside of
identity and account events are left out here. When a connection is lost the library raises, so this program
connects again, one microsecond after the last event.
"""

from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from typing import Any

from bluesky import Bluesky  # type: ignore[import-not-found]

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


def plain(event: dict[str, Any]) -> dict[str, Any]:
    """Return an event as JSON values."""
    kind = event["kind"]
    part = {name: value for name, value in event[kind].items() if name != "time"}
    return event | {"time_us": (event["time_us"] - EPOCH) // timedelta(microseconds=1), kind: part}


async def main(url: str, text: str, *collections: str) -> None:
    """Print events until killed."""
    position = int(text)
    while True:
        cursor = EPOCH + timedelta(microseconds=position) if position else None
        try:
            async with Bluesky.new(ws_url=url) as client:
                events = client.jetstream.events(wanted_collections=list(collections) or None, cursor=cursor)
                async with events as stream:
                    async for event in stream:
                        shown = plain(event)
                        position = shown["time_us"] + 1
                        print(json.dumps(shown), flush=True)
        except Exception as error:  # noqa: BLE001 - each of its errors means that the connection is lost
            print(f"{type(error).__name__}: {error}", file=sys.stderr)
        await asyncio.sleep(0.2)


asyncio.run(main(*sys.argv[1:]))
