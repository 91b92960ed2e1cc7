from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.supervisor.lines import Lines


@given(st.lists(st.binary(max_size=20), max_size=20))
def test_whole_lines_are_passed_on_in_order(parts: list[bytes]) -> None:
    written: list[bytes] = []
    lines = Lines(written.append, 1_000)
    for part in parts:
        lines.add(part)
    data = b"".join(parts)
    assert b"".join(written) == data[: data.rfind(b"\n") + 1]
    assert all(each.endswith(b"\n") for each in written)


def test_the_last_line_that_is_no_log_line_says_why_a_process_has_ended() -> None:
    lines = Lines(lambda _: None, 1_000)
    lines.add(b'{"event":"a"}\nTraceback (most recent call last):\n  File "x"\nValueError: no\n\n')
    lines.add(b'12:30:59 [info     ] after\n\x1b[2m12:30:59\x1b[0m b\n{"event":"c"}\n')
    assert lines.last_raw == "ValueError: no"


def test_a_line_without_an_end_is_cut() -> None:
    written: list[bytes] = []
    lines = Lines(written.append, 10)
    lines.add(b"0123456789abc")
    lines.add(b"def\n")
    assert written == [b"0123456789\n", b"def\n"]
