from __future__ import annotations

import base64
import json
import struct
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tests.builders import Cid, Raw, cbor_map, cid_of, dag_cbor, head, nested
from tests.fixtures import json_of

from jetstream.limits import UpstreamLimits
from jetstream.upstream.drops import Dropped
from jetstream.upstream.record import (
    JSON_BYTES_MAX,
    RECORD_BYTES_MAX,
    Budget,
    to_json,
)

LIMITS = UpstreamLimits()

LINK = cid_of(b"what is linked to")
LINK_JSON = {"$link": "bafyreic7dmhzkofxak6wq4tvtfgigfapswbn55d2ckkuzyya6i3v57ixoe"}


def plain(value: object) -> Any:
    """Say what a record is in JSON, slowly: the independent model that `to_json` is held against."""
    match value:
        case Cid():
            return {"$link": base58(value) if value[0] == 0x12 else base32(value)}
        case bytes():
            return {"$bytes": base64.b64encode(value).decode().rstrip("=")}
        case list():
            return [plain(item) for item in value]
        case dict():
            return {key: plain(value[key]) for key in sorted(value, key=lambda key: key.encode())}
        case float():
            return int(value)
    return value


def base32(data: bytes) -> str:
    return "b" + base64.b32encode(data).decode().lower().rstrip("=")


def base58(data: bytes) -> str:
    number, text = int.from_bytes(data, "big"), ""
    while number:
        number, digit = divmod(number, 58)
        text = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz"[digit] + text
    return text


