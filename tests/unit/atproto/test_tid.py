from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.atproto.tid import CLOCK_IDS, tid, tid_number, tid_of, tid_us
from jetstream.model import syntax

TIMES = st.integers(min_value=0, max_value=2**53 - 1)
CLOCKS = st.integers(min_value=0, max_value=CLOCK_IDS - 1)


@given(TIMES, CLOCKS, TIMES, CLOCKS)
def test_tids_sort_as_their_times_do(time: int, clock: int, other_time: int, other_clock: int) -> None:
    left, right = tid(time, clock), tid(other_time, other_clock)
    assert syntax.is_tid(left)
    assert tid_us(left) == time
    assert (left < right) == ((time, clock) < (other_time, other_clock))


def test_known_times_have_their_known_tids() -> None:
    assert tid(0, 0) == "2222222222222"
    assert tid(1_720_000_000_000_000, 7) == "3kwemukb2222b"


@given(st.from_regex("[2-7a-j][2-7a-z]{12}", fullmatch=True))
def test_a_tid_is_an_integer_of_64_bits(text: str) -> None:
    assert syntax.is_tid(text)
    assert 0 <= tid_number(text) < 1 << 64
    assert tid_of(tid_number(text)) == text
