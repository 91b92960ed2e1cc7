"""Print new posts as they are written.

python examples/print_posts.py [URL]
"""

import asyncio
import sys

from jetstream.client import DEFAULT_URL, subscribe


async def print_posts(url: str = DEFAULT_URL) -> None:
    """Print the URI and text of each new post, without end."""
    async for event in subscribe(url, collections=["app.bsky.feed.post"]):
        commit = event.get("commit", {})  # identity and account events come too
        record = commit.get("record")  # a delete has none
        if record:
            uri = f"at://{event['did']}/{commit['collection']}/{commit['rkey']}"
            print(uri, repr(record.get("text")), flush=True)


asyncio.run(print_posts(*sys.argv[1:]))
