"""`Event`: one thing that happened in the network. Pure.

All values are text that is ready for JSON. Identifiers have been checked against their syntax, so none needs
an escape. Bodies are JSON already. Nothing downstream parses or checks them again.

    upstream ──▶ Event ──stamp──▶ a row of a Batch ──▶ log, subscribers

An event has no `time_us`: the stamp gives it one (`ingest`), and the batch keeps it. A mirror keeps the times
of its upstream.
"""

from __future__ import annotations

from typing import Final, NamedTuple

# Kinds: one letter each. They are stored in the log, so they never change.
CREATE: Final = b"c"
UPDATE: Final = b"u"
DELETE: Final = b"d"
IDENTITY: Final = b"i"
ACCOUNT: Final = b"a"
SYNC: Final = b"s"

# By kind, the name that clients and labels of metrics have for it.
KIND_NAMES: Final = {
    CREATE: "create",
    UPDATE: "update",
    DELETE: "delete",
    IDENTITY: "identity",
    ACCOUNT: "account",
    SYNC: "sync",
}

# What identifies an event, whatever its number upstream: the DID, collection, rkey and rev of a record
# operation, and the DID and the end of the body of any other event.
Key = tuple[bytes, bytes, bytes, bytes]
# How much of a body is part of a key: its `seq` and `time`, which are at the end, fit whatever they are. The
# blocks of a sync are before them, and may have 13,000 bytes.
KEY_BODY_BYTES: Final = 1_000


class Event(NamedTuple):
    """One record operation, identity change, account change or sync, not yet stamped.

    What an event does not have is empty: only record operations have a collection, rkey and rev. The rev of a
    sync is in its body.
    """

    kind: bytes  # one of `KIND_NAMES`
    did: bytes  # the repo
    collection: bytes  # an NSID
    rkey: bytes  # the record key
    rev: bytes  # of the commit, a TID
    cid: bytes  # of the record; creates and updates only
    body: bytes  # JSON: the record, or the identity, account or sync object; empty for deletes

    @property
    def key(self) -> Key:
        """What identifies this event: a commit changes a path once at most."""
        return (self.did, self.collection, self.rkey, self.rev or self.body[-KEY_BODY_BYTES:])
