"""What a server sends: an event, or how far it is. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import orjson

if TYPE_CHECKING:
    from jetstream.client import classic, v1


class Message(dict[str, Any]):
    """One event: the decoded JSON as a dict.

    `v1` and `classic` are the same dict for type checkers, with the types of a wire.
    """

    __slots__ = ("raw",)

    raw: bytes
    """The JSON as it was received, after decompression."""

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        """Parse a message. Raises ValueError or TypeError if it is not a JSON object with a `time_us`."""
        message = cls(orjson.loads(raw))
        if type(message.get("time_us")) is not int:
            raise ValueError("no time_us")
        message.raw = raw
        return message

    @property
    def time_us(self) -> int:
        """The time of the event in unix microseconds: its position on this server."""
        time_us: int = self["time_us"]
        return time_us

    @property
    def v1(self) -> v1.Event:
        """This event with the types of the v1 wire. Raises TypeError if it is in another."""
        if "kind" not in self:
            raise TypeError("this event is not in the v1 wire: subscribe with wire='v1'")
        return cast("v1.Event", self)

    @property
    def classic(self) -> classic.Event:
        """This event with the types of the classic wire. Raises TypeError if it is in another."""
        if "type" not in self:
            raise TypeError("this event is not in the classic wire: subscribe with wire='classic'")
        return cast("classic.Event", self)


@dataclass(frozen=True, slots=True)
class Mark:
    """How far the server is, where no event says so."""

    cursor: int | None  # everything below it has been sent, or is not wanted; None: no news of that
    live: bool  # whether playback has caught up with the stream


def parse(raw: bytes) -> Message | Mark:
    """Parse an event, or a heartbeat of either wire, whose time counts as that of an event.

    Raises ValueError or TypeError for everything else.
    """
    message = Message.parse(raw)
    if message.get("kind") == "heartbeat" or message.get("type") == "hb":
        return Mark(message.time_us + 1, message.get("live") is True)
    return message
