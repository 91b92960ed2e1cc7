from __future__ import annotations

from jetstream.limits import Limits, SupervisorLimits, WebLimits
from jetstream.supervisor.uploads import Uploads


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def ids(uploads: Uploads) -> list[bytes]:
    return list(uploads.bodies())


def test_uploads_are_kept_for_as_long_as_lists() -> None:
    clock = Clock()
    uploads = Uploads(Limits(web=WebLimits(did_lists_kept_s=60.0)), clock)
    uploads.add("a", b"did:plc:a")
    clock.now = 30.0
    uploads.add("b", b"did:plc:b")
    clock.now = 60.0
    uploads.expire()
    assert ids(uploads) == [b"did:plc:b"]


def test_those_in_use_are_kept_longer_and_come_last() -> None:
    clock = Clock()
    uploads = Uploads(Limits(web=WebLimits(did_lists_kept_s=60.0)), clock)
    uploads.add("a", b"did:plc:a")
    uploads.add("b", b"did:plc:b")
    clock.now = 59.0
    uploads.use(["a", "not known"])
    assert ids(uploads) == [b"did:plc:b", b"did:plc:a"]
    clock.now = 61.0
    uploads.expire()
    assert ids(uploads) == [b"did:plc:a"]


def test_their_number_and_their_bytes_are_bounded() -> None:
    limits = Limits(web=WebLimits(did_lists_max=2), supervisor=SupervisorLimits(uploads_bytes_max=1_000))
    uploads = Uploads(limits, Clock())
    for name in ("a", "b", "c"):
        uploads.add(name, name.encode())
    assert ids(uploads) == [b"b", b"c"]
    uploads.add("large", bytes(900))
    uploads.add("large", bytes(900))  # the same once more
    assert (len(uploads), uploads.bytes) == (2, 901)
    uploads.add("other", bytes(101))  # 101 and 900 are too many
    assert (len(uploads), uploads.bytes) == (1, 101)
    uploads.add("too large", bytes(2_000))
    assert (len(uploads), uploads.bytes) == (0, 0)
