"""Events as a server sends them: what the tests of the load generator share."""

from __future__ import annotations

from typing import NamedTuple

import orjson

from jetstream.bench.check import Truth

LIKE = "app.bsky.feed.like"
POST = "app.bsky.feed.post"


class Sent(NamedTuple):
    """One event, and its frame."""

    time_us: int
    did: str
    collection: str
    frame: bytes


def text(payload: bytes) -> bytes:
    """Write a text frame of less than 64 KiB."""
    head = bytes((len(payload),)) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return b"\x81" + head + payload


def event(time_us: int, did: str = "did:plc:a", collection: str = LIKE, *, padding: int = 0) -> Sent:
    """Make a commit, or with an empty collection an identity, on the classic wire."""
    body: dict[str, object] = {"did": did, "time_us": time_us}
    if collection:
        record = {"text": "ab\x81c" * padding}
        body |= {
            "type": "com",
            "commit": {"rev": "3l3f6nzhvkl2g", "collection": collection, "record": record},
        }
    else:
        body |= {"type": "id", "identity": {"did": did}}
    return Sent(time_us, did, collection, text(orjson.dumps(body)))


def truth_of(events: list[Sent]) -> Truth:
    """Tell the truth about some events."""
    truth = Truth()
    for one in events:
        truth.add(one.time_us, len(one.frame), one.did, one.collection)
    return truth


def stream_of(events: list[Sent]) -> bytes:
    """Join the frames of events."""
    return b"".join(one.frame for one in events)
