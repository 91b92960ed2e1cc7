"""Conditions: lasting states of the server that an operator must know about.

A condition begins and ends. Each change is one log line. While it holds, it is 1 in the gauge
`jetstream_condition`, its reason is in `/health`, and the status there is `degraded`. A new condition needs a
name in `CONDITIONS`, and a part of the server that begins and ends it.

A condition of one upstream is apart from the same condition of another: `Conditions.of` gives each its own.
"""

from __future__ import annotations

from typing import Final

import structlog

from jetstream.logging_setup import Throttled

# What each condition means, for the log lines: `degraded: …` when it begins, `recovered from: …` when it
# ends. The names are the values of the label `condition` in `/metrics`, where all are present at all
# times.
CONDITIONS: Final = {
    "log_unwritable": "the log cannot be written",
    "disk_low": "the disk is nearly full",
    "clock": "the newest event is ahead of the clock, or the clock has stepped",
    "full": "there is no room for another subscriber",
    "wal": "the write-ahead log is over its bound",
    "damage": "the log has a damaged part",
    "writer_gone": "the process that writes the log is gone",
    "log_unreadable": "the log cannot be read",
    "process": "a process of the server is not ready",
    "not_leading": "this process would not lead if the one that writes the log were gone",
    "frames_not_taken": "frames come from upstream, and none of them is taken",
    "upstream_stuck": "an error of the server itself keeps ending the connection to an upstream",
    "messages_unverified": "most messages come from accounts whose key is not known",
    "messages_refused": "most messages are refused",
    "keys_unavailable": "no PLC directory answers, so signing keys that are not known yet cannot be had",
    "keys_not_followed": "the directory's export cannot be read, so signing keys are fetched one by one",
    "not_mirrored": "the Jetstream that is to be mirrored is not read: its positions do not fit the log",
    "mirror_gap": "events are missing: the Jetstream that is mirrored did not have them any more",
    "upstream_gone": "an upstream is gone, and others are connected",
    "upstreams_gone": "all upstreams are gone",
    "certificate": "the TLS certificate expires soon, or a new one cannot be used",
    "not_a_firehose": "upstream sends text, as a Jetstream does, and not the frames of a firehose",
}

# What the operator can do about each, for `/status.json` and the log.
HINTS: Final = {
    "log_unwritable": "free space on the disk of --data-dir, or lower --retention-bytes",
    "disk_low": "free space on the disk of --data-dir, or lower --retention-bytes, before it is full",
    "clock": "set the clock right; `jetstream log rebase-time` is for a log that is ahead of it",
    "full": "raise --max-subscribers and the limit of open files, or start another server",
    "wal": "end the other program that has the log's file open, such as a backup or the sqlite3 shell",
    "damage": "check the disk; `jetstream log check` says what is lost, `jetstream log repair` removes it",
    "writer_gone": "start a server with --role ingest on the same log; subscribers keep their place",
    "process": "wait some seconds; if it goes on, the log says why the process ends",
    "log_unreadable": "check the database, or the disk and that this user may write the log's directory",
    "not_leading": "do what the reason says; another process may lead meanwhile",
    "frames_not_taken": "look at jetstream_dropped for the reason; if it goes on, read another relay",
    "upstream_stuck": "report the traceback in the log; a higher --upstream-cursor passes the message over",
    "messages_unverified": "check that this machine reaches --plc-url, or run `jetstream keys import`",
    "messages_refused": "look at jetstream_verify for the reason; if it goes on, read another relay",
    "keys_unavailable": "check that this machine reaches --plc-url, or name more directories",
    "keys_not_followed": "check that this machine reaches the first --plc-url",
    "not_mirrored": "do what the reason says; docs/many-machines.md, Mirrors, has the rules",
    "mirror_gap": "nothing brings them back; give the upstream a longer --retention than a mirror is gone",
    "upstream_gone": "check that this machine reaches it; if it has moved, change --upstream",
    "upstreams_gone": "check the network of this machine; `jetstream simulate` makes an upstream to try with",
    "certificate": "renew it: the files of --tls-cert and --tls-key are read again by themselves",
    "not_a_firehose": "give --upstream a relay or a PDS, or put jetstream+ before the URL of a Jetstream",
}


class Conditions:
    """The conditions of one server.

    Each name is begun and ended by one part of the server only, so that none ends what another one has
    found. Nothing is stored: after a restart each part finds out again.
    """

    def __init__(self) -> None:
        # The conditions that hold now: a sentence for each, by `key` of its name in `CONDITIONS` and of the
        # upstream that it is of. Read it anywhere; only the methods below change it.
        self.reasons: dict[str, str] = {}
        # Throttled, because a peer may cause a condition to begin and end all the time.
        self._logger = Throttled(structlog.get_logger(__name__))

    @property
    def names(self) -> set[str]:
        """The names of the conditions that hold now, of whichever upstream."""
        return set(map(name_of, self.reasons))

    def of(self, upstream: str) -> UpstreamConditions:
        """Return the conditions of one upstream, by its name."""
        return UpstreamConditions(self, upstream)

    def set(self, name: str, reason: str | None, upstream: str = "") -> None:
        """Begin a condition, or end it if there is no reason for it.

        For a part that looks again and again, and has the present reason or None each time.
        """
        if reason is None:
            self.end(name, upstream)
        else:
            self.begin(name, reason, upstream)

    def begin(self, name: str, reason: str, upstream: str = "") -> None:
        """Begin a condition. `reason` is a sentence with the figures and with what the operator can do.

        The first call logs a warning. While the condition holds, further calls only replace the reason.
        """
        assert name in CONDITIONS
        if key(name, upstream) not in self.reasons:
            event = f"degraded: {CONDITIONS[name]}"
            self._logger.warning(event, condition=name, reason=reason, hint=HINTS[name])
        self.reasons[key(name, upstream)] = reason

    def end(self, name: str, upstream: str = "") -> None:
        """End a condition, and log that; does nothing if it does not hold."""
        if self.reasons.pop(key(name, upstream), None) is not None:
            event = f"recovered from: {CONDITIONS[name]}"
            self._logger.info(event, condition=name, **({"upstream": upstream} if upstream else {}))

    def end_all(self, upstream: str) -> None:
        """Forget all conditions of an upstream, which is not read any more. Nothing has recovered."""
        for name in CONDITIONS:
            self.reasons.pop(key(name, upstream), None)


class UpstreamConditions:
    """The conditions of one upstream, which are kept in `Conditions`: what it has in addition is a name."""

    def __init__(self, conditions: Conditions, upstream: str) -> None:
        # Where all of them are kept, and the name under which those of this upstream are.
        self._conditions = conditions
        self._upstream = upstream

    def begin(self, name: str, reason: str) -> None:
        """Begin a condition, as `Conditions.begin` does."""
        self._conditions.begin(name, reason, self._upstream)

    def end(self, name: str) -> None:
        """End a condition of this upstream. The same condition of another upstream goes on."""
        self._conditions.end(name, self._upstream)


def key(name: str, upstream: str = "") -> str:
    """Return the key of a condition in `Conditions.reasons`: `name`, or `name upstream`.

    Neither has a space in it: names of upstreams have letters, digits and `._:-` only.
    """
    return f"{name} {upstream}" if upstream else name


def name_of(key: str) -> str:
    """Return the name of a condition from its key."""
    return key.partition(" ")[0]
