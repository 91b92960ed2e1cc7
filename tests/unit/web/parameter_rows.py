"""Every parameter of `/subscribe` with values that are good, values at the edges, and values that are bad."""

from __future__ import annotations

from typing import Any, Final

from jetstream.model.content import Content
from jetstream.model.filter import Filter

NOW: Final = 1_700_000_000_000_000  # 2023-11-14T22:13:20Z
POST, LIKE = "app.bsky.feed.post", "app.bsky.feed.like"
ANN, BOB = "did:plc:ann", "did:web:bob.example"
RECORD: Final = f"at://{ANN}/{POST}/3k"
MOST: Final = 10**20 - 1
DIDS: Final = [f"did:plc:{number}" for number in range(10_000)]
COLLECTIONS: Final = [f"com.example.c{number}" for number in range(100)]


def wanting(collections: Any = (), dids: Any = (), **more: Any) -> Filter:
    return Filter.parse(collections, dids, **more)


# By parameter: the part of the request that it decides, and what that is for each query.
GOOD: Final[dict[str, tuple[str, dict[str, object]]]] = {
    "wantedCollections": (
        "options.wanted",
        {
            "": wanting(),
            f"wantedCollections={POST}": wanting([POST]),
            f"wantedCollections={POST},{LIKE}": wanting([POST, LIKE]),
            f"wantedCollections={LIKE}%2C{POST}&wantedCollections={POST}": wanting([POST, LIKE]),
            "wantedCollections=app.*": wanting(["app.*"]),
            f"wantedCollections={','.join(COLLECTIONS)}": wanting(COLLECTIONS),
        },
    ),
    "wantedDids": (
        "options.wanted",
        {
            f"wantedDids={ANN}": wanting(dids=[ANN]),
            f"wantedDids={BOB},{ANN}&wantedDids={BOB}": wanting(dids=[ANN, BOB]),
            "wantedDids=did%3Aplc%3Aann": wanting(dids=[ANN]),
            f"wantedDids={','.join(DIDS)}": wanting(dids=DIDS),
        },
    ),
    "kinds": (
        "options.wanted",
        {
            "kinds=commit": wanting(kinds=["commit"]),
            "kinds=identity,account&kinds=sync": wanting(kinds=["identity", "account", "sync"]),
            "kinds=commit,identity,account,sync": wanting(),
        },
    ),
    "operations": (
        "options.wanted",
        {
            "operations=create": wanting(operations=["create"]),
            "operations=delete,create&kinds=commit": wanting(
                kinds=["commit"], operations=["create", "delete"]
            ),
            "operations=create,update,delete": wanting(),
        },
    ),
    "excludeCollections": (
        "options.wanted",
        {
            f"excludeCollections={POST}": wanting(exclude_collections=[POST]),
            f"excludeCollections={POST}&wantedCollections=app.*": wanting(
                ["app.*"], exclude_collections=[POST]
            ),
            f"excludeCollections={POST}&wantedCollections={POST},{LIKE}": wanting([LIKE]),
        },
    ),
    "excludeDids": (
        "options.wanted",
        {
            f"excludeDids={ANN}": wanting(exclude_dids=[ANN]),
            f"excludeDids={ANN},{BOB}": wanting(exclude_dids=[ANN, BOB]),
            f"excludeDids={ANN}&wantedDids={ANN},{BOB}": wanting(dids=[BOB]),
        },
    ),
    "filter": ("did_list", {"filter=": None}),  # tests/integration/test_did_lists.py has those that are kept
    "sample": (
        "options.wanted.sample",
        {"": 10_000, "sample=": 10_000, "sample=0.01": 1, "sample=12.5": 1_250, "sample=100": 10_000},
    ),
    "lang": (
        "options.content",
        {
            "": None,
            "lang=en": Content.parse(lang=["en"]),
            "lang=PT-br,en": Content.parse(lang=["en", "pt-BR"]),
        },
    ),
    "mentions": (
        "options.content",
        {
            f"mentions={ANN}": Content.parse(mentions=[ANN]),
            f"mentions={ANN},{BOB}": Content.parse(mentions=[BOB, ANN]),
        },
    ),
    "replyTo": ("options.content", {f"replyTo={ANN}&replyTo={BOB}": Content.parse(reply_to=[BOB, ANN])}),
    "subject": (
        "options.content",
        {
            f"subject={ANN}": Content.parse(subject=[ANN]),
            f"subject={RECORD},{BOB}": Content.parse(subject=[RECORD, BOB]),
        },
    ),
    "text": (
        "options.content",
        {
            "text=good+morning": Content.parse(text=["good morning"]),
            "text=one,two&text=Three": Content.parse(text=["one,two", "three"]),
            f"text={'x' * 256}": Content.parse(text=["x" * 256]),
        },
    ),
    "hasMedia": (
        "options.content",
        {
            "hasMedia": Content.parse(has_media=True),
            "hasMedia=true": Content.parse(has_media=True),
            "hasMedia=false": None,
        },
    ),
    "cursor": (
        "cursor",
        {
            "": None,
            "cursor=": None,
            "cursor=0": 0,
            "cursor=0001": 1,
            "cursor=1725519626134432": 1725519626134432,
            f"cursor={MOST}": MOST,
            "cursor=-10m": NOW - 600_000_000,
            "cursor=2023-11-14T22:13:20Z": NOW,
            "cursor=2023-11-14T22:13:20.000007Z": NOW + 7,
            "cursor=2023-11-15T00:13:20+02:00": NOW,  # an offset that is not percent-encoded
            "cursor=2023-11-15T00%3A13%3A20%2B02%3A00": NOW,
        },
    ),
    "until": (
        "until",
        {
            "": None,
            "until=": None,
            "cursor=5&until=5": 5,
            "cursor=0&until=-1h": NOW - 3_600_000_000,
            "cursor=-2h&until=-1h": NOW - 3_600_000_000,
            "cursor=-2h&until=2023-11-15T00:13:20+02:00": NOW,
            f"until={NOW}": NOW,
            f"until={NOW + 1}&requireHello=true": NOW + 1,
            f"cursor={MOST}&until={MOST}": MOST,
        },
    ),
    "limit": ("limit", {"": None, "limit=": None, "limit=1": 1, "limit=007": 7, f"limit={MOST}": MOST}),
    "heartbeat": (
        "heartbeat_s",
        {"": None, "heartbeat=": None, "heartbeat=1": 1, "heartbeat=045": 45, "heartbeat=300": 300},
    ),
    "maxMessageSizeBytes": (
        "options.message_bytes_max",
        {
            "": 0,
            "maxMessageSizeBytes=": 0,
            "maxMessageSizeBytes=0": 0,
            "maxMessageSizeBytes=1000000": 1_000_000,
            f"maxMessageSizeBytes={MOST}": MOST,
        },
    ),
    "maxSize": ("options.message_bytes_max", {"maxSize=": 0, "maxSize=7": 7, f"maxSize={MOST}": MOST}),
    "requireHello": (
        "require_hello",
        {"": False, "requireHello=": False, "requireHello=true": True, "requireHello=false": False},
    ),
    "compress": ("compress", {"": False, "compress=": False, "compress=true": True, "compress=false": False}),
    "zstdDictionary": (
        "dictionary_id",
        {"": None, "zstdDictionary=": None, "zstdDictionary=20261127": 20261127, "zstdDictionary=0": 0},
    ),
    "wire": (
        "wire",
        {
            "": None,
            "wire=": None,
            "wire=classic": "classic",
            "wire=v1": "v1",
            "wire=classic&compress=true&requireHello=true": "classic",
            "wire=&compress=false": "v1",
        },
    ),
}

