"""The names of the methods below `/xrpc/`. Pure.

`server`, `access` and `openapi` need the names, and `xrpc` answers. What this server has of the lexicons
is in docs/api.md.
"""

from __future__ import annotations

from typing import Final

# The path of all methods of XRPC; the NSID of a method follows.
PREFIX: Final = "/xrpc/"
# The beginning of all NSIDs here.
_NSID: Final = "network.bsky.jetstream."
SUBSCRIBE_EVENTS: Final = f"{_NSID}subscribeEvents"
GET_ZSTD_DICTIONARY: Final = f"{_NSID}getZstdDictionary"
# Methods of an archive, by the one HTTP method of each.
ARCHIVE: Final = {
    f"{_NSID}listSegments": "GET",
    f"{_NSID}planSnapshot": "POST",
    f"{_NSID}getSegment": "GET",
    f"{_NSID}getBlock": "GET",
    f"{_NSID}importTimestamps": "POST",
    f"{_NSID}getImportStatus": "GET",
}
# Those that get an answer of their own, which may be that there is no archive.
METHODS: Final = frozenset({SUBSCRIBE_EVENTS, GET_ZSTD_DICTIONARY, *ARCHIVE})