def compact(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()


def json_of_record(value: object) -> Any:
    """Return what becomes of a record with one field."""
    return json.loads(to_json(dag_cbor({"a": value})))["a"]


def reason(raw: bytes) -> str:
    with pytest.raises(Dropped) as refused:
        to_json(raw)
    return refused.value.reason


def test_every_published_fixture() -> None:
    fixtures = json_of("interop/data-model/data-model-fixtures.json")
    records = [base64.b64decode(fixture["cbor_base64"] + "==") for fixture in fixtures]

    assert records
    assert [json.loads(to_json(raw)) for raw in records] == [fixture["json"] for fixture in fixtures]
    assert [base32(cid_of(raw)) for raw in records] == [fixture["cid"] for fixture in fixtures]


def test_published_valid_records_pass_and_their_floats_are_refused() -> None:
    valid = json_of("interop/data-model/data-model-valid.json")

    assert valid
    for fixture in valid:
        assert json.loads(to_json(dag_cbor(fixture["json"]))) == fixture["json"], fixture["note"]
    floats = [
        fixture
        for fixture in json_of("interop/data-model/data-model-invalid.json")
        if fixture["note"] == "float"
    ]
    assert [reason(dag_cbor(fixture["json"])) for fixture in floats] == ["record_float"]


# Strings, keys, integers


@pytest.mark.parametrize(
    "text",
    [
        "\0\x01\x08\x09\x0a\x0b\x0c\x0d\x1f\x7f\x80",
        "\u2028\u2029",
        "👨‍👩‍👧‍👧 𓋓 \U0010ffff",
        "\u202eعربي\u202c",
        "<script>&amp;</script>",
        '\\ " /',
        "e\N{COMBINING ACUTE ACCENT} ≠ é",
        "\ufeff\ufffd\ufffe",
    ],
)
def test_text_is_passed_on_as_utf_8(text: str) -> None:
    raw = to_json(dag_cbor({text: text}))

    assert json.loads(raw) == {text: text}
    assert raw == compact({text: text})


def test_keys_are_sorted_by_their_utf_8_bytes() -> None:
    """Neither as CBOR sorts them, the shorter first, nor as UTF-16 would."""
    keys = ["", "$type", "B", "a", "aa", "aaa", "b", "\x7f", "é", "\uffee", "\U00010000", "\U0010ffff"]
    record = {key: dict.fromkeys(reversed(keys), 1) for key in reversed(keys)}

    assert sorted(keys, key=str.encode) == sorted(keys)
    assert to_json(dag_cbor(record)) == compact({key: dict.fromkeys(sorted(keys), 1) for key in sorted(keys)})


@pytest.mark.parametrize(
    "number",
    [
        0,
        23,
        24,
        2**53,
        2**53 + 1,
        2**63 - 1,
        2**63,
        2**64 - 1,
        -1,
        -(2**53) - 1,
        -(2**63),
        -(2**63) - 1,
        -(2**64),
    ],
)
def test_integers_are_whole(number: int) -> None:
    assert to_json(dag_cbor({"a": number})) == b'{"a":%d}' % number


# Floats


def float16(value: float) -> Raw:
    return Raw(b"\xf9" + struct.pack(">e", value))


def float32(value: float) -> Raw:
    return Raw(b"\xfa" + struct.pack(">f", value))


def float64(value: float) -> Raw:
    return Raw(b"\xfb" + struct.pack(">d", value))


@pytest.mark.parametrize("size", [float16, float32, float64])
@pytest.mark.parametrize("value", [0.0, -0.0, 1.0, -2.0, 2048.0])
def test_whole_floats_are_integers(size: Any, value: float) -> None:
    assert to_json(dag_cbor({"a": [size(value)]})) == b'{"a":[%d]}' % value


@pytest.mark.parametrize("size", [float16, float32, float64])
@pytest.mark.parametrize("value", [0.5, -1.25, float("nan"), float("inf"), float("-inf")])
def test_other_floats_are_refused(size: Any, value: float) -> None:
    assert reason(dag_cbor({"a": [{"b": size(value)}]})) == "record_float"


@pytest.mark.parametrize("value", [2.0**53, 2.0**64, 1e300, -1e300])
def test_whole_floats_beyond_64_bits_are_whole(value: float) -> None:
    assert to_json(dag_cbor({"a": value})) == b'{"a":%d}' % value


def test_bytes_that_only_look_like_floats_change_nothing() -> None:
    record = {"a": b"\xfa\xfb\xf9" * 9, "b": [LINK, {}, {"c": [b""]}]}

    assert to_json(dag_cbor(record)) == compact(plain(record))


# Links and byte strings


@pytest.mark.parametrize(
    "link",
    [
        LINK,
        cid_of(b"a blob", codec=0x55),
        cid_of(b"dag-pb", codec=0x70),
        Cid(b"\x01\x71\xa0\xe4\x02\x20" + b"a" * 32),
        Cid(b"\x12\x20" + b"a" * 32),
        Cid(b"\x01\x55\x00\x00"),
        Cid(b"\x01\x55\x00\x14" + b"a" * 20),
        Cid(b"\x01\x71\x13\x40" + b"a" * 64),
    ],
    ids=["dag-cbor", "raw", "dag-pb", "blake2b", "version 0", "empty identity", "identity", "sha-512"],
)
def test_links_of_any_kind(link: Cid) -> None:
    assert json_of_record([link, {"b": link}]) == plain([link, {"b": link}])


def test_a_link_and_a_byte_string_side_by_side() -> None:
    assert to_json(dag_cbor({"a": LINK, "b": b"\0\xff"})) == compact({"a": LINK_JSON, "b": {"$bytes": "AP8"}})


@pytest.mark.parametrize(
    "record",
    [
        {"a": LINK, "b": bytes(LINK)},
        {"a": bytes(LINK), "b": LINK},
        {"a": b"\xd8\x2a\x58\x25\0" + LINK, "b": bytes(LINK)},
        {"a": b"\xd8\x2a\x58\x25\0", "b": bytes(LINK)},
        {"a": b"\xd8\x2a", "b": b"\0" + LINK},
        {"a": b"\x58\x24" + LINK, "b": LINK},
        {"a": LINK, "b": b"\x24" + LINK, "c": b"\0" + LINK},
        {"a": [LINK, LINK, LINK]},
        {"a": [bytes(LINK), bytes(LINK)]},
        {"a": [b"", b"a", b"aa", b"a", b"\x41a"]},
        {
            "a": b"x" * 23,
            "b": b"y" * 24,
            "c": b"z" * 255,
            "d": b"z" * 256,
            "e": b"z" * 257,
            "f": b"w" * 65536,
        },
    ],
)
def test_byte_strings_that_look_like_links(record: dict[str, object]) -> None:
    assert to_json(dag_cbor(record)) == compact(plain(record))


def test_a_byte_string_hidden_under_a_link_that_is_none() -> None:
    """The bytes of `c` stand in the record twice, overlapping, and first behind the head of a link."""
    period = LINK[:16] + dag_cbor("c") + head(2, 36)
    value = (period * 2)[:36]
    record = {"b": b"\xd8\x2a\x58\x25\0" + value[:16], "c": value}

    assert dag_cbor(record).count(b"\xd8\x2a\x58\x25\0" + value) == 1
    assert to_json(dag_cbor(record)) == compact(plain(record))


@pytest.mark.parametrize(
    "link",
    [
        Raw(head(6, 42, width=2) + dag_cbor(b"\0" + LINK)),
        Raw(head(6, 42) + head(2, 37, width=2) + b"\0" + LINK),
        Raw(head(6, 42) + head(2, 37, width=8) + b"\0" + LINK),
    ],
)
def test_links_spelled_longer_than_need_be(link: Raw) -> None:
    assert to_json(dag_cbor({"a": link})) == compact({"a": LINK_JSON})


@pytest.mark.parametrize("value", [bytes(LINK), b"a", b"a" * 30, b""])
def test_byte_strings_spelled_longer_than_need_be(value: bytes) -> None:
    for width in (1, 2, 4, 8):
        raw = dag_cbor({"a": Raw(head(2, len(value), width=width) + value)})
        assert to_json(raw) == compact({"a": plain(value)})


@pytest.mark.parametrize(
    "unit",
    [
        lambda n: cid_of(b"%d" % n),
        lambda n: n.to_bytes(3, "big"),
        lambda n: b"",
        lambda n: [],
        lambda n: {},
        float,
    ],
    ids=["links", "byte strings", "empty byte strings", "lists", "maps", "floats"],
)
def test_records_that_hold_very_many(unit: Any) -> None:
    """Searching a long record once for each byte string would take minutes; at 10,000 none is decoded."""
    exact = unit(0) not in ([], {})
    value: list[object] = [unit(n) for n in range(900 if exact else 7_000)]

    assert json_of_record(value) == plain(value)
    assert reason(dag_cbor({"a": [unit(n) for n in range(10_000)]})) == "record_items"


# What is refused


@pytest.mark.parametrize(
    "value",
    [
        pytest.param(b"\xf7", id="undefined"),
        pytest.param(b"\xf8\x20", id="a simple value"),
        pytest.param(b"\xe0", id="a short simple value"),
        pytest.param(b"\xff", id="a break"),
        pytest.param(b"\x9f\xff", id="a list of any length"),
        pytest.param(b"\xbf\xff", id="a map of any length"),
        pytest.param(b"\x7f\x61a\xff", id="a text in chunks"),
        pytest.param(b"\x5f\x41a\xff", id="a byte string in chunks"),
        pytest.param(b"\xc0\x74" + b"2024-09-05T06:11:04Z", id="a date"),
        pytest.param(b"\xc2\x41\x01", id="a big number"),
        pytest.param(b"\xd8\x23\x61(", id="a pattern"),
        pytest.param(b"\xd8\x1c\x81\xd8\x1d\x00", id="a list in itself"),
        pytest.param(b"\xd9\x01\x02\x81\x01", id="a set"),
        pytest.param(b"\xd9\xd9\xf7\x01", id="a self-description"),
        pytest.param(b"\xd8\x2a\x60", id="a link that is text"),
        pytest.param(b"\xd8\x2a\x40", id="a link that is empty"),
        pytest.param(b"\xd8\x2a\x41\x00", id="a link to nothing"),
        pytest.param(b"\xd8\x2a\x58\x24" + LINK, id="a link without its zero"),
        pytest.param(b"\xd8\x2a\x45\x00junk", id="a link that is no CID"),
        pytest.param(b"\xa2\x61a\x01\x61a\x02", id="a key twice"),
        pytest.param(b"\xa2\x61b\x01\x61b\x02", id="another key twice"),
        pytest.param(b"\xa3\x61b\x01\x61a\x01\x61b\x02", id="a key twice, unsorted"),
        pytest.param(b"\xa1\x01\x01", id="a key that is a number"),
        pytest.param(b"\xa1\x41a\x01", id="a key that is bytes"),
        pytest.param(b"\xa2\x61a\x01\x41a\x01", id="a key that is bytes and one that is text"),
        pytest.param(b"\xa1\x80\x01", id="a key that is a list"),
        pytest.param(b"\xa1" + dag_cbor(LINK) + b"\x01", id="a key that is a link"),
        pytest.param(b"\x61\xff", id="text that is no UTF-8"),
        pytest.param(b"\x63\xed\xa0\x80", id="text with half a pair"),
        pytest.param(b"\x1c", id="a reserved head"),
        pytest.param(b"\x62a", id="text that ends too soon"),
        pytest.param(b"\x9b" + b"\xff" * 8, id="a list of 2^64 - 1"),
        pytest.param(b"\xbb" + b"\xff" * 8, id="a map of 2^64 - 1"),
        pytest.param(b"\x5b" + b"\xff" * 8, id="a byte string of 2^64 - 1"),
        pytest.param(b"\x01\x01", id="something after the record"),
        pytest.param(b"", id="nothing"),
    ],
)
def test_what_is_no_dag_cbor(value: bytes) -> None:
    assert reason(b"\xa1\x61a" + value) == "record_cbor"
    assert reason(cbor_map([("b", 1), ("a", Raw(value))])) == "record_cbor"


@pytest.mark.parametrize("raw", [b"", b"\xa1", b"\xa1\x61a", b"\xd8\x2a\x58\x25\x00"])
def test_records_that_end_too_soon(raw: bytes) -> None:
    assert reason(raw) == "record_cbor"


@pytest.mark.parametrize("value", [[], [{}], "text", 1, None, True, b"bytes", LINK])
def test_a_record_is_a_map(value: object) -> None:
    assert reason(dag_cbor(value)) == "record_type"


def test_half_floats_do_not_make_a_list_a_record() -> None:
    assert reason(dag_cbor([float16(1.0)])) == "record_type"


@pytest.mark.parametrize("beside", [1, 1.0, float16(1.0), b"", 2**64 - 1, -(2**64)])
def test_the_deepest_record(beside: object) -> None:
    """Whatever way a record goes, 128 levels pass and 129 do not."""
    inner: object = Raw(dag_cbor([]))
    deepest = dag_cbor({"a": beside, "b": Raw(b"\x81" * 126 + dag_cbor(inner))})
    deeper = dag_cbor({"a": beside, "b": Raw(b"\x81" * 127 + dag_cbor(inner))})

    assert json.loads(to_json(deepest))["b"]
    assert reason(deeper) == "record_depth"


def test_depth_counts_maps_and_lists() -> None:
    assert json.loads(to_json(nested(128)))
    assert reason(nested(129)) == "record_depth"


def test_breadth_is_no_depth() -> None:
    value: list[object] = [{"a": [{}]} for _ in range(1_000)]

    assert json_of_record(value) == value


@pytest.mark.parametrize("levels", [250, 400, 1_000, 3_900])
def test_records_deeper_than_any_stack(levels: int) -> None:
    assert reason(nested(levels)) == "record_depth"
    assert reason(b"\xa1\x61a" + b"\x81" * levels + b"\x80") == "record_depth"


@pytest.mark.parametrize("levels", [10_000, 300_000])
def test_records_so_deep_that_they_are_not_decoded(levels: int) -> None:
    assert reason(nested(levels)) == "record_items"
    assert reason(b"\xa1\x61a" + b"\x81" * levels + b"\x80") == "record_items"


def test_the_largest_record() -> None:
    """Of CBOR, 1 MiB: with three numbers of nine bytes for each of their characters, it is less of JSON."""
    numbers = Raw(head(4, 7_900) + (b"\x1b" + b"\0" * 8) * 7_900)
    rest = RECORD_BYTES_MAX - len(dag_cbor({"a": numbers, "b": ""})) - 4
    largest = dag_cbor({"a": numbers, "b": "x" * rest})

    assert len(largest) == RECORD_BYTES_MAX == 1_048_576
    assert reason(largest) != "record_size"
    assert reason(dag_cbor({"a": numbers, "b": "x" * (rest + 1)})) == "record_size"


def test_odd_records_are_not_judged() -> None:
    record: dict[str, object] = {
        "$type": None,
        "blob": {"$type": "blob", "ref": "none", "size": "10"},
        "legacy": {"cid": "bafk", "mimeType": ""},
        "link": {"$link": 1, "other": []},
        "bytes": {"$bytes": {}},
        "": {"": ""},
    }

    assert json.loads(to_json(dag_cbor(record))) == record
    assert to_json(dag_cbor({})) == b"{}"


# The law: what a record says does not hang on how its CBOR is spelled

CIDS = st.sampled_from(
    [LINK, cid_of(b"b", codec=0x55), Cid(b"\x12\x20" + b"\x01" * 32), Cid(b"\x01\x55\x00\x01a")]
)
BYTE_STRINGS = st.one_of(
    st.binary(max_size=40),
    CIDS.map(bytes),
    st.builds(lambda cid, cut: (b"\xd8\x2a\x58\x25\0" + cid)[cut:], CIDS, st.integers(0, 40)),
    st.builds(lambda cid, cut: (head(2, len(cid)) + cid)[:cut], CIDS, st.integers(0, 40)),
)
INTEGERS = st.integers(-(2**64), 2**64 - 1)
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
WHOLE_FLOATS = st.one_of(st.integers(-2048, 2048), st.integers(-(2**53), 2**53)).map(float)
SCALARS = st.one_of(st.none(), st.booleans(), INTEGERS, TEXTS, CIDS, BYTE_STRINGS, WHOLE_FLOATS)
RECORDS = st.dictionaries(
    TEXTS,
    st.recursive(
        SCALARS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXTS, inner, max_size=4),
        max_leaves=20,
    ),
    max_size=6,
)


