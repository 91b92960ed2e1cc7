from __future__ import annotations

import zlib
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st
from tests.event_streams import decoder

from jetstream.web.content_coding import COMPRESSORS, choose, qualities

ACCEPTED = [
    ("", "identity"),
    ("identity", "identity"),
    ("gzip", "gzip"),
    ("GZip", "gzip"),
    ("x-gzip", "gzip"),
    ("zstd", "zstd"),
    ("gzip, zstd", "zstd"),
    ("gzip, deflate, br, zstd", "zstd"),
    ("gzip, deflate", "gzip"),
    ("zstd;q=0.5, gzip;q=0.8", "gzip"),
    ("zstd; q=0, gzip ;q=0.001", "gzip"),
    ("gzip;q=0", "identity"),
    ("gzip;q=0.5, identity", "identity"),
    ("gzip, identity", "gzip"),
    ("br", "identity"),
    ("*", "identity"),
    ("*;q=0, gzip", "gzip"),
    ("gzip;q=2", "identity"),
    ("gzip;q=nan", "identity"),
    ("gzip;level=9", "gzip"),
    (",,;,", "identity"),
    ("identity;q=0", None),
    ("*;q=0", None),
    ("br, *;q=0", None),
    ("identity;q=0, zstd;q=0.1", "zstd"),
    ("*;q=0, identity;q=0.1", "identity"),
    ("x," * 32 + "gzip", "identity"),
]


@pytest.mark.parametrize(("accepted", "coding"), ACCEPTED)
def test_the_coding_is_what_a_client_likes_best(accepted: str, coding: str | None) -> None:
    assert choose(accepted) == coding


@pytest.mark.parametrize(("accepted", "coding"), [("gzip, zstd", "identity"), ("gzip, identity;q=0", None)])
def test_without_an_offer_it_is_identity_unless_that_is_refused(accepted: str, coding: str | None) -> None:
    assert choose(accepted, ()) == coding


@given(st.text())
def test_no_value_of_the_header_is_an_error(value: str) -> None:
    assert choose(value) in {*COMPRESSORS, "identity", None}
    assert all(0 <= quality <= 1 for quality in qualities(value).values())


@pytest.mark.parametrize("coding", COMPRESSORS)
@given(parts=st.lists(st.binary(max_size=500)))
def test_each_write_can_be_read_at_once(coding: str, parts: list[bytes]) -> None:
    compressor, decode = COMPRESSORS[coding](), decoder(coding)
    for part in parts:
        assert decode(compressor.write(part)) == part
    assert decode(compressor.end()) == b""


def _gzip_is_complete(body: bytes) -> bool:
    stream = zlib.decompressobj(16 + zlib.MAX_WBITS)
    stream.decompress(body)
    return stream.eof


def _zstd_is_complete(body: bytes) -> bool:
    stream = zstandard.ZstdDecompressor().decompressobj()
    stream.decompress(body)
    return stream.eof


@pytest.mark.parametrize(
    ("coding", "is_complete"), [("gzip", _gzip_is_complete), ("zstd", _zstd_is_complete)]
)
def test_a_body_is_one_stream_with_an_end(coding: str, is_complete: Callable[[bytes], bool]) -> None:
    compressor = COMPRESSORS[coding]()
    body = compressor.write(b"a") + compressor.write(b"b")
    assert not is_complete(body)
    assert is_complete(body + compressor.end())
