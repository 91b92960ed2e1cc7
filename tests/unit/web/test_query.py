from __future__ import annotations

import pytest

from jetstream.errors import InvalidParameter
from jetstream.steps import finish
from jetstream.web.query import PARAMETERS_MAX, cut_cursor, decode_query


@pytest.mark.parametrize("query", ["&" * PARAMETERS_MAX + "&", "wantedDids=" + "a%2C" * (PARAMETERS_MAX + 1)])
def test_a_query_of_too_many_parameters_is_refused(query: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        finish(decode_query(query))
    assert caught.value.name == "query"


def test_a_query_is_read_in_small_steps() -> None:
    query = "&".join([f"wantedDids=did%3Aplc%3A{n:024d}" for n in range(10_000)])
    assert len(list(decode_query(query))) == 40


def test_commas_separate_the_items_of_lists_and_nothing_else() -> None:
    decoded = finish(decode_query("kinds=a,b%2Cc&text=d,e&kinds=f&%6Bursor=1+2&=x&g"))
    assert decoded == {"kinds": ["a", "b", "c", "f"], "text": ["d,e"], "kursor": ["1 2"], "g": [""]}


CURSOR = 1_725_519_626_134_432
NOT_CUT = [
    *("cursor=", "cursor=-10m", f"cursor={CURSOR}0", f"cursor={CURSOR // 10}", f"%63ursor={CURSOR}"),
    *(f"xcursor={CURSOR}", f"text=cursor={CURSOR}", f"cursor={CURSOR}&cursor={CURSOR}"),
]


@pytest.mark.parametrize(
    ("query", "rest", "cursor"),
    [
        ("", "", None),
        ("kinds=a", "kinds=a", None),
        (f"cursor={CURSOR}", "", CURSOR),
        (f"cursor={CURSOR}&kinds=a", "&kinds=a", CURSOR),
        (f"kinds=a&cursor={CURSOR}", "kinds=a&", CURSOR),
        (f"kinds=a&cursor={CURSOR}&wire=v1", "kinds=a&&wire=v1", CURSOR),
        *((query, query, None) for query in NOT_CUT),
    ],
)
def test_the_cursor_of_a_client_that_comes_back_is_cut(query: str, rest: str, cursor: int | None) -> None:
    assert cut_cursor(query) == (rest, cursor)
