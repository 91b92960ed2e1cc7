"""Messages as lines: newline-delimited JSON, in the body of an HTTP response."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final


class NdjsonFraming:
    """One line per event."""

    media_type: Final = "application/x-ndjson"
    start: Final = b""  # what goes before all events
    # White space before the JSON of the next line. An empty line would be a record to many programs.
    keep_alive: Final = b" "
    costly: Final = False

    def frames(
        self,
        messages: list[bytes],
        times: Iterable[int] | None = None,  # noqa: ARG002 - part of the protocol
    ) -> list[bytes]:
        """Return each message with a newline."""
        return [message + b"\n" if message else b"" for message in messages]

    def end(self, code: int, reason: str, cursor: int | None = None) -> bytes:  # noqa: ARG002 - as above
        """Return nothing: each line is an event."""
        return b""


NDJSON: Final = NdjsonFraming()
