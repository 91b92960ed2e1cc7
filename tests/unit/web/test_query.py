from __future__ import annotations

import pytest

from jetstream.errors import InvalidParameter
from jetstream.steps import finish
from jetstream.web.query import PARAMETERS_MAX, decode_query


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
