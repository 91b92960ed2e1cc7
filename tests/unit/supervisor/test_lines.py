from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.supervisor.lines import Lines


@given(st.lists(st.binary(max_size=20) | st.just(b"\n"), max_size=20), st.integers(1, 30))
def test_lines_are_passed_on_in_order_each_up_to_the_bound(parts: list[bytes], bytes_max: int) -> None:
    written: list[bytes] = []
    lines = Lines(written.append, bytes_max)
    for part in parts:
        lines.add(part)
        assert all(each.endswith(b"\n") for each in written)
    lines.end()
    data = b"".join(parts)
    ended = data if data.endswith(b"\n") or not data else data + b"\n"
    assert b"".join(written) == b"".join(line[:bytes_max] + b"\n" for line in ended.split(b"\n")[:-1])


def test_the_last_line_that_is_no_log_line_says_why_a_process_has_ended() -> None:
    lines = Lines(lambda _: None, 1_000)
    lines.add(b'{"event":"a"}\nTraceback (most recent call last):\n  File "x"\nValueError: no\n\n')
    lines.add(b'12:30:59 [info     ] after\n\x1b[2m12:30:59\x1b[0m b\n{"event":"c"}\n')
    assert lines.last_raw == "ValueError: no"


def test_a_line_that_is_too_long_is_cut_where_its_end_comes() -> None:
    written: list[bytes] = []
    lines = Lines(written.append, 10)
    for data in (b"0123456789abc", b"def", b"\nnext\n"):
        lines.add(data)
    assert written == [b"0123456789\n", b"next\n"]


def test_a_last_line_without_an_end_says_why_and_is_not_of_the_next_process() -> None:
    written: list[bytes] = []
    lines = Lines(written.append, 1_000)
    lines.add(b"terminate called without an active exception")
    lines.end()
    lines.add(b"{}\n")
    assert written == [b"terminate called without an active exception\n", b"{}\n"]
    assert lines.last_raw == "terminate called without an active exception"
