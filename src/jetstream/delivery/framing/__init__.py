"""Framings: how messages are put on a transport, kept alive and ended, one module per transport.

A framing takes the JSON of events and knows nothing of what it says. The frame of an event is the same bytes
for all readers of one encoding, so it is made once. A compressed form is made here, too: as a framing that
compresses each message before it frames it.

    websocket   frames of RFC 6455, text or binary
    zstd        the same, binary, each message compressed against a shared dictionary
    ndjson      lines
    sse         Server-Sent Events
    chunked     one of the last two as chunks of HTTP/1.1
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol


class Framing(Protocol):
    """One way to put messages on a transport."""

    @property
    def keep_alive(self) -> bytes:
        """What is sent to a subscriber now and then, so that a dead connection is noticed."""

    @property
    def costly(self) -> bool:
        """Whether a frame takes much longer to make than its message.

        Costly frames are made only of events that a reader wants. Others are made of whole runs, which is
        faster than to find out which are wanted.
        """

    def frames(self, messages: list[bytes], times: Iterable[int] | None = None) -> list[bytes]:
        """Return the bytes on the transport of each message.

        An empty message stands for an event that is not sent, and its frame is empty. `times` are the
        positions of the events, in the same order; None: the messages are no events.
        """

    def end(self, code: int, reason: str, cursor: int | None = None) -> bytes:
        """Return what tells the client that the server ends the connection, why, and where to resume."""
