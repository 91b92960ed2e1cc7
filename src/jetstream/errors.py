"""Every error that this package raises on purpose.

    JetstreamError
    ├── SettingError            a flag, variable or file cannot be used: exit code 2
    ├── SubscriptionError       of the client library: Refused, NotJetstream (`client.errors`)
    ├── DictionaryError         the public zstd dictionary cannot be fetched or stored
    ├── KeyCacheError           the cache of signing keys cannot be used
    │   ├── KeyCacheFull        the disk has no room for it
    │   └── KeyCacheReplaced    its file was damaged, and a new one has taken its place
    ├── ExportError             a PLC directory's export cannot be read
    ├── NotStored               a batch, by an error of the server itself
    ├── WorkerError             messages cannot be verified: no process can be started that does
    ├── InvalidParameter        a client's parameter cannot be used: HTTP 400, or close code 1008
    └── LogError                the event log
        ├── LogLocked           another process writes to this directory
        ├── LogCorrupt          the file does not hold what was written to it
        │   └── LogFormat       another version of this program has written it
        ├── LogUnwritable       the disk or the database refuses a write; reading goes on
        ├── LogUnreachable      the database of the log does not answer
        └── Fenced              another process writes this log by now

Errors carry fields, from which they build their text. Bad data from upstream raises none of them: it is
dropped and counted (`jetstream_dropped`).
"""

from __future__ import annotations

from pathlib import Path


class JetstreamError(Exception):
    """Base of every error raised on purpose by this package."""


class SettingError(JetstreamError):
    """A setting cannot be used: `name` is its flag or variable, `problem` says what is wrong.

    `value` is quoted in the text, so one that may have a password is given without (`urls.shown`). The
    command line ends with exit code 2.
    """

    def __init__(self, name: str, value: object, problem: str) -> None:
        self.name = name
        self.value = value
        self.problem = problem
        super().__init__(f"{name}: {value!r} {problem}")


class InvalidParameter(JetstreamError):
    """A client's parameter cannot be used.

    `name` is the parameter as the client calls it. The text is sent to the client: it has nothing of the
    server's own. A dialect makes a response or a close of it.
    """

    # Characters of the value in the text of the error: a client may send 1 MiB.
    VALUE_CHARS_MAX = 100

    def __init__(self, name: str, value: str, problem: str) -> None:
        self.name = name
        self.value = value
        self.problem = problem
        shown = value if len(value) <= self.VALUE_CHARS_MAX else value[: self.VALUE_CHARS_MAX] + "…"
        super().__init__(f"{name}: {shown!r} {problem}")


class DictionaryError(JetstreamError):
    """The public zstd dictionary cannot be fetched, or not be stored.

    A server goes on without it: clients that ask for it are refused until it can be fetched.
    """


class KeyCacheError(JetstreamError):
    """The cache of signing keys cannot be used: `path` is its file, `problem` says what is wrong."""

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class KeyCacheFull(KeyCacheError):
    """The disk has no room for what was to be written. What was stored before stays."""


class KeyCacheReplaced(KeyCacheError):
    """The file of the cache was damaged: it was moved aside, and an empty one has taken its place."""


class ExportError(JetstreamError):
    """A PLC directory's export cannot be read: it does not answer, or with something else."""


class WorkerError(JetstreamError):
    """Messages cannot be verified: no process can be started that does."""


class NotStored(JetstreamError):
    """A batch was not stored, or nobody knows how much of it was: an error of the server itself."""


class LogError(JetstreamError):
    """The event log cannot do what was asked: `problem` says what is wrong.

    `path` is its file, or the address of its database without the password.
    """

    def __init__(self, path: Path | str, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class LogLocked(LogError):
    """Another process has this log open for writing. There is one writer at a time."""


class LogCorrupt(LogError):
    """The log's file does not hold what was written to it: a checksum, or the structure, is wrong."""


class LogFormat(LogCorrupt):
    """The log has a format that this version does not read. Nothing is wrong with it."""


class LogUnwritable(LogError):
    """The log cannot be written now: the disk is full, read-only or failing.

    The writer holds what it has, and tries again (`ingest`). Reading goes on.
    """


class LogUnreachable(LogError):
    """The database of the log does not answer now. What was asked may be asked again."""


class Fenced(LogError):
    """Another process writes this log by now: nothing more is stored in this term."""
