"""Pages of `/export`: where the next one begins, whatever the directory's order and the size of its pages."""

from __future__ import annotations

from dataclasses import asdict, replace
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.identity.accounts import TOMBSTONE, did_of, entry, key_of, operation

from jetstream.atproto.encoded_key import EncodedKey
from jetstream.identity.documents import Declared
from jetstream.identity.export import Progress, advance, before, parse_page, parse_progress, path_of
from jetstream.identity.failures import NoKey
from jetstream.model.timestamp import parse_time

OVERLAP_US = 10_000_000


def date(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%Y-%m-%dT%H:%M:%S.") + f"{ms % 1000:03}Z"


def line(number: int, key: int, ms: int, **more: Any) -> bytes:
    return orjson.dumps(entry(did_of(number), operation(key_of(key)), date(ms)) | more)


class Directory:
    """The export of a directory: operations at times in ms, which rise, with or without sequence numbers."""

    def __init__(self, times: list[int], page: int, numbers: bool) -> None:
        self.operations = [(number, number, ms) for number, ms in enumerate(times)]
        self.page = page
        self.numbers = numbers
        self.requests = 0

    def get(self, progress: Progress) -> bytes:
        self.requests += 1
        after = progress.after
        if self.numbers and after.isdecimal():
            found = [
                line(number, key, ms, seq=seq)
                for seq, (number, key, ms) in enumerate(self.operations, 1)
                if seq > int(after)
            ]
        else:
            after_ms = -1 if after in {"", "0"} else parse_time(after, 0) // 1000
            found = [line(number, key, ms) for number, key, ms in self.operations if ms > after_ms]
        return b"\n".join(found[: self.page])


def read(directory: Directory, progress: Progress) -> tuple[Progress, dict[str, EncodedKey | None]]:
    """Read an export to its end."""
    keys: dict[str, EncodedKey | None] = {}
    largest, at_end = 0, False
    while not at_end:
        assert directory.requests < 200
        page = parse_page(directory.get(progress))
        largest = max(largest, page.lines)
        keys |= {did: each.key for did, each in page.accounts.items()}
        progress, at_end = advance(progress, page, largest, OVERLAP_US)
    return progress, keys


# Steps between operations: within a millisecond, a moment, or longer than the overlap.
STEPS = st.lists(st.sampled_from([0, 0, 1, 2, 500, 20_000]), max_size=40)


@given(STEPS, STEPS, st.integers(4, 12), st.booleans())
def test_every_operation_is_read(first: list[int], then: list[int], page: int, numbers: bool) -> None:
    times = [1_700_000_000_000]
    for step in first:
        # Fewer of one millisecond than a page has: see the next test.
        times.append(times[-1] + (step if len(set(times[-page + 2 :])) > 1 or len(times) < page - 2 else 1))
    directory = Directory(times, page, numbers)
    progress, keys = read(directory, Progress())
    assert set(keys) == {did_of(number) for number in range(len(times))}
    for step in then:
        times.append(times[-1] + (step or 1))
    directory.operations = [(number, number, ms) for number, ms in enumerate(times)]
    progress, more = read(directory, progress)
    assert set(keys | more) == {did_of(number) for number in range(len(times))}
    assert progress.newest_us == times[-1] * 1000
    before = directory.requests
    assert read(directory, progress)[0].after == progress.after
    assert directory.requests - before <= 3 + 20 // page * 3


def test_a_millisecond_with_more_operations_than_a_page_is_passed() -> None:
    times = [1000] + [2000] * 20 + [3000]
    _, keys = read(Directory(times, 5, numbers=False), Progress())
    assert {did_of(0), did_of(1), did_of(21)} <= set(keys)
    _, keys = read(Directory(times, 5, numbers=True), Progress())
    assert len(keys) == 22


def test_what_becomes_visible_late_is_read_with_the_next_page() -> None:
    directory = Directory([1_000_000, 2_000_000], 10, numbers=False)
    progress, _ = read(directory, Progress())
    directory.operations.append((7, 7, 2_000_000 - 9_000))
    directory.operations.sort(key=lambda each: each[2])
    assert did_of(7) in read(directory, progress)[1]


def test_an_empty_directory() -> None:
    for numbers in (False, True):
        assert read(Directory([], 5, numbers), Progress()) == (Progress(), {})


def test_a_directory_that_repeats_itself() -> None:
    page = parse_page(b"\n".join(line(number, 1, 1_000_000, seq=number) for number in range(1, 4)))
    with pytest.raises(NoKey, match="no operation after 3, which was asked for"):
        advance(Progress(after="3"), page, 3, OVERLAP_US)
    page = parse_page(b"\n".join(line(number, 1, 1_000_000) for number in range(3)))
    for after in ("1970-01-01T00:16:40.000Z", "1970-01-01T00:30:00.000Z"):
        with pytest.raises(NoKey, match="no operation after 1970"):
            advance(Progress(after=after), page, 3, OVERLAP_US)


def test_the_last_operation_of_an_account_counts_without_those_that_are_void() -> None:
    page = parse_page(
        b"\n".join(
            [
                line(1, 1, 1000),
                line(1, 2, 2000),
                line(1, 3, 3000, nullified=True),
                line(2, 2, 3000),
                orjson.dumps(entry(did_of(2), TOMBSTONE, date(4000))),
                orjson.dumps(
                    entry(
                        did_of(3),
                        operation(key_of(1), "https://pds.test") | {"verificationMethods": {}},
                        date(4000),
                    )
                ),
            ]
        )
    )
    assert page.accounts == {
        did_of(1): Declared(key_of(2), ""),
        did_of(2): Declared(None, ""),
        did_of(3): Declared(None, "pds.test"),
    }


def test_lines_that_are_no_operation_are_counted() -> None:
    good = line(1, 1, 1000)
    bad = [
        b"{",
        b"3",
        b"null",
        b"[" * 5000,
        line(1, 1, 1000, junk="x" * 70_000),
        line(1, 1, 1000, seq="7"),
        line(1, 1, 1000, seq=-1),
        line(1, 1, 1000, seq=True),
        line(1, 1, 1000, did="did:web:a.com"),
        line(1, 1, 1000, did="did:plc:x"),
        line(1, 1, 1000, operation=None),
        line(1, 1, 1000, createdAt="now"),
    ]
    page = parse_page(b"\n".join([good, b"", *bad, b"\r"]))
    assert (len(page.operations), page.unreadable, page.lines) == (1, len(bad), 1 + len(bad))
    assert page.example.endswith("'now'")
    assert len(page.example) < 200
    assert parse_page(b"\n\n").lines == 0
    for no_export in (b"<html>", b"\n" * 20_000, b"\r" * 1_000_000 + b"x"):
        with pytest.raises(NoKey) as caught:
            parse_page(no_export)
        assert caught.value.reason == "malformed"


def test_requests() -> None:
    assert path_of(Progress(), 1000) == "/export?count=1000&after=0"
    assert path_of(Progress(after=""), 5) == "/export?count=5"
    after = replace(Progress(), after="2024-01-01T00:00:00.000Z")
    assert path_of(after, 5) == "/export?count=5&after=2024-01-01T00%3A00%3A00.000Z"


def test_just_before() -> None:
    assert [before(after) for after in ("7", "1", "0")] == ["6", "0", "0"]
    assert before("2024-01-01T00:00:00.000Z") == "2023-12-31T23:59:59.999Z"


@given(st.text(), st.sampled_from(["", "0", "7", "2024-01-01T00:00:00.000Z"]), st.integers(0, 1 << 60))
def test_progress_comes_back(directory: str, after: str, number: int) -> None:
    made = Progress(directory, after, number, number, number, number)
    assert parse_progress(orjson.dumps(asdict(made))) == made


@pytest.mark.parametrize(
    "stored",
    [
        b"",
        b"{",
        b"3",
        b'{"other":1}',
        b'{"after":"soon"}',
        b'{"after":3}',
        b'{"operations":"7"}',
        b'{"newest_us":-1}',
        b'{"complete_s":1.5}',
        b'{"directory":null}',
        b'{"unreadable":-1}',
    ],
)
def test_progress_that_is_damaged_is_that_of_the_beginning(stored: bytes) -> None:
    assert parse_progress(stored) == Progress()
