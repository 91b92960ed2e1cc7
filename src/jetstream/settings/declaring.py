"""How a setting is declared: its flag, its variable, its help, and how its value is read.

Each function returns the `Parameter` of a field; the name of the field is the flag.

cyclopts gives a converter the tokens of a value, from the command line or from the variable, and prints
a ValueError with the name of the flag or variable before it. So a converter only says what is wrong.
Values may have passwords, and cyclopts would quote them: what has a URL is shown without.
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

# Of all variables. It is that of the Go server.
PREFIX: Final = "JETSTREAM_"


def unset_if_empty(_type: object, value: str, **_: object) -> list[str]:
    """Read a variable, unsplit. One that is set to nothing counts as unset: Compose files set those.

    cyclopts calls it with the type of the parameter and the value of the variable, and takes what it
    returns as the tokens of the flag.
    """
    return [value] if value else []


def _split_at_commas(_type: object, value: str, **_: object) -> list[str]:
    """Read a variable with several values, without the spaces around them.

    One that is set to nothing counts as unset.
    """
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
    """Declare a setting. `show` writes its default in `--help`, where the default is not what one types.

    `variable` is without its prefix, `text` is the help. `parse` returns the value of a text, or raises
    ValueError; None: cyclopts converts it by the type. `more` are parameters of `cyclopts.Parameter`. A
    boolean has no `--no-…`: all of them are off by default.
    """

    def convert(_type: Any, tokens: list[Token]) -> Any:
        """Return the value of the only token. Raises ValueError, which shows a URL without its secrets."""
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

    `parse` returns what all of them are together. Its ValueError names the value, because the message of
    one value would not say which it is.
    """

    def convert(_type: Any, tokens: list[Token]) -> Any:
        """Return the value of all tokens. Raises ValueError, which names the flag or variable in any case."""
        try:
            return parse([token.value for token in tokens])
        except ValueError as error:
            # Of one value, cyclopts names the flag itself.
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


# The same for the types that several settings have. `n_tokens` and `accepts_keys` tell cyclopts that a
# named tuple is one value, and not a flag for each of its fields.
address = partial(setting, parse=parse_address, show=str, n_tokens=1, accepts_keys=False, metavar="ADDRESS")
duration = partial(setting, parse=parse_duration, show=show_duration, metavar="DURATION")
duration_or_none = partial(setting, parse=or_none(parse_duration), show=show_duration, metavar="DURATION")
size = partial(setting, parse=parse_size, show=show_size, metavar="SIZE")
