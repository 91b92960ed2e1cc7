"""The names of the methods below `/xrpc/`. Pure."""

from __future__ import annotations

from typing import Final

PREFIX: Final = "/xrpc/"
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
METHODS: Final = frozenset({SUBSCRIBE_EVENTS, GET_ZSTD_DICTIONARY, *ARCHIVE})
