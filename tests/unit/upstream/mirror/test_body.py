"""Which fields a body may have: those of messages of relays, within the same bounds."""

from __future__ import annotations

from typing import Any

import pytest
from tests.builders import DID, REV

from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.mirror.body import problem_of


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("did", [DID], {1: "malformed", None: "malformed"}),
        ("active", [True, False], {1: "malformed", "true": "malformed"}),
        ("seq", [0, -1, 2**64 - 1], {1.0: "malformed", "1": "malformed", None: "malformed"}),
        ("rev", [REV], {"": "rev", None: "rev", 1: "rev", REV * 2: "rev"}),
        (
            "handle",
            ["", "a" * 253, "é" * 126],
            {"a" * 254: "field_size", "é" * 127: "field_size", 1: "malformed"},
        ),
        ("status", ["deleted", "a" * 64], {"a" * 65: "field_size", None: "malformed"}),
        ("time", ["", "a" * 64], {"a" * 65: "field_size", 1: "malformed"}),
        ("not known", [None, [], {"a": 1}], {}),
    ],
)
def test_a_field_is_of_its_type_and_within_its_bound(name: str, good: list[Any], bad: dict[Any, str]) -> None:
    assert [problem_of(name, value) for value in good] == [""] * len(good)
    assert {value: problem_of(name, value) for value in bad} == bad
    assert set(bad.values()) <= DROP_REASONS.keys()


@pytest.mark.parametrize(
    ("blocks", "problem"),
    [
        ({"$bytes": ""}, ""),
        ({"$bytes": "A" * 13_336}, ""),
        ({"$bytes": "A" * 13_337}, "sync_size"),
        ({"$bytes": []}, "malformed"),
        ({"$bytes": "A", "b": 1}, "malformed"),
        ({"a": "A"}, "malformed"),
        ("A", "malformed"),
        (None, "malformed"),
    ],
)
def test_blocks_are_bytes(blocks: object, problem: str) -> None:
    assert problem_of("blocks", blocks) == problem
