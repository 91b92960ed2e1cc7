"""Test your own consumer of a Jetstream, offline and without waiting.

pip install '.[testing]'
pytest examples/test_my_consumer.py
"""

from collections import Counter

import pytest

from jetstream.client import subscribe
from jetstream.testing import SimulatedNetwork, jetstream, network

__all__ = ["jetstream", "network"]  # fixtures: usually imported in a conftest.py

pytestmark = pytest.mark.asyncio


async def count_likes(url: str, events: int) -> Counter[str]:
    """Count the likes of each post in the next events. This is the consumer to test."""
    likes: Counter[str] = Counter()
    async for event in subscribe(url, cursor=0):
        commit = event.get("commit", {})
        if commit.get("type") == "c" and commit["collection"] == "app.bsky.feed.like":
            likes[commit["record"]["subject"]["uri"]] += 1
        events -= 1
        if not events:
            break
    return likes


def likes_in(truth: list[dict]) -> Counter[str]:
    """Count the same in the events that the network has announced."""
    likes = [event["commit"] for event in truth if event["kind"] == "commit"]
    return Counter(
        commit["record"]["subject"]["uri"]
        for commit in likes
        if commit["operation"] == "create" and commit["collection"] == "app.bsky.feed.like"
    )


async def test_likes_are_counted(network: SimulatedNetwork, jetstream: str) -> None:
    """Publish a hundred random messages."""
    truth = network.emit(100)
    likes = await count_likes(jetstream, len(truth))
    assert likes == likes_in(truth)
    assert likes


async def test_one_post_is_liked_by_two(network: SimulatedNetwork, jetstream: str) -> None:
    """Publish exactly what the test is about."""
    world = network.world
    post = {"uri": "at://did:plc:somebody/app.bsky.feed.post/1", "cid": "bafyreib2rxk3rw6cvdmxz"}
    like = {"$type": "app.bsky.feed.like", "subject": post, "createdAt": "2026-01-01T00:00:00.000Z"}
    first, second = world.accounts[:2]
    network.publish(
        world.create_record(first.did, "app.bsky.feed.like", like),
        world.identify(first.did, "new-name.example.com"),
        world.create_record(second.did, "app.bsky.feed.like", like),
    )
    assert await count_likes(jetstream, 3) == {post["uri"]: 2}


async def test_faults_of_the_relay_change_nothing(network: SimulatedNetwork, jetstream: str) -> None:
    """Let the relay send garbage, repeat frames and drop the connection."""
    truth = network.emit(20)
    truth += network.emit(20, faults=["garbage", "repeat", "bit_flipped", "drop"])
    assert await count_likes(jetstream, len(truth)) == likes_in(truth)
