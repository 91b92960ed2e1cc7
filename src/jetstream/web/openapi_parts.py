"""The parts of `/openapi.json`: parameters, header fields, responses, and schemas of JSON. Pure.

To add a header field of a response: an entry in `HEADERS`.

Schemas are JSON Schema of the draft that OpenAPI 3.1 names (2020-12). A schema of a response has exactly
the keys that the server sends, so that a test notices one that is missing here. The functions return new
objects; constants are shared and must not be changed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Final, get_args

from jetstream.delivery.renderers import RENDERERS
from jetstream.roles import Role
from jetstream.status import UPSTREAM_STATES
from jetstream.web.did_lists import DIDS_MAX
from jetstream.web.parameter_table import DID, Parameter, Schema

# A part of the document.
Json = dict[str, Any]

# IDs, and addresses, of one request to `/subscribers/kick`.
KICK_ITEMS_MAX: Final = 1_000
KICK_REASON_CHARS_MAX: Final = 100  # a close has room for 123 bytes, with the cursor

# A response of one line of text: a refusal, most of the time.
SENTENCE: Final = {"text/plain": {"schema": {"type": "string"}}}
_MICROSECONDS: Final[Schema] = {"type": "integer", "minimum": 0, "description": "unix microseconds"}
_DATE: Final[Schema] = {"type": "string", "format": "date-time"}
# A position in a header field; empty before the first event.
EVENT_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9]{0,20}$"}
INTEGER: Final[Schema] = {"type": "integer"}
STRING: Final[Schema] = {"type": "string"}

# Header fields of responses: what each means, its values, and whether it is always there where it is listed.
HEADERS: Final[Mapping[str, tuple[str, Schema, bool]]] = {
    "Server": ("the version of this server", {"type": "string", "pattern": "^jetstream/"}, True),
    "Access-Control-Allow-Origin": ("any Origin", {"const": "*"}, True),
    "Access-Control-Expose-Headers": ("the header fields that any page may read", STRING, True),
    "Allow": ("the methods of the path", STRING, True),
    "Content-Encoding": ("how the body is compressed", {"enum": ["gzip", "zstd"]}, False),
    "Cache-Control": ("how long the response may be kept", STRING, True),
    "Content-Security-Policy": ("what the page may load and do", STRING, True),
    "ETag": ("names the bytes, for If-None-Match", {"type": "string", "pattern": '^"'}, True),
    "Jetstream-Wire": ("the wire of the events", {"enum": [*RENDERERS]}, True),
    "Jetstream-Cursor": ("where playback begins", _MICROSECONDS, True),
    "Jetstream-Oldest": ("the oldest event, if there is one", _MICROSECONDS, False),
    "Jetstream-Latest": ("the newest event, if there is one", _MICROSECONDS, False),
    "Jetstream-Forget": ("accounts whose records are erased when they end so, or none", STRING, True),
    "Link": ("where there are more, if there may be", STRING, False),
    "Referrer-Policy": ("links tell nothing to other sites", {"const": "no-referrer"}, True),
    "Retry-After": ("seconds after which to try again", {"type": "integer", "minimum": 1}, False),
    "Sec-WebSocket-Accept": ("accepts the handshake", STRING, True),
    "Sec-WebSocket-Protocol": ("the subprotocol, if it was offered", {"const": "xrpc.v1.json"}, False),
    "Sec-WebSocket-Version": ("the version of WebSocket, if another was asked for", {"const": "13"}, False),
    "Upgrade": ("websocket", {"const": "websocket"}, True),
    "Vary": ("the header fields on which the response depends", STRING, True),
    "WWW-Authenticate": ("the kind of token that is needed", {"type": "string", "pattern": "^Bearer"}, True),
    "X-Accel-Buffering": ("proxies pass the events on at once", {"const": "no"}, True),
    "X-Content-Type-Options": ("the type is as it says", {"const": "nosniff"}, True),
    "X-Zstd-Dictionary-Id": ("the ID of the dictionary", {"type": "integer", "minimum": 1}, True),
}
# Header fields of every response, and those of a stream's position.
_EVERY: Final = ("Server", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers")
POSITIONS: Final = ("Jetstream-Cursor", "Jetstream-Oldest", "Jetstream-Latest")


# Parameters


def in_query(parameter: Parameter) -> Json:
    """Return a parameter of a query.

    It is optional: no parameter of this server is required.
    """
    name, meaning, schema, example = parameter
    described = {"name": name, "in": "query", "description": meaning, "schema": schema}
    return described if example is None else described | {"example": example}


def in_header(name: str, meaning: str, schema: Schema) -> Json:
    """Return a header field of a request."""
    return {"name": name, "in": "header", "description": meaning, "schema": schema}


def in_path(name: str, schema: Schema, example: str) -> Json:
    """Return a part of a path."""
    return {"name": name, "in": "path", "required": True, "schema": schema, "example": example}


# Responses


def response(description: str, content: Json, fields: Iterable[str] = ()) -> Json:
    """Return a response with its content and, beside those that every response has, its header fields.

    `fields` are names in `HEADERS`; `content` has a schema for each media type.
    """
    return {"description": description, "headers": header_fields((*_EVERY, *fields)), "content": content}


def header_fields(names: Iterable[str]) -> Json:
    """Return header fields of a response, as references."""
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def header(meaning: str, schema: Schema, required: bool) -> Json:
    """Return what such a reference leads to, of an entry in `HEADERS`."""
    return {"description": meaning, "required": required, "schema": schema}


def json_of(schema: str) -> Json:
    """Return a content that is JSON, of a schema in `SCHEMAS`.

    The content is a reference: the schemas stand at the end of the document.
    """
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


# What any request may be refused with, by status: a name, and when.
REFUSALS: Final = {
    "400": ("Malformed", "the request is not HTTP/1.1"),
    "408": ("Timeout", "the request was not complete in time"),
    "413": ("Body", "there is a body that is not taken, or it is too long"),
    "414": ("LineTooLong", "the request line is too long"),
    "429": ("Flood", "too many requests on one connection, or connections of one address"),
    "431": ("FieldsTooLong", "the header fields are too long or too many"),
    "500": ("Failure", "the server failed to answer"),
    "501": ("Coding", "the body has an unknown transfer coding"),
    "503": ("Overload", "there are too many unfinished requests"),
    "505": ("Version", "another version of HTTP"),
}
PAGE: Final = SENTENCE | {"text/html": {"schema": STRING}}
ICON: Final = {"image/svg+xml": {"schema": STRING}}
FILES: Final = {each: {"schema": STRING} for each in ("text/javascript", "text/css")} | ICON
EVENTS: Final = {each: {"schema": STRING} for each in ("application/x-ndjson", "text/event-stream")}
GAP_LINES: Final = {"application/x-ndjson": {"schema": STRING}}
METRICS: Final = SENTENCE | {"application/openmetrics-text": {"schema": STRING}}
JSON_OBJECT: Final = {"application/json": {"schema": {"type": "object"}}}
HEALTH_503: Final = json_of("Health") | SENTENCE
READY_503: Final = json_of("Ready") | SENTENCE


# Schemas


def _object(required: Mapping[str, Schema]) -> Json:
    """Return the schema of an object with exactly these keys.

    All of them are required, as the server leaves none out.
    """
    return {
        "type": "object",
        "properties": required,
        "required": [*required],
        "additionalProperties": False,
    }


def _or_null(schema: Schema) -> Json:
    """Return a schema that null matches, too."""
    return {**schema, "type": [schema["type"], "null"]}


def _now(name: str) -> Json:
    """Return the schemas of a time, as a number and as a date."""
    return {f"{name}_us": _MICROSECONDS, name: _DATE}


def _kept(name: str) -> Json:
    """Return the schemas of a time that is null while there is no event."""
    return {key: _or_null(schema) for key, schema in _now(name).items()}


_DIDS: Final[Schema] = {"type": "array", "items": DID, "minItems": 1, "maxItems": DIDS_MAX}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_COUNTS: Final = dict.fromkeys(("events", "bytes", "wal_bytes", "damaged"), _COUNT)
_LOG: Final = _object(_COUNTS | _kept("oldest") | _kept("newest"))
_UPSTREAM: Final = _object(
    {
        "name": STRING,
        "url": STRING,
        "state": {"enum": [*UPSTREAM_STATES]},
        "seq": _or_null(INTEGER),
        "lag_s": {"type": ["number", "null"]},
    }
)
_NAMES: Final[Schema] = {"type": "array", "items": STRING}
_PDS: Final = _object(dict.fromkeys(UPSTREAM_STATES, _COUNT) | {"not_connected": _NAMES})
_CHECKS: Final[Schema] = {
    "type": "array",
    "items": _object(dict.fromkeys(("check", "text", "hint"), STRING)),
}
_READY: Final = {"ready": {"type": "boolean"}, "not_ready": _CHECKS}


def _subscriber() -> Json:
    """Return the schema of one of `/subscribers.json`."""
    return _object(
        {
            "id": _COUNT,
            **dict.fromkeys(("address", "wire", "transport", "compression", "state"), STRING),
            "token": _or_null(STRING),
            "filter": {"type": "object"},
            "connected_us": _MICROSECONDS,
            "lag_s": {"type": ["number", "null"]},
            **dict.fromkeys(("messages", "bytes", "buffered_bytes"), _COUNT),
        }
    )


def _process() -> Json:
    """Return the schema of one of several processes.

    Of a server of several processes: see `supervisor`.
    """
    number: Schema = {"type": ["number", "null"]}
    whole: Schema = {"type": ["integer", "null"]}
    return _object(
        {
            "name": STRING,
            "role": {"enum": ["ingest", "edge"]},
            "pid": whole,
            "ready": {"type": "boolean"},
            "ended": _COUNT,
            "subscribers": whole,
            **dict.fromkeys(("cpu", "rss_bytes", "events_per_s", "messages_per_s", "lag_s"), number),
        }
    )


def _status() -> Json:
    """Return the schema of `/status.json`.

    In the order of `status_page.body`.
    """
    known: Schema = {"type": "number"}
    number: Schema = {"type": ["number", "null"]}
    whole: Schema = {"type": ["integer", "null"]}
    reasons = _object(dict.fromkeys(("condition", "text", "hint"), STRING))
    upstream = {"name": STRING, "url": STRING, "state": {"enum": [*UPSTREAM_STATES]}, "seq": whole}
    rates = dict.fromkeys(("lag_s", "last_frame_age_s", "frames_per_s"), number)
    kinds = dict.fromkeys(("commit", "identity", "account", "sync"), number)
    collections: Schema = {"type": "array", "items": _object({"collection": STRING, "per_s": known})}
    log = (
        *("events", "bytes", "wal_bytes", "oldest_us", "newest_us", "span_s", "bytes_per_day"),
        *("disk_free_bytes", "retention_s", "retention_bytes", "damaged", "written_bytes_per_s"),
    )
    series = ("events_per_s", "messages_per_s", "subscribers", "lag_s", "loop_delay_p99_ms")
    counts: Schema = {"type": "object", "additionalProperties": known}
    quantiles = _object({"p50": number, "p99": number})
    subscribers = dict.fromkeys(("total", "catching_up", "lagging", "max"), _COUNT)
    return _object(
        {
            "version": STRING,
            "role": {"enum": [*get_args(Role)]},
            "edge": _or_null(_object({"lag_s": number, "writer_silent_s": number})),
            **dict.fromkeys(("now_us", "started_us"), _MICROSECONDS),
            "health": STRING,
            "reasons": {"type": "array", "items": reasons},
            **_READY,
            "upstreams": {"type": "array", "items": _object(upstream | rates)},
            "pds": _or_null(_PDS),
            "waiting": whole,
            "events": _object(
                {"per_s": number, "total": _COUNT, "by_kind": _object(kinds), "by_collection": collections}
            ),
            "log": _object(dict.fromkeys(log, number) | {"writable": {"type": "boolean"}}),
            "subscribers": _object(subscribers | dict.fromkeys(("by_wire", "by_compression"), counts)),
            "out": _object(
                dict.fromkeys(("messages_per_s", "bytes_per_s"), number)
                | dict.fromkeys(("messages_total", "bytes_total"), _COUNT)
            ),
            **dict.fromkeys(("drops", "disconnects", "refused"), counts),
            **dict.fromkeys(("loop_delay_ms", "delivery_ms"), quantiles),
            "process": _object(dict.fromkeys(("rss_bytes", "cpu", "open_files", "open_files_max"), number)),
            "processes": {"type": "array", "items": _process()},
            "history": _object(
                {"step_s": _COUNT, "end_us": whole}
                | {name: {"type": "array", "items": number, "maxItems": 360} for name in series}
            ),
        }
    )


# By the name that references have.
SCHEMAS: Final = {
    "Error": _object({"error": STRING, "message": STRING}),
    "Dids": {"anyOf": [_DIDS, {"type": "object", "properties": {"dids": _DIDS}, "required": ["dids"]}]},
    "DidList": _object({"id": STRING, "dids": {"type": "integer", "minimum": 1}, "kept_s": INTEGER}),
    "Cursors": _object(_now("cursor") | _kept("oldest") | _kept("latest") | _now("now")),
    "Explanation": _object(
        {
            "wire": {"enum": [*RENDERERS]},
            "filter": {"type": "object"},
            "maxMessageSizeBytes": _COUNT,
            **_now("begins"),
            **_kept("until"),
            **dict.fromkeys(("limit", "heartbeat"), _or_null(_COUNT)),
            "prefixes": {"type": "object", "additionalProperties": {"type": "array", "items": STRING}},
            "last_minute": _object(dict.fromkeys(("events", "matched", "bytes", "zstd_bytes"), _COUNT)),
        }
    ),
    "Health": _object(
        {
            "status": STRING,
            "reasons": {"type": "array", "items": STRING},
            "version": STRING,
            "upstream": _or_null(_UPSTREAM),
            "upstreams": {"type": "array", "items": _UPSTREAM},
            "pds": _or_null(_PDS),
            "waiting": {"type": ["integer", "null"], "minimum": 0},
            "last_event_age_s": {"type": ["number", "null"]},
            "log": _LOG,
            "subscribers": _COUNT,
        }
    ),
    "Ready": _object(_READY),
    "Subscribers": _object(
        {
            "total": _COUNT,
            "next": _or_null(_COUNT),
            "subscribers": {"type": "array", "items": _subscriber()},
        }
    ),
    "Kick": {
        "type": "object",
        "properties": {
            "ids": {"type": "array", "items": INTEGER, "maxItems": KICK_ITEMS_MAX},
            "addresses": {"type": "array", "items": STRING, "maxItems": KICK_ITEMS_MAX},
            "all": {"type": "boolean"},
            "reason": {"type": "string", "minLength": 1, "maxLength": KICK_REASON_CHARS_MAX},
        },
        "additionalProperties": False,
    },
    "Kicked": _object({"kicked": _COUNT, "unknown_ids": {"type": "array", "items": _COUNT}}),
    "Status": _status(),
}
