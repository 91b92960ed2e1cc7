"""Every setting of the server.

    command line ─┐
    JETSTREAM_*  ─┼─▶ cyclopts ─▶ `parse_…` of `values` ─▶ Settings ─▶ every part of the server
    default      ─┘

Each is declared once, as a field of a part of `Settings`: its flag, environment variable, help text,
conversion and default follow from that, and a test compares `docs/settings.md` with it. A variable has
the same name as that of the Go server, where it has one for the same purpose.

    declaring   how a field becomes a flag and a variable
    values      durations, sizes, addresses and so on, as people write them
    upstream    what is read
    log         where it is stored, and for how long
    web         what is served
    access      who may connect

A value is checked here as far as it can be by itself. What depends on the machine, such as whether a
file can be read, is found by the part that uses it, which raises SettingError. `Settings` is frozen:
what changes while the server runs is in files that settings name.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Literal, NamedTuple, get_type_hints

from cyclopts import Parameter

from jetstream.errors import SettingError
from jetstream.roles import UNUSED, reads_upstream
from jetstream.settings.access import AccessSettings
from jetstream.settings.declaring import PREFIX, first_at_comma, setting, unset_if_empty
from jetstream.settings.log import LogSettings
from jetstream.settings.upstream import NOT_FOR_MIRRORS, UpstreamSettings
from jetstream.settings.values import PLC_URL, Address, Network, parse_duration, parse_networks, parse_web_url
from jetstream.settings.web import DICTIONARY_URL, WebSettings

__all__ = [
    "DICTIONARY_URL",
    "PLC_URL",
    "PLC_URL_VARIABLE",
    "UNUSED_VARIABLES",
    "Address",
    "Network",
    "Setting",
    "Settings",
    "first_at_comma",
    "parse_duration",
    "parse_networks",
    "parse_web_url",
    "refuse_file",
    "require_data_dir",
    "settings",
    "similar_variable",
    "unset_if_empty",
    "unused_variables",
]

# Also read by `jetstream keys import`, which takes the first directory of several.
PLC_URL_VARIABLE: Final = f"{PREFIX}PLC_URL"
# The ratio of `difflib` from which on a name may be meant: LISTENADDR is similar to LISTEN_ADDR, PORT to
# nothing.
_SIMILAR: Final = 0.75

# Variables of the Go server that have no meaning here: accepted, and logged once as unused.
UNUSED_VARIABLES: Final = frozenset(
    {
        "JETSTREAM_CLICKHOUSE_DSN",
        "JETSTREAM_LIVENESS_TTL",
        "JETSTREAM_MAX_QUEUE_SIZE",
        "JETSTREAM_MAX_SUB_RATE",
        "JETSTREAM_NUM_SHARDS",
        "JETSTREAM_PEBBLE_DIR",
        "JETSTREAM_WORKER_COUNT",
    }
)


# The fields of the last base come first, so the bases are in the reverse order of `--help`. With `*`,
# flags have no prefix.
@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Settings(AccessSettings, WebSettings, LogSettings, UpstreamSettings):
    """The settings of `jetstream serve`. Durations are in seconds, sizes in bytes."""

    # Lines of a lower level are not written.
    log_level: Annotated[
        Literal["debug", "info", "warning", "error"], setting("LOG_LEVEL", "Minimum log level.")
    ] = "info"
    # Of a server of several processes, the terminal is that of the supervisor.
    log_format: Annotated[
        Literal["auto", "text", "json"], setting("LOG_FORMAT", "auto: text on a terminal, JSON elsewhere.")
    ] = "auto"

    @property
    def unused(self) -> list[str]:
        """The flags of settings that differ from their default and have no effect in this role.

        An edge of a mirror asks the upstream how far it is.
        """
        names = UNUSED[self.role]
        if not reads_upstream(self.role):
            names |= {field.name for field in fields(UpstreamSettings)}
        return self._given(names - {"upstream"} if self.mirrored else names)

    @property
    def unused_by_mirror(self) -> list[str]:
        """The flags of settings that differ from their default, and are not for what a Jetstream sends.

        The log names them once when a mirror starts. They are ignored, and no error: a cluster of both
        kinds may have one set of variables.
        """
        return self._given(NOT_FOR_MIRRORS)

    def _given(self, names: Collection[str]) -> list[str]:
        """Return the flags of those of these fields that differ from their default.

        A value that is given and equal to the default does not count: they cannot be told apart here.
        """
        given = [each for each in fields(self) if each.name in names]
        return [_flag(each.name) for each in given if getattr(self, each.name) != each.default]

    @property
    def has_files(self) -> bool:
        """Whether there are files that a SIGHUP reads again."""
        return any((self.upstream_file, self.tls_cert, self.subscriber_tokens, self.operator_tokens))


class Setting(NamedTuple):
    """One setting as an operator sees it. For tests, and for hints about misspelled names."""

    # With its two hyphens, such as `--retention`.
    flag: str
    # With its prefix, such as `JETSTREAM_EVENT_TTL`.
    variable: str
    # As Python has it, in seconds or bytes; None is `none`.
    default: object
    # The sentence of `--help`.
    text: str
    # The same flag as the Go servers spell it, with its hyphens.
    other_flags: tuple[str, ...] = ()


@cache
def settings() -> Sequence[Setting]:
    """Return every setting, in the order of `--help`. It is computed once."""
    hints = get_type_hints(Settings, include_extras=True)
    found = []
    for field in fields(Settings):
        (parameter,) = hints[field.name].__metadata__
        flag = _flag(field.name)
        others = tuple(parameter.alias or ())
        found.append(Setting(flag, parameter.env_var[0], field.default, parameter.help, others))
    return tuple(found)


def unused_variables(environment: Mapping[str, str]) -> tuple[list[str], list[str]]:
    """Return the `JETSTREAM_*` variables without effect: those of the Go server, and unknown ones.

    Both lists are sorted. Unknown ones are warned of, not refused: an orchestrator may set some of its
    own.
    """
    known = {setting.variable for setting in settings()}
    names = sorted(name for name in environment if name.startswith(PREFIX) and name not in known)
    unused = [name for name in names if name in UNUSED_VARIABLES]
    return unused, [name for name in names if name not in UNUSED_VARIABLES]


def similar_variable(name: str) -> str | None:
    """Return the variable that an unknown one is probably meant to be; None: there is none like it.

    `JETSTREAM_RETENTION`, after the flag, is meant to be `JETSTREAM_EVENT_TTL`.
    """
    meant = {_of_flag(flag): each.variable for each in settings() for flag in (each.flag, *each.other_flags)}
    meant |= {each.variable.removeprefix(PREFIX): each.variable for each in settings()}
    # A flag and its variable may have different names: both are candidates, and both mean the variable.
    from difflib import get_close_matches  # noqa: PLC0415 - for a typo only

    close = get_close_matches(name.removeprefix(PREFIX), meant, 1, cutoff=_SIMILAR)
    return meant[close[0]] if close else None


def _flag(field: str) -> str:
    """Return the flag of a field of `Settings`, as cyclopts makes it."""
    return "--" + field.replace("_", "-")


def _of_flag(flag: str) -> str:
    """Return a flag as the part of a variable after the prefix: `--event-ttl` as `EVENT_TTL`."""
    return flag.removeprefix("--").replace("-", "_").upper()


def refuse_file(directory: Path, flag: str = "--data-dir") -> None:
    """Raise SettingError if a directory exists and is something else."""
    with suppress(OSError):  # a path that cannot be looked at is refused where it is used
        if directory.exists() and not directory.is_dir():
            raise SettingError(flag, str(directory), "is not a directory")


def require_data_dir(directory: Path, flag: str = "--data-dir") -> None:
    """Create a directory if needed, with those above it. Raises SettingError if that fails."""
    refuse_file(directory, flag)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingError(flag, str(directory), f"cannot be created: {error.strerror}") from error
