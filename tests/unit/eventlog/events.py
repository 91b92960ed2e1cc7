"""Events that are told by their number: few repos and collections, so that filters meet."""

from __future__ import annotations

from jetstream.model.event import ACCOUNT, CREATE, DELETE, Event

LIKE = b"app.bsky.feed.like"
POST = b"app.bsky.feed.post"


def make_event(number: int) -> Event:
    did = b"did:plc:repo%d" % (number % 7)
    rkey = b"3l3f6nz%06d" % number
    if number % 11 == 0:
        return Event(ACCOUNT, did, b"", b"", b"", b"", b'{"active":true,"did":"%s","seq":%d}' % (did, number))
    if number % 5 == 0:
        return Event(DELETE, did, POST, rkey, rkey, b"", b"")
    return Event(
        CREATE, did, LIKE if number % 2 else POST, rkey, rkey, b"bafyrei%052d" % number, b'{"n":%d}' % number
    )
