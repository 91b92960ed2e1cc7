"""Syntax of the protocol's identifiers. Pure.

Source: the DID, NSID, record key and TID pages of the AT Protocol specification, with its public test
vectors. Each function takes text as it was received and tells whether it is valid. None trims, folds case or
corrects. Valid text needs no escape in JSON, which is why renderers insert it as it is.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

_LABEL: Final = r"[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"
_FIRST_LABEL: Final = r"[a-zA-Z](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"

# Regular expressions of whole identifiers, also for JSON Schema.
DID_PATTERN: Final = r"did:[a-z]+:[a-zA-Z0-9._:%-]*[a-zA-Z0-9._-]"
NSID_PATTERN: Final = rf"{_FIRST_LABEL}(?:\.{_LABEL})+\.[a-zA-Z][a-zA-Z0-9]{{0,62}}"
NSID_PREFIX_PATTERN: Final = rf"{_FIRST_LABEL}(?:\.{_LABEL})*\."
RECORD_KEY_PATTERN: Final = "[a-zA-Z0-9_~.:-]{1,512}"

_DID: Final = re.compile(DID_PATTERN).fullmatch
_NSID: Final = re.compile(NSID_PATTERN).fullmatch
_NSID_PREFIX: Final = re.compile(NSID_PREFIX_PATTERN).fullmatch
_RECORD_KEY: Final = re.compile(RECORD_KEY_PATTERN).fullmatch
_TID: Final = re.compile(r"[234567abcdefghij][234567abcdefghijklmnopqrstuvwxyz]{12}").fullmatch

# The upper limits of the specification, in characters: those of the DID page and of the NSID page.
DID_CHARS_MAX: Final = 2048
NSID_CHARS_MAX: Final = 317

# Nearly every event has a collection, and there are few: parse each once. Hostile ones only push out others.
_NSIDS_REMEMBERED: Final = 4096


def is_did(text: str) -> bool:
    """Tell whether `text` is a DID of any method. What the method says of the rest is not looked at."""
    return len(text) <= DID_CHARS_MAX and _DID(text) is not None


def is_nsid(text: str) -> bool:
    """Tell whether `text` is a full NSID, such as `app.bsky.feed.like`."""
    return len(text) <= NSID_CHARS_MAX and _NSID(text) is not None


def nsid_bytes(text: str) -> bytes | None:
    """Return a full NSID as bytes, the same object each time; None for what is no NSID."""
    return _nsid_bytes(text) if len(text) <= NSID_CHARS_MAX else None


@lru_cache(maxsize=_NSIDS_REMEMBERED)
def _nsid_bytes(text: str) -> bytes | None:
    """Do what `nsid_bytes` does, for a text that is not too long to be remembered."""
    return text.encode() if is_nsid(text) else None


def is_nsid_prefix(text: str) -> bool:
    """Tell whether `text` is one or more NSID segments with a dot after each, such as `app.bsky.`."""
    return len(text) <= NSID_CHARS_MAX and _NSID_PREFIX(text) is not None


def is_record_key(text: str) -> bool:
    """Tell whether `text` is a record key of any type: 1 to 512 characters, and neither `.` nor `..`."""
    return _RECORD_KEY(text) is not None and text != "." and text != ".."


def is_tid(text: str) -> bool:
    """Tell whether `text` is a TID: 13 characters in base32-sortable, with the top bit of the first 0."""
    return _TID(text) is not None
