from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.builders import ROOT, Cid, Raw, car, cbor_map, cid_of, dag_cbor, uvarint
from tests.fixtures import captured_frames, fixture

from jetstream.atproto import car as cars
from jetstream.atproto import cid as cids
from jetstream.atproto.car import BLOCKS_MAX, Block, Blocks, Mismatch, checked_blocks, proven, write_car
from jetstream.atproto.cbor import Unreadable, decode

SMALL, LARGE = dag_cbor({"n": 1}), dag_cbor({"text": "x" * 20_000})
PAIRS = [(cid_of(block), block) for block in (SMALL, LARGE, b"")]


def test_every_block_is_found_by_its_cid() -> None:
    blocks = Blocks(car(PAIRS))

    assert [blocks.get(cid) for cid, _ in PAIRS] == [block for _, block in PAIRS]
    assert [blocks.get(cid) for cid, _ in reversed(PAIRS)] == [block for _, block in reversed(PAIRS)]


@pytest.mark.parametrize(
    "cid", [cid_of(b"another"), b"", b"\x01", PAIRS[0][0][:35], PAIRS[0][0] + b"\0", ROOT]
)
def test_what_is_not_there_is_none(cid: bytes) -> None:
    blocks = Blocks(car(PAIRS))

    assert [blocks.get(cid) for _ in range(4)] == [None] * 4
    assert blocks.get(PAIRS[0][0]) == SMALL


def test_a_cid_is_found_where_it_names_a_block_only() -> None:
    """Tree nodes and other records hold the CID, too, before and after the block it names."""
    cid = cid_of(SMALL)
    before, after = dag_cbor({"v": cid}), dag_cbor({"w": [cid, bytes(cid)]})
    everywhere = Blocks(car([(cid_of(before), before), (cid, SMALL), (cid_of(after), after)]))
    nowhere = Blocks(car([(cid_of(before), before), (cid_of(after), after)]))

    assert everywhere.get(cid) == SMALL
    assert nowhere.get(cid) is None


def test_duplicates_are_tolerated() -> None:
    assert Blocks(car(PAIRS + PAIRS)).get(PAIRS[0][0]) == SMALL


def test_blocks_under_other_cids_are_passed_over() -> None:
    version_0 = (Cid(b"\x12\x20" + b"a" * 32), b"version 0")
    identity = (Cid(b"\x01\x55\x00\x00"), b"")
    blocks = Blocks(car([version_0, identity, (b"", b""), (b"\x01", b""), *PAIRS]))

    assert blocks.get(PAIRS[0][0]) == SMALL
    assert blocks.get(version_0[0]) is None
    assert blocks.get(identity[0]) is None


def test_blocks_too_short_for_a_cid_take_no_memory() -> None:
    """Five megabytes of them would be two gigabytes, once they are listed."""
    blocks = Blocks(car([]) + b"\0" * 3_000 + b"\x02ab" * 3_000 + b"\x80\0" * 3_000 + b"\x23" + b"a" * 35)

    assert blocks._stops == {}


@pytest.mark.parametrize("block", [b"\0", b"\x80\0", b"\x02ab", b"\x24" + b"a" * 36])
def test_blocks_are_counted_and_no_more_than_ten_thousand_are_read(block: bytes) -> None:
    """Two megabytes of empty ones would be half a second."""
    Blocks(car([]) + block * BLOCKS_MAX)

    assert BLOCKS_MAX == 10_000
    with pytest.raises(Unreadable, match="more than 10,000 blocks"):
        Blocks(car([]) + block * (BLOCKS_MAX + 1))


def test_a_header_is_short() -> None:
    """It is decoded, and may not be a way around the limits of records."""
    Blocks(car(PAIRS, {"roots": [ROOT] * 20, "version": 1}))

    with pytest.raises(Unreadable, match="header"):
        Blocks(car(PAIRS, {"roots": [ROOT] * 30, "version": 1}))


def test_a_record_is_searched_for_in_short_cars_only() -> None:
    """A search from the end may compare a whole CID at each place: 40 ms in two megabytes."""
    short, long = car([PAIRS[0], (cid_of(b"a" * 10_000), b"a" * 10_000)]), car([*PAIRS])

    assert proven(short, PAIRS[0][0]) == SMALL
    assert proven(long, PAIRS[0][0]) is None
    for cid in (b"", b"\x01", PAIRS[0][0] + b"\0", short[2:5000]):
        assert proven(short, cid) is None


def test_a_car_may_hold_nothing() -> None:
    assert Blocks(car([])).get(ROOT) is None


@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_lengths_may_be_longer_than_need_be(width: int) -> None:
    size = 36 + len(SMALL)
    length = bytes([size | 128] + [128] * (width - 2) + [0]) if width > 1 else bytes((size,))

    assert Blocks(car([]) + length + cid_of(SMALL) + SMALL).get(cid_of(SMALL)) == SMALL


@pytest.mark.parametrize(
    "header",
    [
        {"roots": [ROOT, ROOT], "version": 1},
        {"roots": [ROOT], "version": 1, "more": True},
        {"roots": [cid_of(b"", codec=0x55)], "version": 1},
        cbor_map([("version", 1), ("roots", [ROOT])]),
    ],
)
def test_headers_that_are_good(header: object) -> None:
    assert Blocks(car(PAIRS, header)).get(PAIRS[0][0]) == SMALL


