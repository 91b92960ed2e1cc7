"""A message on its way to the log."""

from __future__ import annotations

from jetstream.admission.message import bytes_of


def test_bytes_of_a_message() -> None:
    assert bytes_of({"blocks": bytes(1000), "seq": 1}) == 1000 + len("blocks") + len("seq") + 5 * 64
    nested: list[object] = []
    for _ in range(5000):
        nested = [nested]
    assert bytes_of({"ops": [{"cid": bytes(36), "path": "a"}], "x": nested}) > 5000 * 64
