"""Who may use a route: a request has a bearer token, or comes from this machine.

    subscribers    the routes of events: a token of --subscriber-tokens or of --operator-tokens, if there is the former
    operators      figures: a token of --operator-tokens, if there is that file
    local          what changes something: the same, or without that file only programs of this machine
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Final, NamedTuple, Protocol

import structlog

from jetstream.errors import SettingError
from jetstream.web.http import Request, Response
from jetstream.web.tokens import FILE_BYTES_MAX, Tokens, parse_tokens, presented

logger = structlog.get_logger(__name__)


class TokenFile:
    """The tokens of a file. `flag` is the setting that names it. Raises SettingError if it cannot be used."""

    def __init__(self, flag: str, path: Path) -> None:
        self._flag = flag
        self._path = path
        # Replaced by `reload`.
        self.tokens = self._read()

    def reload(self) -> None:
        """Read the file again. One that cannot be used changes nothing, and is logged."""
        try:
            self.tokens = self._read()
        except SettingError as error:
            logger.error("tokens: the file cannot be used; all stay as they were", error=str(error))  # noqa: TRY400 - the operator's mistake has no traceback
        else:
            logger.info("tokens: the file was read again", setting=self._flag, tokens=len(self.tokens.known))

    def _read(self) -> Tokens:
        try:
            with self._path.open("rb") as file:
                data = file.read(FILE_BYTES_MAX + 1)
            if len(data) > FILE_BYTES_MAX:
                raise SettingError(self._flag, str(self._path), f"has more than {FILE_BYTES_MAX} bytes")
            return parse_tokens(data.decode())
        except OSError as error:
            raise SettingError(self._flag, str(self._path), f"cannot be read: {error.strerror}") from error
        except UnicodeDecodeError:
            raise SettingError(self._flag, str(self._path), "is not UTF-8") from None
        except ValueError as error:
            raise SettingError(self._flag, str(self._path), str(error)) from None
