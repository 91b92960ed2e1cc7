"""Make random records with the collections, shapes, sizes and entropy of the real network.

Sizes and shares are those of production traffic (a like is 263 bytes of JSON, a post about 530). Most
references point outside the simulated world, with random DIDs and CIDs, which compress no better than real
ones. All randomness comes from the `Random` that is passed in.
"""

from __future__ import annotations

from bisect import bisect
from collections import deque
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from itertools import accumulate
from random import Random
from typing import Final, NamedTuple

import libipld

from jetstream.atproto import cid
from jetstream.atproto.cid import Cid
from jetstream.atproto.tid import tid
from jetstream.simulator import texts

Record = dict[str, object]

_DAY_US: Final = 86_400_000_000
_RECENT_POSTS: Final = 2048  # of the world, to which replies and likes may refer
_OWN_SHARE: Final = 0.15  # of references, that point to such a post

LIKE: Final = "app.bsky.feed.like"
POST: Final = "app.bsky.feed.post"
PROFILE: Final = "app.bsky.actor.profile"
STATUS: Final = "com.example.actor.status"
ORIGIN: Final = "org.example.broadcast.origin"


class Draft(NamedTuple):
    """A record to be written."""

    collection: str
    rkey: str | None  # None: a TID of the time of writing
    record: Record


def plc_did(rng: Random) -> str:
    """Return the random DID of an account outside the world."""
    return "did:plc:" + libipld.encode_multibase("b", rng.randbytes(15))[1:]


def datetime_of(time_us: int) -> str:
    """Return a time as the network writes it: UTC, milliseconds, `Z`."""
    return f"{_second(time_us // 1_000_000)}.{time_us // 1000 % 1000:03d}Z"


@lru_cache(maxsize=1024)
def _second(time_s: int) -> str:
    return datetime.fromtimestamp(time_s, UTC).strftime("%Y-%m-%dT%H:%M:%S")


