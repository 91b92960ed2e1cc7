from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.atproto.compact_did import compact_did, is_plc, plc_did


@given(st.binary(min_size=15, max_size=15))
def test_a_did_plc_is_15_bytes_and_back(compact: bytes) -> None:
    did = plc_did(compact)
    assert is_plc(did)
    assert compact_did(did) == compact


@pytest.mark.parametrize(
    "did",
    [
        "did:web:a.com",
        "did:plc:ewvi7nxzyoun6zhxrhs64oi",
        "did:plc:ewvi7nxzyoun6zhxrhs64oizz",
        "did:plc:EWVI7NXZYOUN6ZHXRHS64OIZ",
        "did:plc:0wvi7nxzyoun6zhxrhs64oiz",
        "did:plc:ewvi7nxzyoun6zhxrhs64oiz\n",
        "",
    ],
)
def test_others_are_16_bytes(did: str) -> None:
    assert not is_plc(did)
    assert len(compact_did(did)) == 16
    assert compact_did(did)[:1] == b"\1"