@pytest.mark.parametrize(
    "header",
    [
        {"roots": [ROOT], "version": 2},
        {"roots": [], "version": 1},
        {"version": 1},
        {"roots": [ROOT]},
        {},
        [],
        "text",
        Raw(b"\xff"),
        Raw(b""),
    ],
)
def test_headers_that_are_bad(header: object) -> None:
    with pytest.raises(Unreadable):
        Blocks(car(PAIRS, header))


@pytest.mark.parametrize(
    "raw", [b"", b"\0", b"\x80", b"\x3a", b"\xff" * 9, b"\xff" * 10, uvarint(2**63 - 1) + b"a"]
)
def test_what_is_no_car(raw: bytes) -> None:
    with pytest.raises(Unreadable):
        Blocks(raw)


@pytest.mark.parametrize(
    "tail", [b"\x80", b"\xff", b"\x05abcd", b"\xff\xff\xff", b"\xff" * 9, uvarint(2**62)]
)
def test_a_tail_that_is_no_block(tail: bytes) -> None:
    with pytest.raises(Unreadable):
        Blocks(car(PAIRS) + tail)


def test_a_car_cut_anywhere_is_whole_blocks_or_unreadable() -> None:
    raw = car(PAIRS)
    ends = {len(car(PAIRS[:n])) for n in range(len(PAIRS) + 1)}
    readable = set()
    for size in range(len(raw) + 1):
        try:
            Blocks(raw[:size])
        except Unreadable:
            continue
        readable.add(size)

    assert readable == ends


@given(st.lists(st.binary(max_size=300), max_size=12), st.randoms(use_true_random=False))
def test_any_car_gives_what_was_put_into_it(contents: list[bytes], random: Random) -> None:
    pairs = [(cid_of(block), block) for block in contents]
    blocks = Blocks(car(pairs))
    asked = pairs * 2
    random.shuffle(asked)

    assert [blocks.get(cid) for cid, _ in asked] == [block for _, block in asked]


@given(st.binary(max_size=200), st.booleans())
def test_noise_never_surprises(noise: bytes, after_a_header: bool) -> None:
    try:
        Blocks(car([]) + noise if after_a_header else noise).get(cid_of(noise))
    except Unreadable:
        return


def test_a_whole_repository() -> None:
    raw = fixture("firehose/repo.car").read_bytes()
    rows = [
        line.split("\t") for line in fixture("firehose/car_expected_records.tsv").read_text().splitlines()
    ]
    blocks = Blocks(raw)
    stored = [raw[start + 36 : stop] for start, stop in blocks._stops.items()]

    assert len(rows) == 23
    assert len([cid for cid in map(cid_of, stored) if blocks.get(cid)]) == len(stored)


def test_every_block_of_the_captured_commits() -> None:
    compared = 0
    for frame in captured_frames():
        raw = decode(frame[len(b"\xa2atg#commitbop\x01") :])["blocks"]
        blocks = Blocks(raw)
        for start, stop in blocks._stops.items():
            assert blocks.get(raw[start : start + 36]) == raw[start + 36 : stop]
            assert cid_of(raw[start + 36 : stop]) == raw[start : start + 36]
            compared += 1

    assert compared > 900


# Writing

DATA = st.lists(st.binary(max_size=5_000), max_size=5)


@given(DATA)
def test_a_reader_finds_every_block_that_was_written(data: list[bytes]) -> None:
    blocks = [Block(cids.cid_of(one), one) for one in data]
    found = Blocks(write_car(cids.cid_of(b"root"), blocks))
    assert [found.get(block.cid) for block in blocks] == data


@given(DATA)
def test_the_bytes_written_are_those_of_an_independent_writer(data: list[bytes]) -> None:
    blocks = [Block(cids.cid_of(one), one) for one in data]
    assert write_car(cids.Cid(ROOT), blocks) == car(blocks)


@pytest.mark.parametrize(("number", "encoded"), [(0, "00"), (127, "7f"), (128, "8001"), (300, "ac02")])
def test_varints_have_their_known_bytes(number: int, encoded: str) -> None:
    assert cars.uvarint(number).hex() == encoded


class TestCheckedBlocks:
    def test_every_block_and_the_root(self) -> None:
        raw = b"an image"
        pairs = [*PAIRS, (cid_of(raw, 0x55), raw), PAIRS[0]]
        assert checked_blocks(car(pairs)) == (ROOT, dict(pairs))

    @pytest.mark.parametrize(
        "cid",
        [
            cid_of(b"another"),
            cid_of(b"another", 0x55),
            b"\x01\x71\x13\x20" + cid_of(SMALL)[4:],
            b"\x01\x70\x12\x20" + cid_of(SMALL)[4:],
            b"\x02" + cid_of(SMALL)[1:],
        ],
    )
    def test_a_block_with_another_hash_or_kind_of_cid(self, cid: bytes) -> None:
        with pytest.raises(Mismatch, match="has another hash"):
            checked_blocks(car([PAIRS[0], (cid, SMALL)]))

    def test_the_first_of_several_roots(self) -> None:
        header = {"roots": [PAIRS[1][0], ROOT], "version": 1}
        assert checked_blocks(car(PAIRS, header))[0] == PAIRS[1][0]

    @pytest.mark.parametrize("roots", [{"0": ROOT}, "text", [7], ["text"], [[]], [None]])
    def test_roots_that_are_no_cids(self, roots: object) -> None:
        with pytest.raises(Unreadable, match="roots"):
            checked_blocks(car([], {"roots": roots, "version": 1}))

    def test_it_reads_what_blocks_reads(self) -> None:
        for raw in (b"", b"\x01", car(PAIRS)[:-1], car(PAIRS) + b"\x01"):
            with pytest.raises(Unreadable):
                checked_blocks(raw)
