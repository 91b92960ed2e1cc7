"""A hostile relay: a process that sends what it is ordered to, as `benches.relay` does.

    python -m benches.bad_relay FRAMES [REPOS]

Apart from `rate`, `events` and `seconds`, an order may name an `account` attack: its commits come between the
good frames, with numbers of the same sequence. Or it names a `flood`: raw bytes instead of frames, on every
connection, for `seconds`. Then the connection is closed, and what comes next is good again.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, NamedTuple

from benches.relay import Relay, say
from benches.ring import FIRST_SEQ, Ring

from jetstream.atproto.car import write_car
from jetstream.atproto.cbor_encoder import cbor_head
from jetstream.atproto.cbor_encoder import encode_text as text
from jetstream.atproto.cid import LINK_HEAD, Cid, cid_of
from jetstream.simulator import recording
from jetstream.simulator.recording import message_head

DID: Final = "did:plc:aaaaaaaaaaaaaaaaaaaaaaaa"  # the repo of the attacker's commits
DIDS: Final = DID[:-6]  # how all of its DIDs begin
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz234567"
_SYNC_BYTES: Final = 9_000  # of blocks: near their limit
REPOS: Final = 50_000
_COLLECTION: Final = "app.bsky.feed.post"
_NO_COMMIT: Final = Cid(b"\x01\x71\x12\x20" + bytes(32))  # the commit, whose block is not in the CAR
_SEQ_KEY: Final = b"\x63seq"
_SEQ: Final = _SEQ_KEY + b"\x1b" + bytes(8)
_RECORD_BYTES: Final = 1_040_000  # of CBOR: just below 1 MiB
_SLICE_BYTES: Final = 1 << 18
_ACCEPT_S: Final = 0.2


class Account(NamedTuple):
    """What comes from accounts: `make` returns a frame, by its number; `rate` come each second.

    `fresh`: each frame is another one. The server verifies, and has no key of these accounts.
    """

    make: Callable[[int], bytes]
    rate: float
    fresh: bool = False


def _map(*pairs: tuple[str, bytes]) -> bytes:
    return cbor_head(5, len(pairs)) + b"".join(text(key) + value for key, value in pairs)


def _frame(ops: bytes, blocks: bytes) -> bytes:
    """Write a commit whose `seq` is filled in when it is sent."""
    false, null = b"\xf4", b"\xf6"
    body = _map(
        ("ops", ops),
        ("rev", text("3l3f6nzhvkl2g")),
        ("seq", _SEQ.removeprefix(_SEQ_KEY)),
        ("repo", text(DID)),
        ("time", text("2026-01-01T00:00:00.000Z")),
        ("since", null),
        ("blocks", cbor_head(2, len(blocks)) + blocks),
        ("commit", LINK_HEAD + _NO_COMMIT),
        ("rebase", false),
        ("tooBig", false),
    )
    return _map(("t", text("#commit")), ("op", b"\x01")) + body


def _car(*blocks: bytes) -> bytes:
    return write_car(_NO_COMMIT, [(cid_of(block), block) for block in blocks])


def _record(number: int, field: bytes) -> bytes:
    record = _map(("x", field), ("$type", text(_COLLECTION)))
    path = text(f"{_COLLECTION}/{number:06}")
    return _frame(
        cbor_head(4, 1)
        + _map(("cid", LINK_HEAD + cid_of(record)), ("path", path), ("action", text("create"))),
        _car(record),
    )


def _deep(number: int) -> bytes:
    """Write lists within lists, 120 deep, again and again."""
    one = b"\x81" * 119 + b"\x80"
    count = _RECORD_BYTES // len(one)
    return _record(number, cbor_head(4, count) + one * count)


def _empty_lists(number: int) -> bytes:
    return _record(number, cbor_head(4, _RECORD_BYTES) + b"\x80" * _RECORD_BYTES)


def _unsorted(number: int) -> bytes:
    """Write a map whose keys fall, with lists in it."""
    count = _RECORD_BYTES // 10
    pairs = b"".join(text(f"{count - index:06x}") + b"\x82\x80\x80" for index in range(count))
    return _record(number, cbor_head(5, count) + pairs)


def _nuls(number: int) -> bytes:
    size = 200_000 + number % 5 * 200_000
    return _record(number, cbor_head(3, size) + bytes(size))


def _large(number: int) -> bytes:
    text = f"{number:09}".encode() * 100_000
    return _record(number, cbor_head(3, len(text)) + text)


def _bad_ops(_number: int) -> bytes:
    return _frame(cbor_head(4, 1_000_000) + b"\xa0" * 1_000_000, _car())


def _deletes(number: int) -> bytes:
    def op(index: int) -> bytes:
        pairs = (
            ("cid", b"\xf6"),
            ("path", text(f"a.b.c/{number}-{index}")),
            ("action", text("delete")),
        )
        return _map(*pairs)

    return _frame(cbor_head(4, 120_000) + b"".join(map(op, range(120_000))), _car())


def _did(number: int) -> str:
    return DIDS + "".join(_LETTERS[number >> shift & 31] for shift in range(25, -1, -5))


def _of_account(kind: str, did: str, *pairs: tuple[str, bytes]) -> bytes:
    """Write a message of another type, whose `seq` is filled in when it is sent."""
    seq, time = ("seq", _SEQ.removeprefix(_SEQ_KEY)), ("time", text("2026-01-01T00:00:00.000Z"))
    return _map(("t", text(kind)), ("op", b"\x01")) + _map(("did", text(did)), seq, time, *pairs)


def _identity(number: int) -> bytes:
    return _of_account("#identity", DID, ("handle", text(f"h{number}.example.com")))


def _identity_of_many(number: int) -> bytes:
    return _of_account("#identity", _did(number), ("handle", text(f"h{number}.example.com")))


def _toggle(number: int) -> bytes:
    """Write one of the states of 10,000 accounts, which are active at every other time."""
    did = _did(number % 10_000)
    if number // 10_000 % 2:
        return _of_account("#account", did, ("active", b"\xf5"))
    return _of_account("#account", did, ("active", b"\xf4"), ("status", text("deactivated")))


def _sync(number: int) -> bytes:
    """Write a #sync of an account of its own, whose blocks are not those of a repository."""
    blocks = cbor_head(2, _SYNC_BYTES) + bytes(_SYNC_BYTES)
    return _of_account("#sync", _did(number), ("rev", text("3l3f6nzhvkl2g")), ("blocks", blocks))


