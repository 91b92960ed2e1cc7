"""Events as a server sends them: what the tests of the load generator share."""

from __future__ import annotations

from typing import NamedTuple

import orjson
import zstandard

from jetstream.bench.check import Truth

LIKE = "app.bsky.feed.like"
POST = "app.bsky.feed.post"
DICTIONARY = zstandard.train_dictionary(
    4096, [f'{{"did":"did:plc:{n:024}","time_us":{n},"type":"com"}}'.encode() for n in range(2_000)]
).as_bytes()


class Sent(NamedTuple):
    """One event, and its frame."""

    time_us: int
    did: str
    collection: str
    frame: bytes


def text(payload: bytes, first: bytes = b"\x81") -> bytes:
    """Write a frame of less than 64 KiB, by default of text."""
    head = bytes((len(payload),)) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2, "big")
    return first + head + payload


def compressed(payload: bytes) -> bytes:
    """Write a binary frame with a compressed message."""
    dictionary = zstandard.ZstdCompressionDict(DICTIONARY)
    return text(zstandard.ZstdCompressor(1, dict_data=dictionary).compress(payload), b"\x82")


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
