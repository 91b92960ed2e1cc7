from __future__ import annotations

from jetstream.limits import WebLimits
from jetstream.supervisor.uploads import Uploads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ids(uploads: Uploads) -> list[bytes]:
    return list(uploads.bodies())


def test_uploads_are_kept_for_as_long_as_lists() -> None:
    clock = Clock()
    uploads = Uploads(WebLimits(did_lists_kept_s=60.0), clock)
    uploads.add("a", b"did:plc:a")
    clock.now = 30.0
    uploads.add("b", b"did:plc:b")
    clock.now = 60.0
    uploads.expire()
    assert ids(uploads) == [b"did:plc:b"]


def test_those_in_use_are_kept_longer_and_come_last() -> None:
    clock = Clock()
    uploads = Uploads(WebLimits(did_lists_kept_s=60.0), clock)
    uploads.add("a", b"did:plc:a")
    uploads.add("b", b"did:plc:b")
    clock.now = 59.0
    uploads.use(["a", "not known"])
    assert ids(uploads) == [b"did:plc:b", b"did:plc:a"]
    clock.now = 61.0
    uploads.expire()
    assert ids(uploads) == [b"did:plc:a"]


def test_their_number_and_their_bytes_are_bounded() -> None:
    uploads = Uploads(WebLimits(did_lists_max=2, did_lists_bytes_max=1_000), Clock())
    for name in ("a", "b", "c"):
        uploads.add(name, name.encode())
    assert ids(uploads) == [b"b", b"c"]
    uploads.add("large", bytes(range(256)) * 1)
    before = uploads.bytes
    uploads.add("large", bytes(range(256)) * 1)  # the same once more
    assert (len(uploads), uploads.bytes) == (2, before)
    uploads.add("too large", _random(2_000))
    assert (len(uploads), uploads.bytes) == (0, 0)


def _random(size: int) -> bytes:
    """Return bytes that cannot be compressed."""
    value, found = 1, bytearray()
    while len(found) < size:
        value = value * 6364136223846793005 + 1442695040888963407 & (1 << 64) - 1
        found += (value >> 32).to_bytes(4, "big")
    return bytes(found)