class Author:
    """Makes random records. Some refer to recent posts of the world."""

    def __init__(self, rng: Random) -> None:
        self._rng = rng
        self._posts: deque[tuple[str, str]] = deque(maxlen=_RECENT_POSTS)  # URI and CID of recent posts

    def remember(self, uri: str, cid: Cid) -> None:
        """Add a post to the recent ones."""
        self._posts.append((uri, str(cid)))

    def new(self, now_us: int) -> Draft:
        """Return a new record, in the proportions of the real network."""
        index = bisect(_MIX_WEIGHTS, self._rng.random() * _MIX_WEIGHTS[-1])
        return _MIX[index][0](self, now_us)

    def singleton(self, did: str, now_us: int) -> Draft:
        """Return a record of a kind of which an account has only one, so that it is updated later."""
        pick = self._rng.random()
        if pick < 0.6:
            return self.profile(now_us)
        if pick < 0.9:
            return Draft(STATUS, "self", self._status(now_us))
        return Draft(ORIGIN, f"{did}::did:web:stream.example.com", self._origin(did, now_us))

    def like(self, now_us: int) -> Draft:
        """Return a like, sometimes via a repost."""
        record = self._about_post(LIKE, now_us)
        if self._rng.random() < 0.2:
            record["via"] = self._reference("app.bsky.feed.repost", now_us)
        return Draft(LIKE, None, record)

    def repost(self, now_us: int) -> Draft:
        """Return a repost, sometimes via another repost."""
        record = self._about_post("app.bsky.feed.repost", now_us)
        if self._rng.random() < 0.4:
            record["via"] = self._reference("app.bsky.feed.repost", now_us)
        return Draft("app.bsky.feed.repost", None, record)

    def follow(self, now_us: int) -> Draft:
        """Return a follow."""
        return self._about_account("app.bsky.graph.follow", now_us)

    def block(self, now_us: int) -> Draft:
        """Return a block of an account."""
        return self._about_account("app.bsky.graph.block", now_us)

    def list_item(self, now_us: int) -> Draft:
        """Return an item of a list."""
        draft = self._about_account("app.bsky.graph.listitem", now_us)
        draft.record["list"] = f"at://{plc_did(self._rng)}/app.bsky.graph.list/{self._past_tid(now_us)}"
        return draft

    def post(self, now_us: int) -> Draft:
        """Return a post: with a language, and perhaps a reply, a facet and an embed."""
        rng = self._rng
        language, text = texts.text(rng)
        record: Record = {
            "$type": POST,
            "text": text,
            "langs": [language],
            "createdAt": self._created(now_us),
        }
        if rng.random() < 0.45:
            parent = self._reference(POST, now_us)
            root = parent if rng.random() < 0.6 else self._reference(POST, now_us)
            record["reply"] = {"parent": parent, "root": root}
        if rng.random() < 0.15:
            self._add_facet(record, text)
        if rng.random() < 0.35:
            record["embed"] = self._embed(now_us)
        return Draft(POST, None, record)

    def profile(self, now_us: int) -> Draft:
        """Return a profile with images."""
        record: Record = {
            "$type": PROFILE,
            "avatar": self._blob("image/jpeg"),
            "createdAt": self._created(now_us),
            "description": texts.text(self._rng)[1],
            "displayName": texts.text(self._rng)[1][:64],
        }
        if self._rng.random() < 0.5:
            record["banner"] = self._blob("image/jpeg")
        if self._rng.random() < 0.2:
            record["pinnedPost"] = self._reference(POST, now_us)
        return Draft(PROFILE, "self", record)

    def gate(self, now_us: int) -> Draft:
        """Return a thread gate: who may reply."""
        rkey = self._past_tid(now_us)
        record: Record = {
            "$type": "app.bsky.feed.threadgate",
            "allow": [{"$type": "app.bsky.feed.threadgate#followingRule"}],
            "createdAt": self._created(now_us),
            "hiddenReplies": [],
            "post": f"at://{plc_did(self._rng)}/{POST}/{rkey}",
        }
        return Draft("app.bsky.feed.threadgate", rkey, record)

    def scrobble(self, now_us: int) -> Draft:
        """Return a record of another app: plain fields, large integers."""
        rng = self._rng
        record: Record = {
            "$type": "com.example.music.play",
            "artists": [{"name": texts.text(rng)[1][:40], "id": rng.getrandbits(62)} for _ in range(2)],
            "durationNs": rng.getrandbits(60) + 2**53,
            "lowest": -(2**63),
            "playedAt": self._created(now_us),
            "track": texts.text(rng)[1][:80],
            "trackId": None,
            "loved": rng.random() < 0.5,
        }
        return Draft("com.example.music.play", None, record)

    def sealed_note(self, now_us: int) -> Draft:
        """Return a record with byte strings (one of which looks like a CID), links, and unusual keys."""
        rng = self._rng
        record: Record = {
            "$type": "net.example.vault.note",
            "cipher": rng.randbytes(rng.randrange(200)),
            "cidLike": bytes(cid.raw_cid(rng.randbytes(32))),
            "parent": cid.cid_of(rng.randbytes(8)),
            "legacyBlob": {"cid": str(cid.raw_cid(rng.randbytes(32))), "mimeType": "image/png"},
            "tags": {"é": 1, "zz": [], "a": {}, "B": [[1], [-1, 0]], "a b": "<&>", "日本": "\u2029"},
            "updatedAt": self._created(now_us),
            "depth": _nested(rng.randrange(30)),
        }
        return Draft("net.example.vault.note", None, record)

    def _status(self, now_us: int) -> Record:
        return {"$type": STATUS, "text": texts.text(self._rng)[1], "updatedAt": self._created(now_us)}

    def _origin(self, did: str, now_us: int) -> Record:
        query = did.replace(":", "%3A")
        return {
            "$type": ORIGIN,
            "server": "did:web:stream.example.com",
            "streamer": did,
            "updatedAt": self._created(now_us),
            "websocketURL": f"wss://stream.example.com/xrpc/segments?streamer={query}&live=1",
        }

    def _about_post(self, collection: str, now_us: int) -> Record:
        return {
            "$type": collection,
            "createdAt": self._created(now_us),
            "subject": self._reference(POST, now_us),
        }

    def _about_account(self, collection: str, now_us: int) -> Draft:
        record: Record = {
            "$type": collection,
            "createdAt": self._created(now_us),
            "subject": plc_did(self._rng),
        }
        return Draft(collection, None, record)

    def _reference(self, collection: str, now_us: int) -> Record:
        rng = self._rng
        if collection == POST and self._posts and rng.random() < _OWN_SHARE:
            uri, cid = self._posts[-1 - int(len(self._posts) * rng.random() ** 3)]
            return {"cid": cid, "uri": uri}
        cid = libipld.encode_cid(b"\x01\x71\x12\x20" + rng.randbytes(32))
        return {"cid": cid, "uri": f"at://{plc_did(rng)}/{collection}/{self._past_tid(now_us)}"}

    def _past_tid(self, now_us: int) -> str:
        age_us = int(30 * _DAY_US * self._rng.random() ** 6)
        return tid(now_us - age_us, self._rng.getrandbits(10))

    def _created(self, now_us: int) -> str:
        return datetime_of(now_us - int(self._rng.random() * 2_000_000))

    def _blob(self, mime_type: str) -> Record:
        return {
            "$type": "blob",
            "ref": cid.raw_cid(self._rng.randbytes(32)),
            "mimeType": mime_type,
            "size": self._rng.randrange(10_000, 1_000_000),
        }

    def _add_facet(self, record: Record, text: str) -> None:
        """Append a tag, a link or a mention to the text, with the facet for its UTF-8 range."""
        word, feature = self._rng.choice(_FACETS)
        before = f"{text} "
        record["text"] = before + word
        start = len(before.encode())
        record["facets"] = [
            {
                "features": [dict(feature)],
                "index": {"byteEnd": start + len(word.encode()), "byteStart": start},
            }
        ]

    def _embed(self, now_us: int) -> Record:
        rng = self._rng
        pick = rng.random()
        if pick < 0.4:
            images = [
                {
                    "alt": texts.text(rng)[1] if rng.random() < 0.4 else "",
                    "aspectRatio": {"height": rng.randrange(300, 2000), "width": rng.randrange(300, 2000)},
                    "image": self._blob("image/jpeg"),
                }
                for _ in range(rng.randrange(1, 5))
            ]
            return {"$type": "app.bsky.embed.images", "images": images}
        if pick < 0.8:
            external = {
                "description": texts.text(rng)[1],
                "thumb": self._blob("image/jpeg"),
                "title": texts.text(rng)[1][:100],
                "uri": f"https://www.example.com/watch?v={rng.getrandbits(64):x}&list=1",
            }
            return {"$type": "app.bsky.embed.external", "external": external}
        return {"$type": "app.bsky.embed.record", "record": self._reference(POST, now_us)}


