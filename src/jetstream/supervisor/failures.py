"""The error that a process has ended with, as it tells the supervisor: text and exit code stay the same.

    child: JetstreamError ─▶ `fields_of` ─▶ "failed" over the channel ─▶ `failure_of` ─▶ supervisor raises it

A SettingError stays one: the command line prints it with the name of the flag, and its exit status is
that of a bad setting. Other errors become a ProcessFailed with the same text.
"""

from __future__ import annotations

from typing import Any

from jetstream.errors import JetstreamError, SettingError


class ProcessFailed(JetstreamError):
    """A process of the server has ended and is not replaced.

    The supervisor raises it itself, too, for a process that has ended again and again or cannot be
    started.
    """


def failure_of(fields: Any) -> JetstreamError:
    """Return the error that a process has ended with, by what it said of it.

    `fields` are those of the message `failed`: `name`, `value` and `problem` of a setting, or `text`.
    """
    if "name" in fields:
        return SettingError(fields["name"], fields["value"], fields["problem"])
    return ProcessFailed(fields["text"])


def fields_of(error: BaseException) -> dict[str, Any]:
    """Return what a process says of the error that ends it.

    A value that JSON does not have is told as text. An error that is no JetstreamError is named with
    its class: its text alone may say little.
    """
    if isinstance(error, SettingError):
        value = error.value if isinstance(error.value, str | int | None) else str(error.value)
        return {"name": error.name, "value": value, "problem": error.problem}
    if isinstance(error, JetstreamError):
        return {"text": str(error)}
    return {"text": f"{type(error).__name__}: {error}"}
