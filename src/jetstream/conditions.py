"""Conditions: lasting states of the server that an operator must know about.

A condition begins and ends. Each change is one log line. While it holds, it is 1 in the gauge
`jetstream_condition`, its reason is in `/health`, and the status there is `degraded`. A new condition needs a
name in `CONDITIONS`, and a part of the server that begins and ends it.
"""

from __future__ import annotations

from typing import Final

import structlog

from jetstream.logging_setup import Throttled

# What each condition means, for the log lines.
CONDITIONS: Final = {
    "log_unwritable": "the log cannot be written",
    "clock": "the newest event is ahead of the clock, or the clock has stepped",
    "wal": "the write-ahead log is over its bound",
    "damage": "the log has a damaged part",
    "frames_not_taken": "frames come from upstream, and none of them is taken",
    "messages_unverified": "most messages come from accounts whose key is not known",
    "messages_refused": "most messages are refused",
    "keys_unavailable": "no PLC directory answers, so signing keys that are not known yet cannot be had",
    "not_a_firehose": "upstream sends text, as a Jetstream does, and not the frames of a firehose",
}


class Conditions:
    """The conditions of one server."""

    def __init__(self) -> None:
        # The conditions that hold now: a sentence for each, by its name in `CONDITIONS`. Read it anywhere;
        # only the methods below change it.
        self.reasons: dict[str, str] = {}
        # Throttled, because a peer may cause a condition to begin and end all the time.
        self._logger = Throttled(structlog.get_logger(__name__))

    def set(self, name: str, reason: str | None) -> None:
        """Begin a condition, or end it if there is no reason for it."""
        if reason is None:
            self.end(name)
        else:
            self.begin(name, reason)

    def begin(self, name: str, reason: str) -> None:
        """Begin a condition. `reason` is a sentence with the figures and with what the operator can do.

        The first call logs a warning. While the condition holds, further calls only replace the reason.
        """
        assert name in CONDITIONS
        if name not in self.reasons:
            event = f"degraded: {CONDITIONS[name]}"
            self._logger.warning(event, condition=name, reason=reason)
        self.reasons[name] = reason

    def end(self, name: str) -> None:
        """End a condition, and log that; does nothing if it does not hold."""
        if self.reasons.pop(name, None) is not None:
            event = f"recovered: {CONDITIONS[name]}"
            self._logger.info(event, condition=name)
