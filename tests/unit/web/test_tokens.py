"""Files of tokens, and the token of a request."""

from __future__ import annotations

from hashlib import sha256

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.web.head_reader import HeadReader
from jetstream.web.http import BadRequest
from jetstream.web.tokens import TOKENS_MAX, parse_tokens, presented, without_token

ALICE, BOB = "a" * 16, "b0b-._~+/bcdefghij=="
HASH = sha256(BOB.encode()).hexdigest()
TOKENS = parse_tokens(f"# ours\n\nalice:{ALICE}\r\n  bob.2:sha256:{HASH.upper()}  \n")


def test_tokens_are_known_by_their_text_or_their_hash() -> None:
    assert (TOKENS.name_of(ALICE), TOKENS.name_of(BOB)) == ("alice", "bob.2")
    assert [TOKENS.name_of(text) for text in ("", "a", ALICE + "a", HASH, f"sha256:{HASH}", "\udcff")] == [
        None
    ] * 6


@given(st.text(alphabet=st.characters(codec="ascii"), max_size=40))
def test_no_other_text_is_known(text: str) -> None:
    assert TOKENS.name_of(text) == {ALICE: "alice", BOB: "bob.2"}.get(text)


def test_nothing_of_a_token_is_kept() -> None:
    assert ALICE not in repr(TOKENS)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "has no token"),
        ("# alice:" + ALICE, "has no token"),
        ("alice", "has no name:token or name:sha256:hash in line 1"),
        (ALICE, "has no name:token"),
        ("\nalice: " + ALICE, "in line 2"),
        (f"a b:{ALICE}", "in line 1"),
        (f":{ALICE}", "in line 1"),
        (f"alice:{ALICE}é", "in line 1"),
        ("alice:sha256:" + HASH[1:], "in line 1"),
        ("alice:" + ALICE[1:], "has a token of less than 16 characters in line 1"),
        ("\n".join(f"n{number}:{ALICE}" for number in range(TOKENS_MAX + 1)), "has 1001 tokens"),
    ],
)
def test_a_bad_file_is_told_the_line_and_not_the_token(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem) as caught:
        parse_tokens(text)
    assert ALICE not in str(caught.value)


@pytest.mark.parametrize(
    ("fields", "query", "token"),
    [
        ({"authorization": f"Bearer {ALICE}"}, "", ALICE),
        ({"authorization": f"bearer   {ALICE} "}, "access_token=other", ALICE),
        ({"authorization": f"Basic {ALICE}"}, f"access_token={ALICE}", ""),
        ({"authorization": ""}, "", ""),
        ({}, f"access_token={ALICE}", ALICE),
        ({}, f"cursor=0&access_token={ALICE}&limit=1", ALICE),
        ({}, "access_token=a%2Bb", "a+b"),
        ({}, "access_token=", ""),
        ({}, f"my_access_token={ALICE}", None),
        ({}, "", None),
    ],
)
def test_the_token_of_a_request(fields: dict[str, str], query: str, token: str | None) -> None:
    assert presented(fields, query) == token


@pytest.mark.parametrize(
    ("query", "rest"),
    [
        ("", ""),
        ("cursor=0", "cursor=0"),
        ("access_token=x", ""),
        ("cursor=0&access_token=x&limit=1", "cursor=0&limit=1"),
        ("access_token=x&access_token=y&limit=1", "&limit=1"),
    ],
)
def test_a_query_without_its_token(query: str, rest: str) -> None:
    assert without_token(query) == rest


@pytest.mark.parametrize(
    "data",
    [
        b"GET /a?access_token=0123456789abcdef\r\n",
        b"GET / HTTP/1.1\r\nAuthorization: Bearer 012\x01\r\n",
        b"GET / HTTP/1.1\r\naUTHORIZATION 0123456789\r\n",
    ],
)
def test_a_bad_request_is_refused_without_naming_its_token(data: bytes) -> None:
    reader = HeadReader()
    reader.feed(data)
    with pytest.raises(BadRequest) as caught:
        reader.next()
    assert "012" not in caught.value.text
