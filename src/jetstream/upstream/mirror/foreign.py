"""A message of any other Jetstream, in the v1 or v2 wire, to an event with the cursor of that server. Pure.

The cursor is `time_us` in the v1 wire and `seq` in the v2 wire. It is of that server only: the event gets a
position here. Its record is written again as we write records: sorted keys, whole floats as integers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, Final

import orjson

from jetstream.atproto.cbor import DEPTH_MAX, depth
from jetstream.model.event import CREATE, DELETE, UPDATE, Event
from jetstream.model.syntax import is_did
from jetstream.upstream.drops import Dropped
from jetstream.upstream.extract import MESSAGES
from jetstream.upstream.mirror.body import REQUIRED, problem_of
from jetstream.upstream.mirror.bounded_json import ITEMS_MAX, parse_exactly, parse_object
from jetstream.upstream.mirror.message import CID_PATTERN, MirrorMessage, Notice, parse_notice, require_path
from jetstream.upstream.record import EXACT_FACTOR, JSON_BYTES_MAX, exact_json, whole

_V2: Final = "network.bsky.jetstream.subscribeEvents#"
_OPERATIONS: Final = {"create": CREATE, "update": UPDATE, "delete": DELETE}
_CURSOR_MAX: Final = 10**18
# What `Event(…)` calls, which is a function in Python and takes twice as long.
_new: Final = tuple.__new__
_CID: Final = re.compile(CID_PATTERN).fullmatch
# What integers just below 64 bits are as well when they were read as floats.
_LOWEST: Final = b"%d" % -(2**63)


def parse_foreign(message: bytes) -> MirrorMessage | Notice:
    """Read a message. Raises Dropped."""
    value = parse_object(message)
    payload = value.get("payload")
    if type(payload) is not dict:
        return _event(message, value, value.get("kind"), value.get("time_us"), value.get("commit"))
    kind = payload.get("$type")
    name = kind.removeprefix(_V2) if type(kind) is str else ""
    if name == "info":
        return parse_notice(message)
    return _event(message, payload, name, payload.get("seq"), payload)


def is_error(message: bytes) -> bool:
    """Tell whether a message of the v2 wire is an error."""
    return message.startswith(b'{"$type":"error"')


def _event(
    message: bytes, value: Mapping[str, Any], kind: object, cursor: object, commit: object
) -> MirrorMessage:
    """Return the event of a message: `value` is what has its DID, `commit` what has the fields of a commit.

    Raises Dropped.
    """
    if type(cursor) is not int or not 0 < cursor < _CURSOR_MAX:
        raise Dropped("message_form")
    did = value.get("did")
    if type(did) is not str or not is_did(did):
        raise Dropped("did")
    if kind == "commit" and type(commit) is dict:
        return _new(MirrorMessage, (cursor, _commit(did.encode(), commit, message), ()))
    if type(kind) is str and kind in MESSAGES:
        return MirrorMessage(cursor, *_of_account(did, kind, value.get(kind)))
    raise Dropped("frame_type")


def _commit(did: bytes, commit: Mapping[str, Any], message: bytes) -> Event:
    kind = _OPERATIONS.get(_text(commit, "operation"))
    if kind is None:
        raise Dropped("op_action")
    rkey, rev = _text(commit, "rkey"), _text(commit, "rev")
    collection = require_path(_text(commit, "collection"), rkey, rev)
    if kind == DELETE:
        return Event(kind, did, collection, rkey.encode(), rev.encode(), b"", b"")
    cid = _text(commit, "cid")
    if not _CID(cid):
        raise Dropped("malformed")
    body = _record_json(commit.get("record"), message)
    return _new(Event, (kind, did, collection, rkey.encode(), rev.encode(), cid.encode(), body))


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return value if type(value) is str else ""


def _record_json(record: object, message: bytes) -> bytes:
    """Return the JSON of the record of a message, as we write it. Raises Dropped."""
    if type(record) is not dict:
        raise Dropped("record_type")
    if depth(record) > DEPTH_MAX:
        raise Dropped("record_depth")
    try:
        text = orjson.dumps(whole(record), option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return _exactly(message)
    if _LOWEST in text:
        return _exactly(message)
    if len(text) > JSON_BYTES_MAX:
        raise Dropped("json_size")
    return text


def _exactly(message: bytes) -> bytes:
    """Return the JSON of a record with integers past 64 bits, which orjson reads as floats, not exactly.

    The message is one that orjson has read. Raises Dropped.
    """
    value = parse_exactly(message, ITEMS_MAX // EXACT_FACTOR)
    payload = value.get("payload")
    commit = payload if type(payload) is dict else value["commit"]
    return exact_json(commit["record"])


def _of_account(did: str, name: str, given: object) -> tuple[Event, tuple[str, ...]]:
    """Return an identity, account or sync event, and why fields were left out. Raises Dropped."""
    kind, names = MESSAGES[name]
    if type(given) is not dict or given.get("did") != did:
        raise Dropped("malformed")
    body: dict[str, object] = {}
    drops: tuple[str, ...] = ()
    for each in names:
        value = given.get(each)
        reason = problem_of(each, value)
        if not reason:
            body[each] = value
        elif each in REQUIRED[kind]:
            raise Dropped(reason if each in given else "malformed")
        elif reason == "field_size":
            drops += (reason,)
    return Event(kind, did.encode(), b"", b"", b"", b"", orjson.dumps(body)), drops
