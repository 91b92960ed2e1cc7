"""What every parameter means, in a sentence, and which values it takes. Pure.

The page `/` and `/openapi.json` are made from these tables. The rules themselves are in `parameters` and
`subscribe_events_parameters`: a test compares the names and the values.

To add a parameter: an entry here, in `SUBSCRIBE` or among those that `SUBSCRIBE_EVENTS` has of its own.

    SUBSCRIBE           `/subscribe` and `/v1/subscribe`
    EVENT_STREAM        `/events`
    EXPLAIN             `/explain`
    GAPS                `/gaps`
    SUBSCRIBE_EVENTS    `network.bsky.jetstream.subscribeEvents`

Schemas say what a program may send. A server may take more: it also reads lists separated by commas.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NamedTuple

from jetstream.delivery.renderers import RENDERERS
from jetstream.model.content import PHRASE_CHARS_MAX
from jetstream.model.filter import DIDS_MAX, KINDS, OPERATIONS
from jetstream.model.lists import NAMES_MAX
from jetstream.model.syntax import (
    DID_CHARS_MAX,
    DID_PATTERN,
    NSID_CHARS_MAX,
    NSID_PATTERN,
    NSID_PREFIX_PATTERN,
    RECORD_KEY_PATTERN,
)
from jetstream.web.parameters import HEARTBEAT_S, WIRES
from jetstream.web.subscribe_events_parameters import KINDS_MAX

# JSON Schema as JSON. Schemas are shared, and are never changed.
Schema = Mapping[str, Any]

_MAX: Final = 10**20 - 1  # numbers have at most twenty digits
# The largest numbers of the lexicon's types.
_INT64_MAX: Final = 2**63 - 1
_UINT32_MAX: Final = 2**32 - 1


class Parameter(NamedTuple):
    """A parameter of the query. `schema` is JSON Schema, of the draft of OpenAPI 3.1."""

    # As it stands in the query.
    name: str
    # A part of a sentence, without a full stop: a description, and a row of the page.
    meaning: str
    # Of one value, or of a list, whose items are repeated parameters.
    schema: Schema
    # A value for documentation and for tests; None: there is no example.
    example: object = None


def _list(items: Schema, items_max: int = NAMES_MAX) -> Schema:
    """Return the schema of a list of up to so many items."""
    return {"type": "array", "items": items, "maxItems": items_max}


def _integer(minimum: int, maximum: int = _MAX) -> Schema:
    """Return the schema of a whole number in a range, both ends included."""
    return {"type": "integer", "minimum": minimum, "maximum": maximum}


def _text(pattern: str, chars_max: int) -> Schema:
    """Return the schema of a text that matches a pattern as a whole."""
    return {"type": "string", "pattern": f"^(?:{pattern})$", "maxLength": chars_max}


def _optional(pattern: str, chars_max: int) -> Schema:
    """Return the schema of a text that may be empty, which means the same as its absence."""
    return {"type": "string", "pattern": f"^(?:{pattern})?$", "maxLength": chars_max}


# A collection, or a prefix: the beginning of one, a dot and an asterisk.
_COLLECTION: Final = _text(rf"{NSID_PATTERN}|{NSID_PREFIX_PATTERN}\*", NSID_CHARS_MAX + 1)
# Of two names or more.
_LONG_COLLECTION: Final = {**_COLLECTION, "maxLength": NSID_CHARS_MAX, "not": {"pattern": r"^[^.]+\.\*$"}}
DID: Final = _text(DID_PATTERN, DID_CHARS_MAX)
# A record: its repo, its collection and its key, which is neither `.` nor `..`.
_AT_URI: Final = rf"at://{DID_PATTERN}/{NSID_PATTERN}/(?!\.{{1,2}}$){RECORD_KEY_PATTERN}"
# A tag of BCP 47: up to eight parts of up to eight characters.
_LANGUAGE: Final = _text("[a-zA-Z]{1,8}(?:-[a-zA-Z0-9]{1,8}){0,7}", 80)
# Not only white space.
_PHRASE: Final[Schema] = {"type": "string", "pattern": r"\S", "maxLength": PHRASE_CHARS_MAX}
# Above 0 and up to 100, with at most two digits behind the point.
_PERCENT: Final = _optional(r"(?![0.]+$)(?:100(?:\.0{1,2})?|0?[0-9]{1,2}(?:\.[0-9]{1,2})?)", 6)
_KIND: Final[Schema] = {"enum": [*KINDS]}
_OPERATION: Final[Schema] = {"enum": [*OPERATIONS]}
_FLAG: Final[Schema] = {"type": "boolean"}
# A time as people write it (`model.timestamp`): it has three forms.
_TIME: Final = _optional(
    r"[0-9]{1,20}"  # unix microseconds
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}[Tt ][0-9]{2}:[0-9]{2}:[0-9]{2}(?:\.[0-9]{1,9})?"
    r"(?:[Zz]|[-+ ][0-9]{2}:[0-9]{2})"  # RFC 3339
    r"|-(?:[0-9]{1,9}(?:\.[0-9]{1,6})?(?:ms|[smhdw]))+",  # an age
    64,
)

# What all endpoints have: the filter but for collections, DIDs and kinds, and where to end.
_SHARED: Final = (
    Parameter("operations", "create, update, delete", _list(_OPERATION), ["create"]),
    Parameter(
        "filter",
        "the ID of a list of up to 100,000 DIDs, which POST /filters has returned",
        _optional("[0-9a-f]{32}", 32),
    ),
    Parameter(
        "excludeCollections",
        "collections or prefixes to leave out",
        _list(_COLLECTION),
        ["app.bsky.graph.*"],
    ),
    Parameter("excludeDids", "repos to leave out", _list(DID, DIDS_MAX)),
    Parameter("sample", "a percentage of all accounts, the same ones each time", _PERCENT, "1"),
    Parameter("lang", "records in these languages, such as en", _list(_LANGUAGE), ["en"]),
    Parameter("mentions", "records that mention these accounts", _list(DID)),
    Parameter("replyTo", "replies to posts of these accounts", _list(DID)),
    Parameter(
        "subject",
        "records about these accounts or at-uris, such as likes and follows",
        _list({"anyOf": [DID, _text(_AT_URI, 3_000)]}),
    ),
    Parameter("text", "records with these words or phrases in their text", _list(_PHRASE), ["good morning"]),
    Parameter("hasMedia", "true: records with images or a video", _FLAG),
    Parameter("until", "where to end, written as a time; the server closes with 1000", _TIME),
    Parameter("limit", "how many events to send; then the server closes with 1000", _integer(1), 10),
    Parameter(
        "heartbeat",
        "1 to 300: after so many seconds without an event, say how far the stream has come",
        _integer(HEARTBEAT_S[0], HEARTBEAT_S[-1]),
    ),
)

# Of `/subscribe` and `/v1/subscribe`.
SUBSCRIBE: Final = (
    Parameter(
        "wantedCollections",
        "collections or prefixes, such as app.bsky.feed.post or app.bsky.graph.*",
        _list(_COLLECTION),
        ["app.bsky.*"],
    ),
    Parameter("wantedDids", "repos, such as did:plc:…", _list(DID, DIDS_MAX)),
    Parameter("kinds", "commit, identity, account", _list(_KIND), ["commit"]),
    Parameter(
        "cursor",
        "where to begin: unix microseconds, 2026-07-04T14:30:00Z or -10m; without it, now",
        _TIME,
        "-10m",
    ),
    *_SHARED,
    Parameter("maxMessageSizeBytes", "skip longer events", _integer(0)),
    Parameter("maxSize", "the name of maxMessageSizeBytes in the Go client", _integer(0)),
    Parameter("requireHello", "true: send nothing until an options_update", _FLAG),
    Parameter("compress", "true: each message is a zstd frame against the public dictionary", _FLAG),
    Parameter(
        "zstdDictionary",
        "the ID of a dictionary: each message is a zstd frame against it",
        _integer(0),
    ),
    Parameter(
        "wire",
        "classic or v1; without it, a request with a parameter that came with v1 gets v1",
        {"enum": [*WIRES]},
    ),
)

# Of `/events`, which has those that need no WebSocket, and one wire more.
_WEBSOCKET_ONLY: Final = ("requireHello", "compress", "zstdDictionary")
EVENT_STREAM: Final = (
    *(each for each in SUBSCRIBE if each.name not in (*_WEBSOCKET_ONLY, "wire")),
    Parameter("wire", "classic, v1 or v2; without it, v1", {"enum": [*RENDERERS]}, "v1"),
)

# Of `/explain`, which has those of both.
EXPLAIN: Final = (
    *(each for each in SUBSCRIBE if each.name != "wire"),
    Parameter("wire", "classic, v1 or v2", {"enum": [*RENDERERS]}),
)

# Of `/gaps`.
GAPS: Final = (
    Parameter("since", "found at this time or later, written as cursor; without it, all", _TIME, "-1h"),
)

# Of `network.bsky.jetstream.subscribeEvents`.
SUBSCRIBE_EVENTS: Final = (
    Parameter("kinds", "commit, identity, account, sync", _list(_KIND, KINDS_MAX), ["commit"]),
    Parameter(
        "collections",
        "collections, or prefixes of two names or more, such as app.bsky.*",
        _list(_LONG_COLLECTION),
        ["app.bsky.*"],
    ),
    Parameter("dids", "repos, such as did:plc:…", _list(DID, DIDS_MAX)),
    Parameter(
        "cursor",
        "where to begin: the seq of an event, or 0 for the oldest; without it, now",
        _integer(0, _INT64_MAX),
    ),
    *_SHARED,
    Parameter("maxMessageSizeBytes", "skip longer events", _integer(0, _UINT32_MAX)),
    Parameter(
        "zstdDictionary",
        "the ID of a dictionary: each message is a zstd frame against it",
        _integer(1, _UINT32_MAX),
    ),
)
