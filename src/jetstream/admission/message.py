"""A message on its way from its source to the log. Pure.

    made in `input_queue` ─▶ finding set by its examination ─▶ judged ─┬─▶ stored or dropped: it is over
                                                                 ▲     │
                                                                 └─────┴ waits (`suspended`, `holding`)

A message may wait several times, each time for something else. Its flags say what it has waited for, so that
it does not wait for the same twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from jetstream.admission.examiners.examination import Finding
from jetstream.upstream.envelope import Envelope

# The types that have a rev.
IN_REPOSITORIES: Final = frozenset({"commit", "sync"})
_OBJECT_BYTES: Final = 64  # of a value, beside its text


@dataclass(slots=True, eq=False)
class Message:
    """One accepted message, from its arrival until it is stored or dropped."""

    # The name of the source that has brought it, and its number there. Several messages may have one number.
    source: str
    seq: int
    # Its fields, as `upstream.envelope` reads them. It has no `drop`.
    envelope: Envelope
    # The repository or account that it is of.
    did: str
    # When it arrived here, in monotonic seconds.
    since: float
    # The host and port of its source, if that is a PDS; None: it is a relay.
    host: str | None = None
    # What it says by itself. None: it is no commit or #sync, or it must be examined yet.
    finding: Finding | None = None
    # Whether its key was asked for, and whether the earlier keys of its account were, after its signature did
    # not fit. It waits once for each.
    asked: bool = False
    retried: bool = False
    # Whether the PDS of its account was asked for.
    is_placed: bool = False
    # Whether it has waited for too long, or had no room: it is judged with what is known. And whether it was
    # the first of these.
    is_let_go: bool = False
    is_late: bool = False
    # When it was held first (`holding`), in monotonic seconds; 0: it was not. And whether that is over.
    held_since: float = 0.0
    is_overdue: bool = False
    # The sources that have sent an equal one while it was held.
    also_from: tuple[str, ...] = ()
    # Whether its number is in the cursor as one that is not stored.
    is_marked: bool = False

    @property
    def rev(self) -> str:
        """The rev of a commit or #sync."""
        rev: str = self.envelope.fields["rev"]
        return rev

    @property
    def begins(self) -> bool:
        """Whether it is a commit that names none before it: the first of a repository."""
        fields = self.envelope.fields
        return self.envelope.type == "commit" and not fields.get("since") and not fields.get("prevData")

    @property
    def size(self) -> int:
        """About how many bytes of memory it takes. Computed at each call: its fields may be nested."""
        return bytes_of(self.envelope.fields)


def did_of(envelope: Envelope) -> str:
    """Return the DID of a message without a `drop`."""
    did: str = envelope.fields["repo" if envelope.type == "commit" else "did"]
    return did


def is_deletion(body: bytes) -> bool:
    """Return whether an account event, by its body, says that the account was deleted."""
    fields: dict[str, Any] = orjson.loads(body)
    return fields["active"] is False and fields.get("status") == "deleted"


def bytes_of(fields: Mapping[str, Any]) -> int:
    """Return about how many bytes of memory the fields of a message take, whatever is in them.

    Does not recurse, so values may be nested to any depth. Each value counts with `_OBJECT_BYTES` and its
    text.
    """
    size = 0
    rest: list[Any] = [fields]
    while rest:
        value = rest.pop()
        size += _OBJECT_BYTES
        if isinstance(value, (str, bytes)):
            size += len(value)
        elif isinstance(value, Mapping):
            rest += value.keys()
            rest += value.values()
        elif isinstance(value, list):
            rest += value
    return size
