"""A client of this and any other Jetstream.

    import asyncio
    from jetstream.client import subscribe

    async def main():
        async for event in subscribe("ws://localhost:6008", collections=["app.bsky.feed.post"]):
            print(event["did"], event["commit"]["rkey"])

    asyncio.run(main())

`request` is what is asked, `subscription` the connection that is held, `cli` the command `jetstream tail`.
"""

from jetstream.client.errors import NotJetstream, Refused, SubscriptionError
from jetstream.client.request import DEFAULT_URL
from jetstream.client.subscription import Message, subscribe

__all__ = ["DEFAULT_URL", "Message", "NotJetstream", "Refused", "SubscriptionError", "subscribe"]
