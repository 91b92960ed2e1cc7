"""Which upstreams are read: names, and the file of PDSes."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.errors import SettingError
from jetstream.limits import SourceLimits
from jetstream.upstreams import (
    FIREHOSE_PATH,
    SUBSCRIBE_EVENTS_PATH,
    Upstream,
    all_upstreams,
    cursors_of,
    is_mirror,
    named,
    parse_seqs,
    parse_upstream,
    parse_upstreams,
    read_file,
)

A = Upstream("a.example:443", f"wss://a.example{FIREHOSE_PATH}")
B = Upstream("b", f"ws://b.example:80{FIREHOSE_PATH}")


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("a.example", "a.example:443", f"wss://a.example{FIREHOSE_PATH}"),
        ("http://[::1]", "::1:80", f"ws://[::1]{FIREHOSE_PATH}"),
        (" b = wss://b.example/x ", "b", "wss://b.example/x"),
        ("b:1=b.example", "b:1", f"wss://b.example{FIREHOSE_PATH}"),
        ("b=wss://b.example?c=d", "b", f"wss://b.example{FIREHOSE_PATH}?c=d"),
        ("b=wss://me:pass=word@b.example", "b", f"wss://me:pass=word@b.example{FIREHOSE_PATH}"),
        # No names: a query, and a user and password.
        ("a.example/x?c=d", "a.example:443", "wss://a.example/x?c=d"),
        ("a.example?c=d", "a.example:443", f"wss://a.example{FIREHOSE_PATH}?c=d"),
        ("wss://me:pass=word@a.example", "a.example:443", f"wss://me:pass=word@a.example{FIREHOSE_PATH}"),
        ("me:pass=word@a.example", "a.example:443", f"wss://me:pass=word@a.example{FIREHOSE_PATH}"),
    ],
)
def test_an_upstream_is_a_url_with_or_without_a_name(text: str, name: str, url: str) -> None:
    assert parse_upstream(text) == Upstream(name, url)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a b=wss://b.example", "name that cannot be used"),
        (f"{'a' * 101}=wss://b.example", "name that cannot be used"),
        ("=wss://b.example", "name that cannot be used"),
        ("pds=wss://b.example", "'pds', which has a meaning"),
        ("none=wss://b.example", "'none', which has a meaning"),
        ("b=ftp://b.example", "is not a host or URL"),
        ("b=", "is not a host or URL"),
    ],
)
def test_what_is_no_upstream_is_refused_with_the_reason(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_upstream(text)


def test_a_single_url_stays_one_and_anything_else_has_names() -> None:
    assert parse_upstreams(["a.example"]) == A.url
    assert parse_upstreams(["c=a.example"]) == (A._replace(name="c"),)
    assert parse_upstreams(["a.example", "b=ws://b.example:80"]) == (A, B)
    assert parse_upstreams(["none"]) == ()


def test_all_upstreams_are_those_of_the_setting_and_then_those_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "pds.txt"
    path.write_text("c.example\n")
    c = Upstream("c.example:443", f"wss://c.example{FIREHOSE_PATH}", "pds")
    assert all_upstreams(A.url, None) == (A,)
    assert all_upstreams((A, B), None) == (A, B)
    assert all_upstreams(A.url, path) == (A, c)
    assert all_upstreams((), path) == (c,)
    with pytest.raises(SettingError, match=r"--upstream: 'none' .* --upstream-file"):
        all_upstreams((), None)


# Cursors


def test_a_number_is_for_a_single_upstream() -> None:
    assert cursors_of(None, [A, B], may_change=True) == {}
    assert cursors_of(7, [A], may_change=False) == {"a.example:443": 7}
    for upstreams, may_change in ([A, B], False), ([A], True), ([], True):
        with pytest.raises(SettingError, match=r"--upstream-cursor: '7' .* write name=seq, such as .*=7"):
            cursors_of(7, upstreams, may_change=may_change)


def test_each_name_of_a_cursor_is_that_of_an_upstream() -> None:
    assert cursors_of((("b", 7),), [A, B], may_change=True) == {"b": 7}
    with pytest.raises(SettingError, match=r"--upstream-cursor: 'c' .*: names are a.example:443, b"):
        cursors_of((("b", 7), ("c", 8)), [A, B], may_change=True)


@pytest.mark.parametrize("texts", [["a=1", "2"], ["a=1", "a=2"], ["a"], ["a="], ["1", "2"], ["a=-1"]])
def test_cursors_that_cannot_be_used_are_named(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=f"'{texts[-1]}'|'{texts[0]}'"):
        parse_seqs(texts)


# The file


def read(tmp_path: Path, text: str | bytes, *others: Upstream, **limits: Any) -> tuple[Upstream, ...]:
    path = tmp_path / "pds.txt"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return read_file(path, others, SourceLimits(**limits))


def test_a_file_has_a_pds_a_line_and_comments(tmp_path: Path) -> None:
    text = "\ufeff# ours\r\n\n  c.example  # the first\nd=ws://d.example:80/#fragment\n\t#c=\n"
    assert read(tmp_path, text, A) == (
        Upstream("c.example:443", f"wss://c.example{FIREHOSE_PATH}", "pds"),
        Upstream("d", f"ws://d.example:80{FIREHOSE_PATH}", "pds"),
    )
    assert read(tmp_path, "") == ()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("c.example\n\nftp://d\n", "line 3: 'ftp://d' is not a host or URL"),
        ("a b=c\n", "line 1: 'a b=c' begins with a name"),
        ("c.example\nwss://c.example:443/x", "line 2: 'c.example:443' is the name of line 1 as well"),
        ("#\nb=c.example", "line 2: 'b' is the name of an --upstream as well"),
        ("c\nd\ne\nf", "line 4: too many: at most 3"),
        (b"c\n\xff", "is not UTF-8"),
        ("#" * 101, "is over 100 bytes"),
    ],
)
def test_a_file_that_cannot_be_used_is_refused_with_the_line(
    tmp_path: Path, text: str | bytes, problem: str
) -> None:
    with pytest.raises(SettingError) as caught:
        read(tmp_path, text, A, B, pds_max=3, file_bytes_max=100)
    assert f"{caught.value}".startswith(f"--upstream-file: '{tmp_path / 'pds.txt'}' ")
    assert problem in str(caught.value)


def test_a_line_is_shown_without_its_password(tmp_path: Path) -> None:
    with pytest.raises(SettingError) as caught:
        read(tmp_path, "a=ftp://me:hunter2@c.example")
    assert "'a=ftp://c.example'" in str(caught.value)
    assert "hunter2" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(SettingError, match=r"--upstream-file: '.*missing' cannot be read: No such file"):
        read_file(tmp_path / "missing")


@pytest.mark.parametrize("kind", ["pipe", "directory", "device"])
def test_what_is_no_file_is_refused_at_once(tmp_path: Path, kind: str) -> None:
    path = Path(os.devnull) if kind == "device" else tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "directory":
        path.mkdir()
    with pytest.raises(
        SettingError, match=rf"'{path}' (is not a regular file|cannot be read: Is a directory)"
    ):
        read_file(path)


@given(st.text(max_size=60))
def test_any_text_is_an_upstream_or_refused(text: str) -> None:
    try:
        _, url, _ = parse_upstream(text)
    except ValueError:
        return
    assert parse_upstream(f"x={url}") == Upstream("x", url)


def test_many_names_are_shortened() -> None:
    assert named(["a", "b"], 2) == "a, b"
    assert named(iter("abcd"), 2) == "a, b and 2 more"


# A Jetstream


@pytest.mark.parametrize(
    ("text", "name", "url"),
    [
        ("jetstream+wss://a.example", "a.example:443", f"wss://a.example{SUBSCRIBE_EVENTS_PATH}"),
        ("jetstream+ws://[::1]:7/", "::1:7", f"ws://[::1]:7{SUBSCRIBE_EVENTS_PATH}"),
        (
            "jetstream+https://a.example?token=t",
            "a.example:443",
            f"wss://a.example{SUBSCRIBE_EVENTS_PATH}?token=t",
        ),
        (" b = jetstream+wss://b.example/v1/subscribe ", "b", "wss://b.example/v1/subscribe"),
    ],
)
def test_a_jetstream_is_a_url_with_a_prefix(text: str, name: str, url: str) -> None:
    assert parse_upstreams([text]) == (Upstream(name, url, "jetstream"),)


@pytest.mark.parametrize(
    "text", ["jetstream+a.example", "jetstream+ftp://a.example", "jetstream+", "jetstream+wss://"]
)
def test_what_is_no_jetstream_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not the URL of a Jetstream, such as jetstream\+wss://"):
        parse_upstreams([text])


@pytest.mark.parametrize("others", [["b.example"], ["jetstream+wss://b.example"]])
def test_no_other_upstream_is_beside_a_jetstream(others: list[str], tmp_path: Path) -> None:
    given = parse_upstreams(["jetstream+wss://me:secret@a.example", *others])
    with pytest.raises(SettingError, match="no other upstream is allowed beside it") as raised:
        all_upstreams(given, None)
    assert "secret" not in str(raised.value)
    with pytest.raises(SettingError, match="no other upstream is allowed beside it"):
        all_upstreams(parse_upstreams(["jetstream+wss://a.example"]), tmp_path / "file")


def test_a_jetstream_is_no_pds(tmp_path: Path) -> None:
    path = tmp_path / "pds.txt"
    path.write_text("jetstream+wss://a.example\n")
    with pytest.raises(
        SettingError, match=r"line 1: .* is a Jetstream, which stands alone: give it to --upstream"
    ):
        read_file(path)


def test_a_mirror_has_its_newest_position_as_cursor() -> None:
    assert is_mirror([3, 7], 7)
    assert not is_mirror([3, 7], 8)
    assert not is_mirror([0], 0)
