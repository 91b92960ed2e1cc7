"""What the network did: one `Event`.

Everything here is text that is ready to be put into JSON: identifiers have been checked against
their syntax (so none needs an escape), bodies are JSON already. Nothing downstream parses them again.
"""

from __future__ import annotations

from typing import Final, NamedTuple

CREATE: Final = b"c"
UPDATE: Final = b"u"
DELETE: Final = b"d"
IDENTITY: Final = b"i"
ACCOUNT: Final = b"a"

KIND_NAMES: Final = {
    CREATE: "create",
    UPDATE: "update",
    DELETE: "delete",
    IDENTITY: "identity",
    ACCOUNT: "account",
}

# What an event is known by, whatever its number: the DID, collection, rkey and rev of a commit's, and in the
# place of the rev the body of an identity or account event.
Key = tuple[bytes, bytes, bytes, bytes]


class Event(NamedTuple):
    """One record operation, identity change or account change, not yet stamped.

    `collection`, `rkey` and `rev` are empty for identity and account events, `cid` for everything but
    creates and updates. `body` is JSON: the record, or the identity or account object; empty for deletes.
    """

    kind: bytes
    did: bytes
    collection: bytes
    rkey: bytes
    rev: bytes
    cid: bytes
    body: bytes

    @property
    def key(self) -> Key:
        """What tells this event from every other: no commit makes two of one path."""
        return (self.did, self.collection, self.rkey, self.rev or self.body)
