"""Events as a busy day has them: the shares, sizes and entropy of the public network, from a seed."""

from __future__ import annotations

import random
from collections.abc import Iterator
from datetime import UTC, datetime

from jetstream.events import ACCOUNT, CREATE, DELETE, IDENTITY, UPDATE, Batch, Event

BASE32 = "abcdefghijklmnopqrstuvwxyz234567"
TID = "234567abcdefghijklmnopqrstuvwxyz"
START_US = 1_783_175_888_000_000
REPOS = 200_000
SUBJECTS = 50_000
WORDS = 20_000


class Network:
    """An endless, repeatable stream of events; `rate` is how many come in a second of `time_us`."""

    def __init__(self, seed: int = 1, rate: int = 1_000) -> None:
        self._random = random.Random(seed)
        self._step_us = 1_000_000 // rate
        self.dids = [b"did:plc:" + self._text(BASE32, 24) for _ in range(REPOS)]
        self._words = [self._text(BASE32[:26], 2 + int(self._random.expovariate(0.25))) for _ in range(WORDS)]
        self._subjects: list[tuple[bytes, bytes]] = [self._subject(START_US) for _ in range(SUBJECTS)]
        self.now_us = START_US

    def batches(self, events: int, size: int) -> Iterator[Batch]:
        """Yield `events` events in batches of `size`."""
        for start in range(0, events, size):
            count = min(size, events - start)
            made: list[Event] = []
            times: list[int] = []
            for _ in range(count):
                self.now_us += 1 + int(self._random.expovariate(1 / self._step_us))
                made.append(self.event(self.now_us))
                times.append(self.now_us)
            yield Batch.of(made, times)

    def event(self, now_us: int) -> Event:
        """Make one event of `now_us`."""
        dice = self._random.random()
        did = self._repo()
        rev = self._tid(now_us - self._random.randrange(200_000))
        made_us = now_us - int(self._random.expovariate(1 / 2_000_000))
        if dice < 0.01:
            return self._account(did, now_us, dice)
        if dice < 0.07:
            name = b"app.bsky.feed.like" if dice < 0.045 else b"app.bsky.graph.follow"
            return Event(DELETE, did, name, self._tid(now_us - self._random.randrange(10**13)), rev, b"", b"")
        collection, record = self._record(dice, self._created(made_us).encode())
        kind = UPDATE if dice > 0.985 else CREATE
        rkey = b"self" if kind == UPDATE else self._tid(made_us)
        return Event(kind, did, collection, rkey, rev, self._cid(), record)

    def _account(self, did: bytes, now_us: int, dice: float) -> Event:
        seq = now_us // 1000 % 10**10
        time = self._created(now_us).encode()
        if dice < 0.006:
            body = b'{"did":"%s","handle":"%s.bsky.social","seq":%d,"time":"%s"}'
            return Event(IDENTITY, did, b"", b"", b"", b"", body % (did, self._word(), seq, time))
        body = b'{"active":true,"did":"%s","seq":%d,"time":"%s"}' % (did, seq, time)
        return Event(ACCOUNT, did, b"", b"", b"", b"", body)

    def _record(self, dice: float, created: bytes) -> tuple[bytes, bytes]:
        subject = self._random.choice(self._subjects)
        if dice < 0.70:
            return _pointing(b"app.bsky.feed.like", created, subject)
        if dice < 0.78:
            return _pointing(b"app.bsky.feed.repost", created, subject)
        if dice < 0.88:
            return self._post(created, subject)
        if dice < 0.97:
            name = b"app.bsky.graph.follow" if dice < 0.955 else b"app.bsky.graph.block"
            return name, b'{"$type":"%s","createdAt":"%s","subject":"%s"}' % (name, created, self._repo())
        name = b"com.example.game%d.move" % self._random.randrange(60)
        text = b" ".join(self._word() for _ in range(30))
        return name, b'{"$type":"%s","createdAt":"%s","note":"%s","turn":%d}' % (
            name,
            created,
            text,
            dice * 10**6,
        )

    def _post(self, created: bytes, subject: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        text = b" ".join(self._word() for _ in range(2 + int(self._random.expovariate(1 / 14))))
        reply = b'"reply":{"parent":{"cid":"%s","uri":"%s"},"root":{"cid":"%s","uri":"%s"}},' % (subject * 2)
        shown = reply if self._random.random() < 0.6 else b""
        body = b'{"$type":"app.bsky.feed.post","createdAt":"%s","langs":["en"],%s"text":"%s"}'
        return b"app.bsky.feed.post", body % (created, shown, text)

    def _subject(self, now_us: int) -> tuple[bytes, bytes]:
        rkey = self._tid(now_us - self._random.randrange(3 * 86_400_000_000))
        return self._cid(), b"at://%s/app.bsky.feed.post/%s" % (self._repo(), rkey)

    def _repo(self) -> bytes:
        # A tenth of the repos makes half of the events.
        return self.dids[int(REPOS * self._random.random() ** 3)]

    def _word(self) -> bytes:
        return self._words[int(WORDS * self._random.random() ** 4)]

    def _cid(self) -> bytes:
        return b"bafyrei" + self._text(BASE32, 52)

    def _text(self, alphabet: str, length: int) -> bytes:
        return "".join(self._random.choices(alphabet, k=length)).encode()

    def _tid(self, time_us: int) -> bytes:
        number = time_us << 10 | self._random.randrange(1024)
        return "".join(TID[number >> shift & 31] for shift in range(60, -1, -5)).encode()

    def _created(self, time_us: int) -> str:
        time = datetime.fromtimestamp(time_us / 1e6, UTC)
        return time.strftime("%Y-%m-%dT%H:%M:%S.") + f"{time.microsecond // 1000:03d}Z"


def _pointing(name: bytes, created: bytes, subject: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
    body = b'{"$type":"%s","createdAt":"%s","subject":{"cid":"%s","uri":"%s"}}'
    return name, body % (name, created, *subject)
