"""How a setting is declared: its flag, its variable, its help, and how its value is read.

Each function returns the `Parameter` of a field; the name of the field is the flag.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from cyclopts import Parameter, Token

from jetstream.settings.values import (
    or_none,
    parse_address,
    parse_duration,
    parse_log_url,
    parse_size,
    parse_web_url,
    show_duration,
    show_size,
)
from jetstream.urls import shown

PREFIX: Final = "JETSTREAM_"


def unset_if_empty(_type: object, value: str, **_: object) -> list[str]:
    """Read a variable, unsplit. One that is set to nothing counts as unset: Compose files set those."""
    return [value] if value else []


def _split_at_commas(_type: object, value: str, **_: object) -> list[str]:
    """Read a variable with several values. One that is set to nothing counts as unset."""
    return [part.strip() for part in value.split(",")] if value else []


def first_at_comma(_type: object, value: str, **_: object) -> list[str]:
    """Read the first value of a variable with several. One that is set to nothing counts as unset."""
    return _split_at_commas(_type, value)[:1]


def setting(
    variable: str,
    text: str,
    parse: Any = None,
    show: Callable[[Any], str] | None = None,
    **more: Any,
) -> Parameter:
    """Declare a setting. `show` writes its default in `--help`, where the default is not what one types."""

    def convert(_type: Any, tokens: list[Token]) -> Any:
        value = tokens[0].value
        try:
            return parse(value)
        except ValueError as error:
            value = shown(value) if parse in (parse_web_url, parse_log_url) else value
            raise ValueError(f"{value!r} {error}") from None  # the cause may quote a password

    if show is not None:
        more["show_default"] = lambda value: "none" if value is None else show(value)
    return Parameter(
        env_var=PREFIX + variable,
        env_var_split=unset_if_empty,
        help=text,
        converter=convert if parse is not None else None,
        negative=(),
        **more,
    )


def several(
    variable: str,
    text: str,
    parse: Callable[[Sequence[str]], Any],
    **more: Any,
) -> Parameter:
    """Declare a setting that may have several values: the flag is repeated, the variable has commas.

    The error of `parse` names the value.
    """

    def convert(_type: Any, tokens: list[Token]) -> Any:
        try:
            return parse([token.value for token in tokens])
        except ValueError as error:
            if len(tokens) == 1:
                raise
            # Where there is one value, cyclopts names its flag or variable.
            raise ValueError(f"Invalid value for {tokens[0].keyword}: {error}") from None

    return Parameter(
        env_var=PREFIX + variable,
        env_var_split=_split_at_commas,
        help=text,
        converter=convert,
        n_tokens=1,
        accepts_keys=False,
        negative=(),
        **more,
    )


address = partial(setting, parse=parse_address, show=str, n_tokens=1, accepts_keys=False, metavar="ADDRESS")
duration = partial(setting, parse=parse_duration, show=show_duration, metavar="DURATION")
duration_or_none = partial(setting, parse=or_none(parse_duration), show=show_duration, metavar="DURATION")
size = partial(setting, parse=parse_size, show=show_size, metavar="SIZE")
