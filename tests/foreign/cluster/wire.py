"""What passes between a client and PostgreSQL: messages, and which of them commit an append. Pure.

Source: PostgreSQL's documentation, "Frontend/Backend Protocol", version 3.0.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

_SSL, _GSS = 80_877_103, 80_877_104  # requests that are answered with one byte
ASKS: Final = b"?"  # the kind of such a request
FIRST: Final = b""  # the kind of the first message
NOTIFICATION: Final = b"A"
READY: Final = b"Z"
_IDLE: Final = b"I"


class Messages:
    """Splits what one side sends into messages. Those of a client begin without a kind."""

    def __init__(self, *, of_client: bool) -> None:
        self._buffer = bytearray()
        self._has_kinds = not of_client
        # Answers of one byte that are to come.
        self._bytes_due = 0

    def expect_byte(self) -> None:
        """Take the next byte as an answer by itself."""
        self._bytes_due += 1

    def feed(self, data: bytes) -> Iterator[tuple[bytes, bytes]]:
        """Return the messages that are complete: the kind, and all bytes."""
        self._buffer += data
        while (found := self._next()) is not None:
            kind, size = found
            message = bytes(self._buffer[:size])
            del self._buffer[:size]
            yield kind, message

    def _next(self) -> tuple[bytes, int] | None:
        """Return the kind and the size of the next message; None: it is not complete."""
        buffer = self._buffer
        if self._bytes_due and buffer:
            self._bytes_due -= 1
            return b"1", 1
        head = 5 if self._has_kinds else 4
        if self._bytes_due or len(buffer) < head:
            return None
        size = int.from_bytes(buffer[head - 4 : head], "big") + head - 4
        return (self._kind(), size) if len(buffer) >= size else None

    def _kind(self) -> bytes:
        """Return the kind of a message that is complete."""
        if self._has_kinds:
            return bytes(self._buffer[:1])
        if int.from_bytes(self._buffer[4:8], "big") in (_SSL, _GSS):
            return ASKS
        self._has_kinds = True
        return FIRST


class Session:
    """One connection, as it is seen from between."""

    def __init__(self) -> None:
        # Prepared statements that append to the tail.
        self._appends: set[bytes] = set()
        # Whether one of them was given its values since the last Sync.
        self._bound = False
        # Whether there is a transaction, by the server's last word, and one of them was executed in it.
        self._in_transaction = self._has_appended = False

    def sent(self, kind: bytes, message: bytes) -> bool:
        """Take a message of the client; return whether it commits an append."""
        match kind:
            case b"P":
                name, statement, *_ = message[5:].split(b"\0", 2)
                (self._appends.add if _is_append(statement) else self._appends.discard)(name)
            case b"B":
                self._bound |= message[5:].split(b"\0", 2)[1] in self._appends
            case b"S":
                bound, self._bound = self._bound, False
                self._has_appended |= bound
                return bound and not self._in_transaction
            case b"Q":
                return self._has_appended and message[5:].upper().startswith(b"COMMIT")
        return False

    def received(self, kind: bytes, message: bytes) -> None:
        """Take a message of the server."""
        if kind == READY:
            self._in_transaction = message[5:6] != _IDLE
            self._has_appended &= self._in_transaction


def _is_append(statement: bytes) -> bool:
    return b"INSERT INTO tail_" in statement and b"RETURNING" in statement
