"""The error that a process has ended with, as it tells the supervisor: text and exit code stay the same."""

from __future__ import annotations

from typing import Any

from jetstream.errors import JetstreamError, SettingError


class ProcessFailed(JetstreamError):
    """A process of the server has ended and is not replaced."""


def failure_of(fields: Any) -> JetstreamError:
    """Return the error that a process has ended with, by what it said of it."""
    if "name" in fields:
        return SettingError(fields["name"], fields["value"], fields["problem"])
    return ProcessFailed(fields["text"])


def fields_of(error: BaseException) -> dict[str, Any]:
    """Return what a process says of the error that ends it."""
    if isinstance(error, SettingError):
        value = error.value if isinstance(error.value, str | int | None) else str(error.value)
        return {"name": error.name, "value": value, "problem": error.problem}
    if isinstance(error, JetstreamError):
        return {"text": str(error)}
    return {"text": f"{type(error).__name__}: {error}"}
