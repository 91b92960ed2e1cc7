"""Cursors while messages wait: what a crash may lose, and what comes twice."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.admission.marks import Marks
from jetstream.eventlog import SourceCursor


def marks_of(stored: SourceCursor | None = None) -> Marks:
    """Return the marks of one source, "a"."""
    marks = Marks()
    marks.add("a", stored)
    return marks


def test_nothing_waits() -> None:
    marks = marks_of()
    marks.add("b", SourceCursor(7))
    marks.advance("a", 102, 200, 300)
    assert marks.cursors == {"a": SourceCursor(102, 200, 300), "b": SourceCursor(7)}
    marks.advance("a", None, None, 300)
    assert marks.cursors == {"b": SourceCursor(7)}


def test_what_waits_holds_the_cursor_back() -> None:
    marks = marks_of()
    marks.wait("a", 98)
    marks.wait("a", 101)
    assert marks.cursors == {}
    marks.advance("a", 102, None, None)
    assert marks.cursors == {"a": SourceCursor(97, None, None, 102, (98, 101))}
    marks.settle("a", 98)
    assert marks.cursors == {"a": SourceCursor(100, None, None, 102, (101,))}
    marks.settle("a", 101)
    assert marks.cursors == {"a": SourceCursor(102)}


def test_a_provisional_number_that_waits_is_not_in_the_log() -> None:
    marks = marks_of()
    marks.wait("a", 5000)
    marks.advance("a", 100, 5000, None)
    assert marks.cursors == {"a": SourceCursor(100)}
    marks.settle("a", 5000)
    assert marks.cursors == {"a": SourceCursor(100, 5000)}


def test_two_messages_of_one_number() -> None:
    marks = marks_of()
    marks.wait("a", 5)
    marks.wait("a", 5)
    marks.advance("a", 5, None, None)
    marks.settle("a", 5)
    assert marks.cursors == {"a": SourceCursor(4, None, None, 5, (5,))}
    marks.settle("a", 5)
    assert marks.cursors == {"a": SourceCursor(5)}


def test_a_source_that_is_removed_does_not_come_back() -> None:
    marks = marks_of(SourceCursor(7))
    marks.wait("a", 8)
    marks.remove("a")
    marks.settle("a", 8)
    marks.wait("a", 9)
    marks.advance("a", 9, None, None)
    assert marks.cursors == {}


def test_what_an_earlier_process_has_stored_stays_known_until_it_was_read_again() -> None:
    stored = SourceCursor(97, None, None, 102, (98, 101))
    marks = marks_of(stored)
    assert marks.cursors == {"a": stored}
    marks.advance("a", 97, None, None)
    assert marks.cursors == {"a": stored}
    marks.advance("a", 99, None, None)
    assert marks.cursors == {"a": SourceCursor(99, None, None, 102, (101,))._replace(seq=99)}
    marks.wait("a", 101)
    marks.advance("a", 101, None, None)
    assert marks.cursors == {"a": SourceCursor(100, None, None, 102, (101,))}
    marks.advance("a", 103, None, None)
    assert marks.cursors == {"a": SourceCursor(100, None, None, 103, (101,))}


def test_numbers_that_fall_end_what_an_earlier_process_has_stored() -> None:
    marks = marks_of(SourceCursor(97, None, None, 102, (98,)))
    marks.advance("a", 3, None, 97)
    assert marks.cursors == {"a": SourceCursor(3, None, 97)}


# What happens: a frame waits or does not, the message that waits longest or last is settled, or a crash.
STEPS = st.lists(st.sampled_from(["take", "wait", "first", "last", "crash"]), max_size=60)


class _Server:
    """A source of rising numbers, a log, and a server that reads one number in each step."""

    def __init__(self) -> None:
        self.stored: list[int] = []
        self.cursor: SourceCursor | None = None
        self.start()

    def start(self) -> None:
        self.marks = marks_of(self.cursor)
        self.last = 0 if self.cursor is None else self.cursor.seq
        self.known_to = 0 if self.cursor is None else self.cursor.stored_to or self.cursor.seq
        self.unstored = () if self.cursor is None else self.cursor.unstored
        self.waiting: list[int] = []

    def step(self, what: str) -> None:
        if what == "crash":
            self.start()
        elif what in ("take", "wait"):
            self.read(waits=what == "wait")
        elif self.waiting:
            seq = self.waiting.pop(0 if what == "first" else -1)
            self.marks.settle("a", seq)
            self.append([seq])

    def read(self, *, waits: bool) -> None:
        self.last += 1
        is_repeat = self.last <= self.known_to and self.last not in self.unstored
        if waits and not is_repeat:
            self.marks.wait("a", self.last)
            self.waiting.append(self.last)
        self.marks.advance("a", self.last, None, None)
        self.append([] if is_repeat or waits else [self.last])

    def append(self, seqs: list[int]) -> None:
        self.stored += seqs
        self.cursor = self.marks.cursors["a"]

    def check(self) -> None:
        """Check the law of a cursor."""
        if self.cursor is not None:
            seq, _, _, stored_to, unstored = self.cursor
            assert list(unstored) == sorted(set(unstored))
            assert all(seq < each <= (stored_to or seq) for each in unstored)
            expected = set(range(1, (stored_to or seq) + 1)) - set(unstored)
            assert set(self.stored) == expected
        assert len(self.stored) == len(set(self.stored))


@given(STEPS)
def test_nothing_is_lost_or_stored_twice_whenever_it_crashes(steps: list[str]) -> None:
    server = _Server()
    for what in steps:
        server.step(what)
        server.check()
    server.start()
    for _ in range(len(steps) + 1):
        server.step("take")
    server.check()
    assert sorted(server.stored) == list(range(1, server.last + 1))
