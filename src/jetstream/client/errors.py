"""What ends a subscription.

    jetstream.errors.JetstreamError
    └── SubscriptionError       asking again would not help
        ├── Refused             the server will not serve it, such as with HTTP 400
        └── NotJetstream        what was received is no event

A connection that is lost or cannot be made is no error here: it is made again. A URL, collection or DID
that cannot be used raises `jetstream.errors.InvalidParameter` before anything is sent.
"""

from __future__ import annotations

from jetstream.errors import JetstreamError


class SubscriptionError(JetstreamError):
    """A subscription that cannot go on."""

    def __init__(self, url: str, problem: str) -> None:
        self.url = url
        self.problem = problem
        super().__init__(f"{url}: {problem}")


class Refused(SubscriptionError):
    """The server will not serve this subscription; `sentence` is its own word for why."""

    def __init__(self, url: str, status: int, sentence: str) -> None:
        self.status = status
        self.sentence = sentence
        super().__init__(url, f"refused, HTTP {status}: {sentence}")


class NotJetstream(SubscriptionError):
    """The server sends something else than events as JSON."""