def respelled(value: object, data: st.DataObject) -> Raw:
    """Encode a value in another way than DAG-CBOR wants: longer heads, keys in any order, smaller floats."""
    width = data.draw(st.sampled_from([None, 8]))
    match value:
        case dict():
            items = data.draw(st.permutations(list(value.items())))
            return cbor_map((respelled(key, data), respelled(item, data)) for key, item in items)
        case list():
            return Raw(head(4, len(value), width) + b"".join(respelled(item, data) for item in value))
        case Cid():
            return Raw(head(6, 42, width) + respelled(b"\0" + bytes(value), data))
        case bytes() | str():
            raw = value if isinstance(value, bytes) else value.encode()
            return Raw(head(2 if raw is value else 3, len(raw), width) + raw)
        case float() if abs(value) <= 2048:
            return data.draw(st.sampled_from([float16, float32, float64]))(value)
    return Raw(dag_cbor(value))


@given(RECORDS)
@example({"a": LINK, "b": bytes(LINK)})
@settings(max_examples=120)
def test_any_record_is_what_the_slow_model_says(record: dict[str, object]) -> None:
    assert to_json(dag_cbor(record)) == compact(plain(record))


@given(RECORDS, st.data())
@settings(max_examples=50)
def test_the_spelling_does_not_matter(record: dict[str, object], data: st.DataObject) -> None:
    assert to_json(respelled(record, data)) == compact(plain(record))


