"""The v2 wire: `network.bsky.jetstream.subscribeEvents` (`docs/api.md`).

Each message is an envelope with a payload. In both, `$type` is first, and the other keys are sorted:

    {"$type":"message","payload":{"$type":"…#commit","cid":…,"collection":…,"did":…,"operation":…,"record":…,
        "rev":…,"rkey":…,"seq":…,"time":…}}

`seq` is our `time_us`, and `time` is the same as a date. Records are as on the other wires.

An `#info` is no event, and has no `seq`: `info` makes it. A heartbeat is an `#info`, too.
"""

from __future__ import annotations

from bisect import bisect_left
from datetime import UTC, datetime
from functools import lru_cache
from typing import Final

import orjson

from jetstream.delivery.renderers.template import NO_VALUE, TemplateRenderer
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE

_SECOND_US: Final = 1_000_000
_SECOND_MAX: Final = 253_402_300_799  # the last of the year 9999: dates end there
_HEARTBEAT_S: Final = 45  # two official clients reconnect after 60 s without a message
_SECONDS_REMEMBERED: Final = 256  # as text; neighbouring events share one

# The keys are sorted, so the body of an event has one of three places: `account` is before `did`, `identity`
# and `record` after it, and `sync` after `seq`. A template takes the body at one place, and writes nothing
# for the others.
_COLUMNS: Final = (
    *("cids", "collections", "bodies", "dids", "bodies", "revs", "rkeys", "times", "bodies"),
    "times",  # as dates
)
_START: Final = b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#'
_TIME: Final = b'"time":"%b"}}'
_NO_PATH: Final = 2 * NO_VALUE  # neither rev nor rkey


def _write(operation: bytes) -> bytes:
    """Return the template of a create or an update."""
    start = _START + b'commit","cid":"%b","collection":"%b",' + NO_VALUE + b'"did":"%b","operation":"'
    return start + operation + b'","record":%b,"rev":"%b","rkey":"%b","seq":%d,' + NO_VALUE + _TIME


_DELETE: Final = (
    _START + b'commit",' + NO_VALUE + b'"collection":"%b",' + NO_VALUE + b'"did":"%b","operation":"delete",'
    b"" + NO_VALUE + b'"rev":"%b","rkey":"%b","seq":%d,' + NO_VALUE + _TIME
)
_IDENTITY: Final = (
    _START + b'identity",' + 3 * NO_VALUE + b'"did":"%b","identity":%b,' + _NO_PATH
    + b'"seq":%d,' + NO_VALUE + _TIME
)  # fmt: skip
_ACCOUNT: Final = (
    _START + b'account",' + 2 * NO_VALUE + b'"account":%b,"did":"%b",' + NO_VALUE + _NO_PATH
    + b'"seq":%d,' + NO_VALUE + _TIME
)  # fmt: skip
_SYNC: Final = (
    _START + b'sync",' + 3 * NO_VALUE + b'"did":"%b",' + NO_VALUE + _NO_PATH
    + b'"seq":%d,"sync":%b,' + _TIME
)  # fmt: skip


def dates(times: list[int]) -> list[bytes]:
    """Return rising times in unix microseconds as dates in UTC, always with six digits of a second."""
    made: list[bytes] = []
    while len(made) < len(times):
        first = len(made)
        second = times[first] // _SECOND_US
        start = second * _SECOND_US
        date = _date(second)
        stop = bisect_left(times, start + _SECOND_US, first)
        made += [date % (time - start) for time in times[first:stop]]
    return made


@lru_cache(_SECONDS_REMEMBERED)
def _date(second: int) -> bytes:
    """Return the date of a second, as a template that takes the microseconds."""
    return (
        datetime.fromtimestamp(min(second, _SECOND_MAX), UTC).strftime("%Y-%m-%dT%H:%M:%S.").encode()
        + b"%06dZ"
    )


def info(name: str, message: str) -> bytes:
    """Return the message that tells a client something about its stream. It moves no cursor."""
    payload = {"$type": "network.bsky.jetstream.subscribeEvents#info", "message": message, "name": name}
    return orjson.dumps({"$type": "message", "payload": payload})


V2: Final = TemplateRenderer(
    "v2",
    {
        CREATE: _write(b"create"),
        UPDATE: _write(b"update"),
        DELETE: _DELETE,
        IDENTITY: _IDENTITY,
        ACCOUNT: _ACCOUNT,
        SYNC: _SYNC,
    },
    _COLUMNS,
    dates,
    heartbeat=info("Heartbeat", "every event up to seq %d has been considered; live: %b"),
    heartbeat_s=_HEARTBEAT_S,
)
