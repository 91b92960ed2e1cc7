"""A client for this and any other Jetstream.

    import asyncio
    from jetstream.client import subscribe

    async def main():
        async with subscribe("ws://localhost:6008", collections=["app.bsky.feed.post"]) as events:
            async for event in events:
                print(event["did"], event["commit"]["rkey"])

    asyncio.run(main())

Without asyncio:

    from jetstream.client import subscribe_sync

    for event in subscribe_sync("ws://localhost:6008"):
        print(event["did"])

`subscribe` explains all arguments. `v1`, `classic` and `records` have the types of events. Importing this
package imports nothing of the server, and the libraries for the network only when a subscription connects.
"""

from jetstream.client.errors import NotJetstream, Refused, StoreError, SubscriptionError
from jetstream.client.limits import ClientLimits
from jetstream.client.message import Message
from jetstream.client.request import DEFAULT_URL
from jetstream.client.store import CursorStore, FileCursor
from jetstream.client.subscription import Subscription, subscribe
from jetstream.client.sync import SyncSubscription, subscribe_sync

__all__ = [
    "DEFAULT_URL",
    "ClientLimits",
    "CursorStore",
    "FileCursor",
    "Message",
    "NotJetstream",
    "Refused",
    "StoreError",
    "Subscription",
    "SubscriptionError",
    "SyncSubscription",
    "subscribe",
    "subscribe_sync",
]