@given(st.binary(max_size=60) | st.binary(max_size=60).map(lambda raw: b"\xa1\x61a" + raw))
@settings(max_examples=400)
def test_noise_is_refused_or_read_but_never_raises(raw: bytes) -> None:
    try:
        text = to_json(raw)
    except Dropped:
        return
    assert isinstance(json.loads(text), dict)


# What would hold the event loop


def listed(units: list[bytes], unsorted: bool = False) -> bytes:
    """Encode a record with a list of units, canonically or not."""
    value = Raw(head(4, len(units)) + b"".join(units))
    return cbor_map([("b", 0), ("a", value)]) if unsorted else dag_cbor({"a": value, "b": 0})


DEEP = b"\x81" * 119 + b"\x80"  # 120 levels
UNITS = {
    "empty lists": b"\x80",
    "empty maps": b"\xa0",
    "120-deep lists": DEEP,
    "120-deep maps": b"\xa1\x60" * 119 + b"\xa0",
    "integers": b"\0",
    "integers past 64 bits": b"\x3b" + b"\xff" * 8,
    "texts": b"\x61a",
    "empty byte strings": b"\x40",
    "byte strings": b"\x44abcd",
    "links": dag_cbor(LINK),
    "whole floats": bytes(float64(1.0)),
    "floats of 301 digits": bytes(float64(1e300)),
    "half floats": bytes(float16(1.0)),
    "undefined": b"\xf7",
}


