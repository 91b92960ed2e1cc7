"""A query string: decoded, in steps, and the values of its parameters by their types. Pure.

A value that cannot be used raises `InvalidParameter` with the name, the value and a sentence.

    a=1&a=2,3&b=x%20y ──▶ {"a": ["1", "2", "3"], "b": ["x y"]}      where `a` is a list

A parameter without a value, or with an empty one, counts as absent, except for `hasMedia`. A parameter
that is no list may be given once only.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from functools import partial
from typing import Final
from urllib.parse import unquote_plus

from jetstream.errors import InvalidParameter
from jetstream.model.syntax import DID_CHARS_MAX
from jetstream.model.timestamp import parse_time
from jetstream.steps import Steps
from jetstream.web.filter_parameters import COMMA_LISTS, Given

# Each with its own name or after a comma: as many as an update has entries (`parameters.COMMAS_MAX`).
PARAMETERS_MAX: Final = 24_000
PARAMETERS_PER_STEP: Final = 250  # decoded between two yields: 0.7 ms
NAME_CHARS_MAX: Final = 64  # decoded of a name: no parameter's is nearly as long
# Decoded of a value, percent-encoded. The rest of a longer one does not matter: it is refused all the same.
_VALUE_CHARS_MAX: Final = 3 * (DID_CHARS_MAX + 1)
_COMMA: Final = re.compile(",|%2[cC]")
# A number. Twenty digits are more than 64 bits; Python's integers have no limit.
_NUMBER: Final = re.compile(r"[0-9]{1,20}", re.ASCII).fullmatch

# The cursor of a client that comes back, as it was given out. The rest of its query is what it was before.
_CURSOR: Final = re.compile(r"(?<![^&])cursor=([0-9]{16})(?![^&])").split

# The decoded values of a query string by name, in the order in which they came. Each item of a list is a
# value, whether it came by repetition or after a comma.
Query = dict[str, list[str]]


def decode_query(text: str, lists: Collection[str] = COMMA_LISTS) -> Steps[Query]:
    """Decode a query string, in steps. Raises InvalidParameter for more than `PARAMETERS_MAX` values.

    Commas, percent-encoded or not, separate the items of `lists`, and nothing else. `+` means a space.

    A name without `=` has an empty value. Bytes that are no UTF-8 become U+FFFD. Names are cut to
    `NAME_CHARS_MAX` characters, and values to a length that none may have.
    """
    if text.count("&") + text.count(",") + text.count("%2C") + text.count("%2c") > PARAMETERS_MAX:
        raise InvalidParameter("query", text, f"has more than {PARAMETERS_MAX} parameters: send fewer")
    query: Query = {}
    count = 0
    for pair in text.split("&"):
        name, _, value = pair.partition("=")
        name = unquote_plus(name[:NAME_CHARS_MAX])
        for item in _COMMA.split(value) if name in lists else (value,):
            query.setdefault(name, []).append(unquote_plus(item[:_VALUE_CHARS_MAX]))
            count += 1
            if count % PARAMETERS_PER_STEP == 0:
                yield
    # `&&`, or an empty query.
    query.pop("", None)
    return query


def cut_cursor(text: str) -> tuple[str, int | None]:
    """Return a short query string without its cursor, and the cursor.

    None, and all of the text, if there is not exactly one, or if it is not a number of 16 digits.

    The rest may be the same as that of many other clients, so that it is found in a cache.
    """
    parts = _CURSOR(text)
    return (parts[0] + parts[2], int(parts[1])) if len(parts) == 3 else (text, None)


def given_in(query: Query) -> Given:
    """Return how the values of a query are read.

    `given.number` gives the text of a parameter that may be given once.
    """
    return Given(lambda name: query.get(name, []), partial(_switch, query), partial(once_in, query))


def once_in(query: Query, name: str) -> str:
    """Return the only value of a parameter; an empty one when it is absent.

    Raises InvalidParameter if it is given more than once.
    """
    values = query.get(name, [])
    if len(values) > 1:
        raise InvalidParameter(name, ", ".join(values), "is given more than once: give it once")
    return values[0] if values else ""


def number_in(query: Query, name: str, problem: str) -> int | None:
    """Return a parameter that is a number; None when it is absent or empty. Raises InvalidParameter.

    It has 1 to 20 digits and no sign. `problem` is the end of the sentence of an error.
    """
    value = once_in(query, name)
    if value and not _NUMBER(value):
        raise InvalidParameter(name, value, problem)
    return int(value) if value else None


def time_in(query: Query, name: str, now_us: int) -> int | None:
    """Return a parameter that is a time; None when it is absent or empty. Raises InvalidParameter.

    The result is in unix microseconds; `now_us` is what ages count from. `model.timestamp` has the forms
    of a time.
    """
    value = once_in(query, name)
    try:
        return parse_time(value, now_us) if value else None
    except ValueError as error:
        raise InvalidParameter(name, value, str(error)) from error


def flag_in(query: Query, name: str) -> bool:
    """Return whether a parameter is `true`. Raises InvalidParameter for anything but `true` and `false`.

    An empty value counts as absent: it is false.
    """
    value = once_in(query, name)
    if value not in {"", "true", "false"}:
        raise InvalidParameter(name, value, "is neither true nor false")
    return value == "true"


def _switch(query: Query, name: str) -> bool:
    """Return whether a parameter is there: `true`, or without a value. Raises InvalidParameter."""
    return query.get(name) == [""] or flag_in(query, name)