_FACETS: Final[tuple[tuple[str, Record], ...]] = (
    ("#wolkenkratzer", {"$type": "app.bsky.richtext.facet#tag", "tag": "wolkenkratzer"}),
    ("#花火", {"$type": "app.bsky.richtext.facet#tag", "tag": "花火"}),
    (
        "example.com/a?b=1&c=2",
        {"$type": "app.bsky.richtext.facet#link", "uri": "https://example.com/a?b=1&c=2"},
    ),
    (
        "@somebody.example.com",
        {"$type": "app.bsky.richtext.facet#mention", "did": "did:plc:ewvi7nxzyoun6zhxrhs64oiz"},
    ),
)

# In thousandths of all new records. A profile is updated far more often than created, see `Author.singleton`.
_MIX: Final[tuple[tuple[Callable[[Author, int], Draft], int], ...]] = (
    (Author.like, 652),
    (Author.post, 132),
    (Author.repost, 90),
    (Author.follow, 71),
    (Author.block, 16),
    (Author.list_item, 12),
    (Author.gate, 6),
    (Author.scrobble, 13),
    (Author.sealed_note, 8),
)
_MIX_WEIGHTS: Final = list(accumulate(share for _, share in _MIX))


def _nested(depth: int) -> object:
    value: object = "bottom"
    for level in range(depth):
        value = {"in": value} if level % 2 else [value]
    return value