ACCOUNTS: Final = {
    "deep": Account(_deep, 2),
    "empty-lists": Account(_empty_lists, 2),
    "unsorted": Account(_unsorted, 2),
    "poison": Account(_nuls, 2),
    "large": Account(_large, 30),
    "bad-ops": Account(_bad_ops, 0.5),
    "deletes": Account(_deletes, 0.2),
    "identities": Account(_identity, 1_000, fresh=True),
    "identities-many": Account(_identity_of_many, 1_000, fresh=True),
    "toggles": Account(_toggle, 1_000, fresh=True),
    "syncs": Account(_sync, 1_000, fresh=True),
}


def _info() -> bytes:
    frame = _map(("t", text("#info")), ("op", b"\x01")) + _map(("name", text("OutdatedCursor")))
    return (message_head(len(frame)) + frame) * 2_000


def _lists() -> bytes:
    frame = _map(("t", text("#sync")), ("op", b"\x01")) + _map(
        ("x", cbor_head(4, 4_990_000) + b"\x80" * 4_990_000)
    )
    return message_head(len(frame)) + frame


FLOODS: Final[dict[str, Callable[[], tuple[bytes, bytes]]]] = {
    # What comes first on a connection, and what comes again and again.
    "info": lambda: (b"", _info()),
    "empty-frames": lambda: (b"", b"\x82\x00" * 50_000),
    "relay-pings": lambda: (b"", b"\x89\x00" * 50_000),
    "relay-fragments": lambda: (b"\x02\x01a", b"\x00\x01a" * 50_000),
    "lists": lambda: (b"", _lists()),
    "text-frames": lambda: (b"", b"\x81\x02{}" * 50_000),
}


class BadRelay(Relay):
    """A relay that can also send what is bad."""

    def __init__(self, ring: Ring) -> None:
        super().__init__(ring, "127.0.0.1", 0)
        self._account = ""
        self._made: dict[int, bytes] = {}

    def _send(
        self, rate: float, events: int, seconds: float, account: str = "", flood: str = "", **_more: Any
    ) -> None:
        if flood:
            self._flood(*FLOODS[flood](), time.monotonic() + seconds)
            return
        self._account = account
        super()._send(rate, events, seconds)

    def _due(
        self, began: float, rate: float, events: int, seconds: float
    ) -> Iterator[tuple[memoryview, int, int]]:
        attack = ACCOUNTS.get(self._account)
        made = [attack.make(number) for number in range(5)] if attack and not attack.fresh else []
        began, sent = time.perf_counter(), 0  # without the time that making them took
        for data, gives, count in super()._due(began, rate, events, seconds):
            yield data, gives, count
            while attack and (time.perf_counter() - began) * attack.rate >= sent + 1:
                yield self._numbered(made[sent % len(made)] if made else attack.make(sent)), 0, 1
                sent += 1

    def _numbered(self, frame: bytes) -> memoryview:
        seq = FIRST_SEQ + self._next
        self._next += 1
        frame = frame.replace(_SEQ, _SEQ[:5] + seq.to_bytes(8, "big"), 1)
        return memoryview(message_head(len(frame)) + frame)

    def _flood(self, opening: bytes, body: bytes, end: float) -> None:
        sent = 0
        while time.monotonic() < end:
            if self._server is None:
                self._listening.settimeout(_ACCEPT_S)
                try:
                    self._welcome()
                except (OSError, ValueError):
                    continue
                finally:
                    self._listening.settimeout(None)
            if self._server is not None:
                sent += self._pour(self._server, opening, memoryview(body), end)
                self._leave()
        say(events=0, frames=0, seconds=0, cpu_s=0, flooded=sent)

    def _pour(self, server: socket.socket, opening: bytes, body: memoryview, end: float) -> int:
        sent = 0
        server.settimeout(_ACCEPT_S)
        try:
            server.sendall(opening)
            while time.monotonic() < end:
                at = 0
                while at < len(body) and time.monotonic() < end:
                    try:
                        at += server.send(body[at : at + _SLICE_BYTES])
                    except TimeoutError:
                        continue
                sent += at
        except OSError:
            pass  # the server has closed the connection
        return sent


if __name__ == "__main__":
    repos = int(sys.argv[2]) if len(sys.argv) > 2 else REPOS
    BadRelay(Ring(recording.read(Path(sys.argv[1])), repos)).run()