@pytest.mark.parametrize("unsorted", [False, True])
@pytest.mark.parametrize("unit", UNITS)
def test_a_record_of_very_many_items_is_not_decoded(
    monkeypatch: pytest.MonkeyPatch, unit: str, unsorted: bool
) -> None:
    """Each of these took from 0.1 to 1 s of the event loop."""

    def forbidden(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr("jetstream.upstream.record.decode_dag_cbor", forbidden)
    monkeypatch.setattr("jetstream.upstream.record.decode_lax", forbidden)
    raw = UNITS[unit]
    for size in (400_000, 1_000_000):
        assert reason(listed([raw] * (size // len(raw)), unsorted)) == "record_items"


@pytest.mark.parametrize(
    ("unit", "unsorted", "items_max"),
    [
        (b"\x80", False, 8_000),
        (b"\0", False, 8_000),
        (b"\x61a", False, 8_000),
        (b"\0", True, 2_000),
        (b"\x80", True, 2_000),
        (bytes(float64(2.0)), False, 2_000),
        (bytes(float16(2.0)), False, 2_000),
        (b"\x3b" + b"\xff" * 8, False, 2_000),
    ],
)
def test_the_most_items(unit: bytes, unsorted: bool, items_max: int) -> None:
    """The map, its two keys, the list and the other value are five."""
    most = listed([unit] * (items_max - 5), unsorted)

    assert len(json.loads(to_json(most))["a"]) == items_max - 5
    assert reason(listed([unit] * (items_max - 4), unsorted)) == "record_items"


def test_short_records_are_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nearly all records are: what is measured costs nothing for them."""
    monkeypatch.setattr("jetstream.upstream.record.item_heads", None)
    record = {"text": "x" * (LIMITS.unmeasured_record_bytes_max - 9)}

    assert len(dag_cbor(record)) == LIMITS.unmeasured_record_bytes_max
    assert json.loads(to_json(dag_cbor(record))) == record


def test_a_byte_that_looks_like_a_float_is_none() -> None:
    """Such a record goes the fast way, and may have as many items as any."""
    value: list[object] = [0xFA, 0xFB, 0xFAFB, *[[]] * 7_900]

    assert json_of_record(value) == value


@pytest.mark.parametrize("size", [2_500, 30_000, 200_000])
def test_byte_strings_that_are_almost_found_everywhere(size: int) -> None:
    """Each of 60 searches compared 36 bytes at all places of the record."""
    value: list[object] = [b"%02d" % n + b"a" * 34 for n in range(60)] + ["a" * size]
    raw = CountedFinds(dag_cbor({"a": value}))

    assert json.loads(to_json(raw))["a"] == plain(value)
    assert raw.comparisons <= 2_100_000


class CountedFinds(bytes):
    """Bytes that count what a search in them may compare."""

    comparisons = 0

    def find(self, sub: Any, *where: Any) -> int:
        self.comparisons += len(sub) * len(self)
        return super().find(sub, *where)


# JSON that is too long


def test_the_longest_json() -> None:
    frame_of = len(b'{"a":""}')

    longest = to_json(dag_cbor({"a": "x" * (JSON_BYTES_MAX - frame_of)}))
    assert len(longest) == JSON_BYTES_MAX == 990_000
    assert reason(dag_cbor({"a": "x" * (JSON_BYTES_MAX - frame_of + 1)})) == "json_size"


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("\0", 165_000),
        ("\0", 200_000),
        ("\0", 1_048_000),
        ("\x1f", 200_000),
        ("a\0", 300_000),
        ("\n", 500_000),
        ('"', 500_000),
        ("\\", 1_048_000),
        ("é\0", 150_000),
        ("x" * 31 + "\0", 32_000),
        ("x", 1_000_000),
    ],
)
@pytest.mark.parametrize("unsorted", [False, True])
def test_texts_that_grow_in_json(text: str, count: int, unsorted: bool) -> None:
    raw = dag_cbor(text * count)

    assert reason(listed([raw], unsorted)) in (
        {"json_size"} if not unsorted else {"json_size", "record_items"}
    )
    assert reason(dag_cbor({text * count: 0})) == "json_size"


def test_byte_strings_grow_in_json() -> None:
    assert len(to_json(dag_cbor({"a": b"\0" * 740_000}))) < JSON_BYTES_MAX
    assert reason(dag_cbor({"a": b"\0" * 743_000})) == "json_size"
    assert reason(listed([dag_cbor(b"\0" * 743_000)], unsorted=True)) == "json_size"


def test_numbers_grow_in_json() -> None:
    many = listed([bytes(float64(1e300))] * 1_900)

    assert len(to_json(many)) < JSON_BYTES_MAX
    assert reason(listed([bytes(float64(1e300))] * 3_300)) == "record_items"


@pytest.mark.parametrize("count", [100, 7_000])
def test_text_that_json_escapes_slowly_counts_as_items(count: int) -> None:
    """Half a megabyte of quotes is within a megabyte of JSON, and takes longer than 8,000 items."""
    quotes = '"' * (450_000 // count)

    assert reason(listed([dag_cbor(quotes)] * count)) == "record_items"
    assert len(to_json(listed([dag_cbor("x" * len(quotes))] * count))) > 450_000
    assert len(to_json(dag_cbor({"a": '"' * 200_000}))) == 400_008


# The budget of a commit


def test_a_budget_is_spent_by_what_is_passed_on_and_by_what_is_not() -> None:
    budget = Budget(LIMITS)
    good, bad = listed([b"\x80"] * 7_000), listed([b"\x80"] * 9_000)
    to_json(good, budget)
    left = budget.left
    with pytest.raises(Dropped, match="record_items"):
        to_json(bad, budget)

    assert LIMITS.commit_items_max - 7_100 < left < LIMITS.commit_items_max - 7_000
    assert left - budget.left == LIMITS.record_items_max + 1


def test_nothing_more_is_read_when_the_budget_is_spent() -> None:
    budget = Budget(LIMITS)
    record = listed([b"\x80"] * 7_000)
    for _ in range(LIMITS.commit_items_max // 7_005):
        to_json(record, budget)

    for raw in (record, record, dag_cbor({})):
        with pytest.raises(Dropped, match="commit_items"):
            to_json(raw, budget)


def test_the_exact_way_costs_four_times_as_much() -> None:
    budgets = [Budget(LIMITS), Budget(LIMITS)]
    for budget, unsorted in zip(budgets, (False, True), strict=True):
        to_json(listed([b"\x80"] * 1_000, unsorted), budget)

    fast, exact = (LIMITS.commit_items_max - budget.left for budget in budgets)
    assert exact == 4 * fast == 4 * 1_005
