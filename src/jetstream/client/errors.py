"""The errors that end a subscription.

    jetstream.errors.JetstreamError
    ├── StoreError              a file with a cursor cannot be used
    └── SubscriptionError       trying again would not help
        ├── Refused             the server refused it permanently, for example with HTTP 400
        └── NotJetstream        the server sent a message that is not an event

Not an error: a connection that is lost or cannot be made. It is made again. A URL, collection, DID or cursor
that is invalid raises `jetstream.errors.InvalidParameter` before a connection is made.
"""

from __future__ import annotations

from pathlib import Path

from jetstream.errors import JetstreamError


class StoreError(JetstreamError):
    """A file with a cursor cannot be read or written, or has something else in it.

    `path` is the file; `problem` says what is wrong.
    """

    def __init__(self, path: Path, problem: str) -> None:
        self.path = path
        self.problem = problem
        super().__init__(f"{path}: {problem}")


class SubscriptionError(JetstreamError):
    """A subscription has failed permanently.

    `url` is the URL without password and query; `problem` says why.
    """

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"{url}: {problem}")


class Refused(SubscriptionError):
    """The server refused the subscription.

    `status` is the HTTP status; `message` is the body of the response in one line, or the reason of the
    status.
    """

    def __init__(self, url: str, status: int, message: str) -> None:
        self.status = status
        self.message = message
        super().__init__(url, f"refused, HTTP {status}: {message}")


class NotJetstream(SubscriptionError):
    """The server sent a message that is not a Jetstream event as JSON."""
