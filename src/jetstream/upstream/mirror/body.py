"""The fields that bodies of identities, accounts and syncs may have, from any Jetstream. Pure.

The rules are those for messages of a relay (`extract`, `envelope`).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from jetstream.model.event import ACCOUNT, IDENTITY, SYNC
from jetstream.model.syntax import is_tid
from jetstream.upstream.envelope import SYNC_BLOCKS_BYTES_MAX
from jetstream.upstream.extract import TEXT_BYTES_MAX

# What must be there.
REQUIRED: Final[Mapping[bytes, frozenset[str]]] = {
    IDENTITY: frozenset({"did"}),
    ACCOUNT: frozenset({"did", "active"}),
    SYNC: frozenset({"did", "rev", "blocks"}),
}
_TYPES: Final[Mapping[str, type]] = {"did": str, "active": bool, "seq": int}
# Characters of base64, padded.
_BLOCKS_CHARS_MAX: Final = (SYNC_BLOCKS_BYTES_MAX + 2) // 3 * 4


def problem_of(name: str, value: object) -> str:
    """Return the reason for which a body cannot have this field; empty if it can, or if it is not known."""
    bytes_max = TEXT_BYTES_MAX.get(name)
    if bytes_max is not None:
        return _of_text(value, bytes_max)
    if name == "blocks":
        return _of_blocks(value)
    if name == "rev":
        return "" if type(value) is str and is_tid(value) else "rev"
    return "" if type(value) is _TYPES.get(name, type(value)) else "malformed"


def _of_text(value: object, bytes_max: int) -> str:
    if type(value) is not str:
        return "malformed"
    return "field_size" if len(value) > bytes_max or len(value.encode()) > bytes_max else ""


def _of_blocks(value: object) -> str:
    """Judge what should be `{"$bytes": …}`."""
    if type(value) is not dict or len(value) != 1 or type(text := value.get("$bytes")) is not str:
        return "malformed"
    return "sync_size" if len(text) > _BLOCKS_CHARS_MAX else ""
