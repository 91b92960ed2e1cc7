"""A client for this and any other Jetstream.

    import asyncio
    from jetstream.client import subscribe

    async def main():
        async for event in subscribe("ws://localhost:6008", collections=["app.bsky.feed.post"]):
            print(event["did"], event["commit"]["rkey"])

    asyncio.run(main())

`subscribe` is the whole interface; `Message` is what it yields, and `errors` has what it raises. `request`
makes the URL of a subscription, and `subscription` keeps it connected.
"""

from jetstream.client.errors import NotJetstream, Refused, SubscriptionError
from jetstream.client.request import DEFAULT_URL
from jetstream.client.subscription import ClientLimits, Message, subscribe

__all__ = [
    "DEFAULT_URL",
    "ClientLimits",
    "Message",
    "NotJetstream",
    "Refused",
    "SubscriptionError",
    "subscribe",
]
