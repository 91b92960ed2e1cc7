from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from random import Random

from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.model import syntax
from jetstream.simulator import records, truth
from jetstream.simulator.records import Author, Draft

NOW_US = 1_767_225_600_000_000


def drafts(count: int, seed: int = 1) -> Iterator[Draft]:
    author = Author(Random(seed))
    for n in range(count):
        yield author.singleton("did:plc:" + "a" * 24, NOW_US) if n % 20 == 0 else author.new(NOW_US + n)


def strings(value: object) -> Iterator[str]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key
            yield from strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from strings(item)
    elif isinstance(value, str):
        yield value


def scalars(value: object) -> Iterator[object]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from scalars(item)
    else:
        yield value


def test_the_same_randomness_writes_the_same_records() -> None:
    assert list(drafts(500)) == list(drafts(500))
    assert list(drafts(500)) != list(drafts(500, seed=2))


def test_every_record_has_a_valid_path_encoding_and_json() -> None:
    for draft in drafts(5000):
        assert draft.record["$type"] == draft.collection
        assert syntax.is_nsid(draft.collection)
        assert draft.rkey is None or syntax.is_record_key(draft.rkey)
        assert len(encode_cbor(draft.record)) < 100_000
        assert truth.to_json(draft.record)


def test_the_mix_is_that_of_the_network() -> None:
    author = Author(Random(1))
    made = Counter(author.new(NOW_US).collection for _ in range(20_000))
    shares = {name: made[name] / 20_000 for name in made}
    assert 0.63 < shares[records.LIKE] < 0.67
    assert 0.11 < shares[records.POST] < 0.15
    assert 0.08 < shares["app.bsky.feed.repost"] < 0.10
    assert 0.06 < shares["app.bsky.graph.follow"] < 0.08
    assert len(shares) >= 9


def test_some_records_break_careless_parsers() -> None:
    made = [draft.record for draft in drafts(20_000)]
    text = "".join(string for record in made for string in strings(record))
    for wanted in (
        "<b>",
        "&amp;",
        "\u2028",
        "\u200f",
        "👨‍👩‍👧‍👧",
        "\x01",
        "\x7f",
        '"',
        "\\",
        "ש",
        "日",
        "가",
    ):
        assert wanted in text, wanted
    values = [value for record in made for value in scalars(record)]
    assert any(type(value) is int and value > 2**53 for value in values)
    assert -(2**63) in values
    assert any(type(value) is bytes and value[:4] == b"\x01\x55\x12\x20" for value in values)
    assert any(type(value) is Cid for value in values)
    assert None in values


def test_facets_mark_the_utf_8_range_of_their_words() -> None:
    found = 0
    for draft in drafts(20_000):
        text = str(draft.record.get("text", "")).encode()
        for facet in draft.record.get("facets", []):  # type: ignore[attr-defined]
            word = text[facet["index"]["byteStart"] : facet["index"]["byteEnd"]].decode()
            assert word.startswith(("#", "@", "example.com"))
            found += 1
    assert found > 100


def test_references_are_fresh_and_so_compress_no_better_than_real_ones() -> None:
    author = Author(Random(1))
    cids = [author.like(NOW_US).record["subject"]["cid"] for _ in range(1000)]  # type: ignore[index]
    assert len(set(cids)) == 1000


def test_some_posts_reply_to_posts_of_the_world() -> None:
    author = Author(Random(1))
    author.remember("at://did:plc:me/app.bsky.feed.post/1", cid_of(b"\xa0"))
    uris = [author.like(NOW_US).record["subject"]["uri"] for _ in range(200)]  # type: ignore[index]
    assert "at://did:plc:me/app.bsky.feed.post/1" in uris


def test_datetimes_are_utc_with_milliseconds() -> None:
    assert records.datetime_of(NOW_US + 7_999) == "2026-01-01T00:00:00.007Z"