_NO_COLLECTION: Final = (
    "is neither a collection, such as app.bsky.feed.like, nor a prefix, such as app.bsky.feed.*"
)
_NO_COMMITS: Final = "applies to commits, and kinds leaves them out: add commit to kinds, or leave this out"
_NO_DID: Final = "is not a DID, such as did:plc:…"
_NO_KIND: Final = "is none of commit, identity, account, sync"
_NO_TIME: Final = (
    "is not a time: give unix microseconds, RFC 3339 such as 2026-07-04T14:30:00Z, or an age such as -10m"
)
_TWICE: Final = "is given more than once: give it once"
_NO_PERCENTAGE: Final = "is not a percentage from 0.01 to 100 with at most two decimals"
_NO_SUBJECT: Final = "is neither a DID nor at://<did>/<collection>/<rkey>"
_NO_LIMIT: Final = "is not a number of events from 1 on"
_NO_HEARTBEAT: Final = "is not a whole number of seconds from 1 to 300"
_NO_FLAG: Final = "is neither true nor false"
_NO_ID: Final = "is not the ID of a dictionary, which is a number"
_NO_WIRE: Final = "is not a wire here: there are classic and v1"
_NO_LIST: Final = "is not known here, or not any more: POST the list to /filters"
# Values that are no number, whatever the number is of.
_NO_NUMBER: Final = ("-1", "+1", "1.5", "1e3", "0x1", "many", "1" * 21, "%D9%A1", "%EF%BC%91", "%201", "1%0A")
_NO_TIMES: Final = (
    *(
        "-1",
        "%2B1",
        "+1",
        "1+",
        "1%20",
        "1%0A",
        "1.0",
        "1e15",
        "0x10",
        "abc",
        "1" * 21,
        "%D9%A1",
        "%EF%BC%91",
    ),
    *("1_000", "%00", "null", "10m", "%2B10m", "2023-11-14T22:13:20", "2023-11-14T22:13:20%2B24:00"),
    "2023-02-30T00:00:00Z",
)
_NO_FLAGS: Final = ("True", "TRUE", "1", "0", "yes", "true%20", "zstd")

