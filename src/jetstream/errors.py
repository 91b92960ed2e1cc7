"""Every error this package raises on purpose.

    JetstreamError
    ├── SettingError            a flag, variable or file that cannot be used; exits 2
    ├── SubscriptionError       the client's: Refused, NotJetstream (`client.errors`)
    ├── InvalidParameter        a client asked for something that cannot be had; 400 or close 1008
    └── LogError                the event log
        ├── LogLocked           another process writes this directory
        ├── LogCorrupt          the file does not hold what we wrote
        └── LogUnwritable       the disk refuses; reading goes on

What is wrong with upstream's data is no error here: it is dropped and counted, see `firehose.decode`.
"""

from __future__ import annotations

from pathlib import Path


class JetstreamError(Exception):
    """Base of every error raised on purpose by this package."""


class SettingError(JetstreamError):
    """A setting cannot be used."""

    def __init__(self, name: str, value: object, problem: str) -> None:
        self.name = name
        self.value = value
        self.problem = problem
        super().__init__(f"{name}: {value!r} {problem}")


class InvalidParameter(JetstreamError):
    """A client's parameter cannot be used."""

    VALUE_CHARS_MAX = 100  # a value of 1 MiB is not repeated to whoever sent it

    def __init__(self, name: str, value: str, problem: str) -> None:
        self.name = name
        self.value = value
        self.problem = problem
        shown = value if len(value) <= self.VALUE_CHARS_MAX else value[: self.VALUE_CHARS_MAX] + "…"
        super().__init__(f"{name}: {shown!r} {problem}")


class LogError(JetstreamError):
    """The event log cannot do what was asked."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class LogLocked(LogError):
    """Another process is writing this log."""


class LogCorrupt(LogError):
    """The log's file does not hold what was written to it."""


class LogUnwritable(LogError):
    """The log cannot be written now: the disk is full, read-only or failing."""
