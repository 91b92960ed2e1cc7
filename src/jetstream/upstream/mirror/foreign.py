"""A message of any other Jetstream, in the v1 or v2 wire, to an event with the cursor of that server. Pure.

The cursor is `time_us` in the v1 wire and `seq` in the v2 wire. It is of that server only: the event gets a
position here. Its record is written again as we write records: sorted keys, whole floats as integers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import orjson

from jetstream.atproto.cbor import DEPTH_MAX, depth
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE, Event
from jetstream.model.syntax import is_did
from jetstream.upstream.drops import Dropped
from jetstream.upstream.mirror.message import Message, Notice, parse_notice, parse_object, require_path
from jetstream.upstream.record import JSON_BYTES_MAX, whole

_V2: Final = "network.bsky.jetstream.subscribeEvents#"
_OPERATIONS: Final = {"create": CREATE, "update": UPDATE, "delete": DELETE}
_CURSOR_MAX: Final = 10**18
# The fields of a body, in order, and the types of those that must be there.
_FIELDS: Final[Mapping[str, tuple[bytes, Sequence[str], Mapping[str, type]]]] = {
    "identity": (IDENTITY, ("did", "handle", "seq", "time"), {"did": str}),
    "account": (ACCOUNT, ("active", "did", "seq", "status", "time"), {"did": str, "active": bool}),
    "sync": (SYNC, ("blocks", "did", "rev", "seq", "time"), {"did": str, "rev": str, "blocks": dict}),
}
_TYPES: Final = {"active": bool, "seq": int, "blocks": dict}  # all others are text


def parse_foreign(message: bytes) -> Message | Notice:
    """Read a message. Raises Dropped."""
    value = parse_object(message)
    payload = value.get("payload")
    if type(payload) is not dict:
        return _event(value, value.get("kind"), value.get("time_us"), value.get("commit"))
    kind = payload.get("$type")
    name = kind.removeprefix(_V2) if type(kind) is str else ""
    if name == "info":
        return parse_notice(message)
    return _event(payload, name, payload.get("seq"), payload)


def is_error(message: bytes) -> bool:
    """Tell whether a message of the v2 wire is an error."""
    return message.startswith(b'{"$type":"error"')


def _event(value: Mapping[str, Any], kind: object, cursor: object, commit: object) -> Message:
    """Return the event of a message. `commit` has the fields of one. Raises Dropped."""
    if type(cursor) is not int or not 0 < cursor < _CURSOR_MAX:
        raise Dropped("message_form")
    did = value.get("did")
    if type(did) is not str or not is_did(did):
        raise Dropped("did")
    if kind == "commit" and type(commit) is dict:
        return Message(cursor, _commit(did.encode(), commit))
    if type(kind) is str and kind in _FIELDS:
        return Message(cursor, _of_account(did, kind, value.get(kind)))
    raise Dropped("frame_type")


def _commit(did: bytes, commit: Mapping[str, Any]) -> Event:
    kind = _OPERATIONS.get(_text(commit, "operation"))
    if kind is None:
        raise Dropped("op_action")
    rkey, rev = _text(commit, "rkey"), _text(commit, "rev")
    collection = require_path(_text(commit, "collection"), rkey, rev)
    if kind == DELETE:
        return Event(kind, did, collection, rkey.encode(), rev.encode(), b"", b"")
    cid = _text(commit, "cid")
    if not (cid.isascii() and cid.isalnum()):
        raise Dropped("malformed")
    return Event(
        kind, did, collection, rkey.encode(), rev.encode(), cid.encode(), record_json(commit.get("record"))
    )


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    return value if type(value) is str else ""


def record_json(record: object) -> bytes:
    """Return the JSON of a record, as we write it. Raises Dropped."""
    if type(record) is not dict:
        raise Dropped("record_type")
    if depth(record) > DEPTH_MAX:
        raise Dropped("record_depth")
    text = orjson.dumps(whole(record), option=orjson.OPT_SORT_KEYS)
    if len(text) > JSON_BYTES_MAX:
        raise Dropped("json_size")
    return text


def _of_account(did: str, name: str, given: object) -> Event:
    """Return an identity, account or sync event. Raises Dropped."""
    kind, fields, required = _FIELDS[name]
    if type(given) is not dict or given.get("did") != did:
        raise Dropped("malformed")
    body = {each: given[each] for each in fields if type(given.get(each)) is _TYPES.get(each, str)}
    if not required.keys() <= body.keys():
        raise Dropped("malformed")
    text = orjson.dumps(body)
    if len(text) > JSON_BYTES_MAX:
        raise Dropped("json_size")
    return Event(kind, did.encode(), b"", b"", b"", b"", text)
