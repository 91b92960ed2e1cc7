from __future__ import annotations

from collections.abc import Callable

import pytest
from tests.fixtures import vector_lines

from jetstream.model import syntax
from jetstream.model.syntax import (
    is_did,
    is_nsid,
    is_nsid_prefix,
    is_record_key,
    is_tid,
    nsid_bytes,
)

JUDGES: dict[str, Callable[[str], bool]] = {
    "did": is_did,
    "nsid": is_nsid,
    "recordkey": is_record_key,
    "tid": is_tid,
}


@pytest.mark.parametrize("kind", JUDGES)
def test_every_valid_vector_is_accepted(kind: str) -> None:
    vectors = vector_lines(f"interop/syntax/{kind}_syntax_valid.txt")

    assert [line for line in vectors if not JUDGES[kind](line)] == []


@pytest.mark.parametrize("kind", JUDGES)
def test_every_invalid_vector_is_refused(kind: str) -> None:
    vectors = vector_lines(f"interop/syntax/{kind}_syntax_invalid.txt")

    assert [line for line in vectors if JUDGES[kind](line)] == []


GOOD = {
    "did": "did:plc:stk5dhwhpcjxtlwnhbknmfgx",
    "nsid": "app.bsky.feed.like",
    "recordkey": "3l3f6nzhls32g",
    "tid": "3l3f6nzhls32g",
}


@pytest.mark.parametrize("kind", JUDGES)
@pytest.mark.parametrize("around", ["{}\n", "\n{}", " {}", "{} ", "{}\0", "{}\N{COMBINING ACUTE ACCENT}"])
def test_nothing_is_trimmed(kind: str, around: str) -> None:
    assert JUDGES[kind](GOOD[kind])
    assert not JUDGES[kind](around.format(GOOD[kind]))


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("did", "did:plc:\N{FULLWIDTH DIGIT ONE}"),
        ("nsid", "app.bsky.feed.lik\N{CYRILLIC SMALL LETTER IE}"),
        ("recordkey", "\N{ARABIC-INDIC DIGIT THREE}l3f6nzhls32g"),
        ("tid", "\N{FULLWIDTH DIGIT THREE}l3f6nzhls32g"),
    ],
)
def test_letters_and_digits_are_those_of_ascii(kind: str, text: str) -> None:
    assert not JUDGES[kind](text)


@pytest.mark.parametrize(
    ("kind", "longest"),
    [
        ("did", "did:plc:" + "a" * 2040),
        ("nsid", ".".join(["a" * 63] * 3 + ["a" * 61] + ["b" * 63])),
        ("recordkey", "a" * 512),
    ],
)
def test_lengths_are_held_to_the_character(kind: str, longest: str) -> None:
    assert JUDGES[kind](longest)
    assert not JUDGES[kind](longest + "a")


def test_a_collection_is_the_same_bytes_each_time() -> None:
    first = nsid_bytes("app.bsky.feed." + "post")

    assert first == b"app.bsky.feed.post"
    assert nsid_bytes("app.bsky.feed." + "post") is first
    assert nsid_bytes("app.bsky") is None


def test_hostile_collections_are_not_remembered() -> None:
    """Four thousand paths of five megabytes would be twenty gigabytes."""
    remembered = syntax._nsid_bytes.cache_info().currsize

    assert nsid_bytes("a." * 1_000_000 + "a") is None
    assert syntax._nsid_bytes.cache_info().currsize == remembered


@pytest.mark.parametrize("text", ["app.", "app.bsky.", "app.bsky.feed.", "a.1.", "com.example-a.fooBar."])
def test_prefixes_end_at_a_dot(text: str) -> None:
    assert is_nsid_prefix(text)


@pytest.mark.parametrize(
    "text",
    ["", ".", "app", "app.bsky", "app..", ".app.", "1app.", "app.-a.", "app.a-.", "app.bsky.*", "app. "],
)
def test_what_is_no_prefix(text: str) -> None:
    assert not is_nsid_prefix(text)
