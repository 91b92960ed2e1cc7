"""Lasting states that an operator must know of: each is one log line, a gauge, and a reason in `/health`.

A condition is named in `CONDITIONS`, begins once and ends once. While one holds, `/health` says `degraded`.
"""

from __future__ import annotations

from typing import Final

import structlog

from jetstream.logging_setup import Throttled

CONDITIONS: Final = {
    "log_unwritable": "the log cannot be written",
    "clock": "the newest event is ahead of the clock, or the clock has stepped",
    "wal": "the write-ahead log is over its bound",
    "damage": "the log has a damaged block",
    "frames_not_taken": "frames come from upstream, and none of them is taken",
    "not_a_firehose": "upstream sends text, as a Jetstream does, and not the frames of a firehose",
}


class Conditions:
    """The conditions that hold now.

    `reasons` has a sentence for each of them, by its name in `CONDITIONS`; `begin` and `end` change it.
    """

    def __init__(self) -> None:
        self.reasons: dict[str, str] = {}
        self._log = Throttled(structlog.get_logger(__name__))  # a peer may cause one to come and go

    def set(self, name: str, reason: str | None) -> None:
        """Begin a condition, or end it if there is no reason for it."""
        if reason is None:
            self.end(name)
        else:
            self.begin(name, reason)

    def begin(self, name: str, reason: str) -> None:
        """Note that a condition holds; `reason` is a sentence with its figures and what to do.

        The first call of many logs a warning; later ones only renew the sentence.
        """
        assert name in CONDITIONS
        if name not in self.reasons:
            event = f"degraded: {CONDITIONS[name]}"
            self._log.warning(event, condition=name, reason=reason)
        self.reasons[name] = reason

    def end(self, name: str) -> None:
        """Note that a condition no longer holds."""
        if self.reasons.pop(name, None) is not None:
            event = f"recovered: {CONDITIONS[name]}"
            self._log.info(event, condition=name)
