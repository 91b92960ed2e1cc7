"""A message of one of our own Jetstreams, in the v2 wire, to an event with its position. Pure.

    {"$type":"message","payload":{"$type":"…#commit","cid":…,…,"record":{…},"rev":…,"rkey":…,"seq":…,"time":…}}
     └──────── start ────────┘                                └body┘ └───────────── end ─────────────┘

We write such a message with one template for each kind (`delivery.renderers.v2`). So the start and the end
are read with one regular expression each, and what is between them is the body, which is taken byte by byte:
a mirror sends the same message. JSON of another form, even if it means the same, is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final, NamedTuple

from jetstream.atproto.cbor import DEPTH_MAX, depth
from jetstream.model.event import ACCOUNT, CREATE, DELETE, IDENTITY, SYNC, UPDATE, Event
from jetstream.model.syntax import is_did, is_record_key, is_tid, nsid_bytes
from jetstream.upstream.drops import Dropped
from jetstream.upstream.envelope import shortened
from jetstream.upstream.mirror.body import REQUIRED, problem_of
from jetstream.upstream.mirror.bounded_json import parse_json, parse_object
from jetstream.upstream.record import JSON_BYTES_MAX

_START: Final = b'{"$type":"message","payload":{"$type":"network.bsky.jetstream.subscribeEvents#'
# What `Event(…)` calls, which is a function in Python and takes twice as long.
_new: Final = tuple.__new__
CID_PATTERN: Final = "b[a-z2-7]{8,200}"
# A text that needs no escape.
_TEXT: Final = rb'"([!#-\[\]-~]*)"'
_SEQ: Final = rb'"seq":(0|[1-9][0-9]{0,17})'
_TIME: Final = rb'"time":"[0-9TZ:.-]*"}}'

_WRITE: Final = re.compile(
    rb'"cid":"(%b)","collection":%b,"did":%b,"operation":"(create|update)","record":'
    % (CID_PATTERN.encode(), _TEXT, _TEXT)
).match
_DELETE: Final = re.compile(
    rb'"collection":%b,"did":%b,"operation":"delete","rev":%b,"rkey":%b,%b,%b' % (*4 * (_TEXT,), _SEQ, _TIME)
).fullmatch
_PATH_END: Final = re.compile(rb',"rev":%b,"rkey":%b,%b,%b' % (_TEXT, _TEXT, _SEQ, _TIME)).fullmatch
_IDENTITY: Final = re.compile(rb'"did":%b,"identity":' % _TEXT).match
_SEQ_END: Final = re.compile(rb",%b,%b" % (_SEQ, _TIME)).fullmatch
_DID_END: Final = re.compile(rb',"did":%b,%b,%b' % (_TEXT, _SEQ, _TIME)).fullmatch
_SYNC: Final = re.compile(rb'"did":%b,%b,"sync":' % (_TEXT, _SEQ)).match
_TIME_END: Final = re.compile(rb",%b" % _TIME).fullmatch
_ACCOUNT: Final = b'"account":'


class MirrorMessage(NamedTuple):
    """An event with the position that its upstream gave it.

    It keeps the bounds of events of relays: of the DID, collection, rkey, rev, CID and body each, so that no
    message made of it is over 1,000,000 bytes. The body is JSON, in one line.
    """

    position: int
    event: Event
    drops: tuple[str, ...] = ()  # why fields were left out


class Notice(NamedTuple):
    """What an upstream says of itself or of the stream: an error, or an info."""

    type: str  # `error` or `info`
    name: str  # 200 characters at most, as the text
    text: str


def parse(message: bytes) -> MirrorMessage | Notice:
    """Read a message. Raises Dropped, for whatever is none of ours."""
    kind, quote, _ = message[len(_START) : len(_START) + _KIND_CHARS].partition(b'",')
    read = _READERS.get(kind) if quote and message.startswith(_START) else None
    if read is None:
        return parse_notice(message)
    return read(message, len(_START) + len(kind) + len(quote))


def parse_notice(message: bytes) -> Notice:
    """Read a message that is no event, of any server that has the v2 wire. Raises Dropped."""
    value = parse_object(message)
    payload = value.get("payload")
    if value.get("$type") == "error":
        return Notice("error", shortened(value.get("error")), shortened(value.get("message")))
    if type(payload) is dict and type(kind := payload.get("$type")) is str and kind.endswith("#info"):
        return Notice("info", shortened(payload.get("name")), shortened(payload.get("message")))
    raise Dropped("frame_type")


def _commit(message: bytes, at: int) -> MirrorMessage:
    if (found := _DELETE(message, at)) is not None:
        collection, did, rev, rkey, seq = found.groups()
        name = _require_names(did, collection, rkey, rev)
        return MirrorMessage(int(seq), Event(DELETE, did, name, rkey, rev, b"", b""))
    start, stop = _WRITE(message, at), message.rfind(b',"rev":"')
    end = _PATH_END(message, stop) if stop > 0 else None
    if start is None or end is None or start.end() > stop:
        raise Dropped("message_form")
    cid, collection, did, operation = start.groups()
    rev, rkey, seq = end.groups()
    body = message[start.end() : stop]
    require_object(body)
    kind = CREATE if operation == b"create" else UPDATE
    name = _require_names(did, collection, rkey, rev)
    event = _new(Event, (kind, did, name, rkey, rev, cid, body))
    return _new(MirrorMessage, (int(seq), event, ()))


def _require_names(did: bytes, collection: bytes, rkey: bytes, rev: bytes) -> bytes:
    """Return the collection of a record, the same object each time. Raises Dropped."""
    name = require_path(collection.decode(), rkey.decode(), rev.decode())
    require_did(did)
    return name


def require_path(collection: str, rkey: str, rev: str) -> bytes:
    """Return a collection as bytes, if it, a record key and a rev are valid. Raises Dropped."""
    name = nsid_bytes(collection)
    if name is None:
        raise Dropped("op_collection")
    if not is_record_key(rkey):
        raise Dropped("op_rkey")
    if not is_tid(rev):
        raise Dropped("rev")
    return name


def _identity(message: bytes, at: int) -> MirrorMessage:
    start, stop = _IDENTITY(message, at), message.rfind(b',"seq":')
    end = _SEQ_END(message, stop) if stop > 0 else None
    if start is None or end is None or start.end() > stop:
        raise Dropped("message_form")
    return _notice_event(IDENTITY, start[1], message[start.end() : stop], end[1])


def _account(message: bytes, at: int) -> MirrorMessage:
    begin, stop = at + len(_ACCOUNT), message.rfind(b',"did":"')
    end = _DID_END(message, stop) if stop > 0 else None
    if not message.startswith(_ACCOUNT, at) or end is None or begin > stop:
        raise Dropped("message_form")
    return _notice_event(ACCOUNT, end[1], message[begin:stop], end[2])


def _sync(message: bytes, at: int) -> MirrorMessage:
    start, stop = _SYNC(message, at), message.rfind(b',"time":"')
    end = _TIME_END(message, stop) if stop > 0 else None
    if start is None or end is None or start.end() > stop:
        raise Dropped("message_form")
    return _notice_event(SYNC, start[1], message[start.end() : stop], start[2])


def _notice_event(kind: bytes, did: bytes, body: bytes, seq: bytes) -> MirrorMessage:
    """Return an event whose body is an object about its DID, with fields that it may have. Raises Dropped."""
    require_did(did)
    fields = require_object(body)
    if fields.get("did") != did.decode() or not REQUIRED[kind] <= fields.keys():
        raise Dropped("malformed")
    for name, value in fields.items():
        if reason := problem_of(name, value):
            raise Dropped(reason)
    return MirrorMessage(int(seq), Event(kind, did, b"", b"", b"", b"", body))


def require_did(did: bytes) -> None:
    """Raise Dropped for what is no DID."""
    if not is_did(did.decode()):
        raise Dropped("did")


def require_object(body: bytes) -> dict[str, object]:
    """Return the JSON object of a body that may be passed on. Raises Dropped.

    It is in one line, since lines and events are framed by newlines elsewhere.
    """
    if len(body) > JSON_BYTES_MAX:
        raise Dropped("json_size")
    value = parse_json(body)
    if type(value) is not dict:
        raise Dropped("record_type")
    if b"\n" in body or b"\r" in body:
        raise Dropped("message_form")
    if body.count(b"{") + body.count(b"[") > DEPTH_MAX and depth(value) > DEPTH_MAX:
        raise Dropped("record_depth")
    return value


_READERS: Final[dict[bytes, Callable[[bytes, int], MirrorMessage]]] = {
    b"commit": _commit,
    b"identity": _identity,
    b"account": _account,
    b"sync": _sync,
}
_KIND_CHARS: Final = max(map(len, _READERS)) + 2  # with a quote and a comma