# By parameter: what is refused, and why.
BAD: Final[dict[str, dict[str, str]]] = {
    "wantedCollections": {
        **{
            f"wantedCollections={POST}&wantedCollections={value}": _NO_COLLECTION
            for value in ("", f"{POST},", f",{POST}", "*", "likes", "app.bsky", "app.bsky.graph.fo*")
        },
        **{
            f"wantedCollections={value}": _NO_COLLECTION
            for value in ("app.bsky.*.like", f"+{POST}", f"{POST}%20", f"{POST}%0A", f"{POST};{LIKE}")
        },
        f"wantedCollections={','.join([*COLLECTIONS, POST])}": "are too many: at most 100",
        f"wantedCollections={POST}&kinds=identity": _NO_COMMITS,
    },
    "wantedDids": {
        **{
            f"wantedDids={ANN}&wantedDids={value}": _NO_DID
            for value in ("", "did:plc", f"{ANN},", "*", f"+{ANN}", f"{ANN}%00", "alice.example")
        },
        f"wantedDids={','.join([*DIDS, ANN])}": "are too many: at most 10000",
    },
    "kinds": {f"kinds={value}": _NO_KIND for value in ("", "commit,", "Commit", "commits", "create")},
    "operations": {
        "operations=": "is none of create, update, delete",
        "operations=put": "is none of create, update, delete",
        "operations=create&kinds=account": _NO_COMMITS,
    },
    "excludeCollections": {
        "excludeCollections=": _NO_COLLECTION,
        "excludeCollections=likes": _NO_COLLECTION,
        f"excludeCollections={POST}&wantedCollections={LIKE}": (
            "excludes nothing: it is not in wantedCollections"
        ),
        f"excludeCollections=app.bsky.*&wantedCollections={LIKE}": (
            "leaves none of wantedCollections: for other events alone, use kinds=identity,account"
        ),
    },
    "excludeDids": {
        "excludeDids=": _NO_DID,
        "excludeDids=bob": _NO_DID,
        f"excludeDids={ANN}&wantedDids={BOB}": "excludes nothing: it is not in wantedDids",
        f"excludeDids={ANN}&wantedDids={ANN}": "leaves none of wantedDids",
    },
    "filter": {"filter=0123456789abcdef": _NO_LIST, "filter=a&filter=a": _TWICE},
    "sample": {
        **{f"sample={value}": _NO_PERCENTAGE for value in ("0", "0.00", "100.01", "101", "1.234", "-1", "x")},
        "sample=1&sample=2": _TWICE,
    },
    "lang": {
        **{f"lang={value}": "is not a language, such as en or pt-BR" for value in ("", "e1", "en-", "*")},
        "lang=en&operations=delete": (
            "applies to creates and updates, and kinds or operations leave them out"
        ),
    },
    "mentions": {f"mentions={value}": _NO_DID for value in ("", "bob.example", RECORD)},
    "replyTo": {f"replyTo={value}": _NO_DID for value in ("", "bob.example", f"at://{ANN}")},
    "subject": {
        f"subject={value}": _NO_SUBJECT
        for value in ("", "bob.example", f"at://{ANN}", f"at://{ANN}/{POST}", f"at://bob.example/{POST}/3k")
    },
    "text": {
        "text=": "has no word to look for",
        "text=%20": "has no word to look for",
        f"text={'x' * 257}": "is too long: at most 256 characters",
    },
    "hasMedia": {
        **{f"hasMedia={value}": _NO_FLAG for value in ("True", "1", "yes")},
        "hasMedia=true&hasMedia=true": _TWICE,
    },
    "cursor": {
        **{f"cursor={value}": _NO_TIME for value in _NO_TIMES},
        "cursor=1&cursor=2": _TWICE,
        "cursor=&cursor=": _TWICE,
    },
    "until": {
        "until=soon": _NO_TIME,
        "cursor=5&until=4": "is before the cursor, 5",
        "cursor=-1h&until=-2h": f"is before the cursor, {NOW - 3_600_000_000}",
        "until=-1s": "is before the present, where it starts: give a cursor",
        "until=0&requireHello=true": "is before the present, where it starts: give a cursor",
        "cursor=1&until=2&until=3": _TWICE,
    },
    "limit": {
        **{f"limit={value}": _NO_LIMIT for value in ("0", "000", *_NO_NUMBER)},
        "limit=1&limit=2": _TWICE,
    },
    "heartbeat": {
        **{f"heartbeat={value}": _NO_HEARTBEAT for value in ("0", "301", *_NO_NUMBER)},
        "heartbeat=1&heartbeat=1": _TWICE,
    },
    "maxMessageSizeBytes": {
        **{f"maxMessageSizeBytes={value}": "is not a number of bytes" for value in ("1k", *_NO_NUMBER)},
        "maxMessageSizeBytes=1&maxMessageSizeBytes=2": _TWICE,
    },
    "maxSize": {
        "maxSize=1k": "is not a number of bytes",
        "maxSize=1&maxSize=2": _TWICE,
        "maxSize=1&maxMessageSizeBytes=": "is given beside maxMessageSizeBytes, its other name",
    },
    "requireHello": {
        **{f"requireHello={value}": _NO_FLAG for value in _NO_FLAGS},
        "requireHello=true&requireHello=true": _TWICE,
    },
    "compress": {
        **{f"compress={value}": _NO_FLAG for value in _NO_FLAGS},
        "compress=false&compress=false": _TWICE,
    },
    "zstdDictionary": {
        **{f"zstdDictionary={value}": _NO_ID for value in _NO_NUMBER},
        "zstdDictionary=1&zstdDictionary=1": _TWICE,
    },
    "wire": {
        **{f"wire={value}": _NO_WIRE for value in ("v2", "V1", "Classic", "classic,v1")},
        "wire=v1&wire=v1": _TWICE,
    },
}
