"""What is said of the keys of an account. Pure."""

from __future__ import annotations

from typing import Final, NamedTuple

from jetstream.atproto.encoded_key import EncodedKey

# Why earlier keys may be missing: the account has announced a change since it was asked for a moment ago.
JUST_ASKED: Final = "just_asked"
# The same: an operation of that time cannot be read.
UNREADABLE: Final = "unreadable"


class Answer(NamedTuple):
    """The key of a DID, or why there is none."""

    key: EncodedKey | None  # None: there is none, or it is not known
    reason: str  # of `KEY_FAILURES`; empty: there is a key
    # The host of its PDS (`addresses.endpoint`), empty if it has none; None: it is not known.
    pds: str | None = None


class Candidates(NamedTuple):
    """The keys that were valid at a time, the newest first."""

    keys: list[EncodedKey]
    # Of `KEY_FAILURES`, `JUST_ASKED` or `UNREADABLE`; empty: these are all. Else a key may be missing, so a
    # signature that fits none of them may still be genuine.
    reason: str
