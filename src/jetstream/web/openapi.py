"""`/openapi.json`: all endpoints of a server, for programs, as OpenAPI 3.1. Pure.

The document is put together from small parts: an operation from parameters (`parameter_table`) and
responses, a response from its content and header fields. Tests compare it with the routes of a running
server, and schemathesis compares it with the server's responses.

OpenAPI knows no WebSockets. An endpoint to subscribe is a GET that is answered with 101, and docs/api.md says
what comes then. HEAD and OPTIONS, which all endpoints have, are not repeated for each of them.

To add an endpoint: an entry in `_paths`. To add a header field of a response: an entry in `_HEADERS`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final

from jetstream import __version__
from jetstream.delivery.renderers import RENDERERS
from jetstream.web.did_lists import DIDS_MAX
from jetstream.web.http import Request, Response
from jetstream.web.methods import ARCHIVE, GET_ZSTD_DICTIONARY, PREFIX
from jetstream.web.methods import SUBSCRIBE_EVENTS as EVENTS_METHOD
from jetstream.web.parameter_table import (
    DID,
    EVENT_STREAM,
    EXPLAIN,
    SUBSCRIBE,
    SUBSCRIBE_EVENTS,
    Parameter,
    Schema,
)

Json = dict[str, Any]

_ABOUT: Final = (
    "The ATProto firehose as light, friendly JSON over WebSocket. Every path of GET answers HEAD, and every "
    "path OPTIONS. A slash at its end does not matter. Unknown parameters are ignored, unless they are "
    "surely a mistake."
)
_HANDSHAKE: Final = "With the header fields of a WebSocket handshake (RFC 6455): an upgrade."
_SENTENCE: Final = {"text/plain": {"schema": {"type": "string"}}}
_MICROSECONDS: Final[Schema] = {"type": "integer", "minimum": 0, "description": "unix microseconds"}
_DATE: Final[Schema] = {"type": "string", "format": "date-time"}
_EVENT_ID: Final[Schema] = {"type": "string", "pattern": "^[0-9]{0,20}$"}
_INTEGER: Final[Schema] = {"type": "integer"}
_STRING: Final[Schema] = {"type": "string"}

# Header fields of responses: what each means, its values, and whether it is always there where it is listed.
_HEADERS: Final[Mapping[str, tuple[str, Schema, bool]]] = {
    "Server": ("the version of this server", {"type": "string", "pattern": "^jetstream/"}, True),
    "Access-Control-Allow-Origin": ("any Origin", {"const": "*"}, True),
    "Access-Control-Expose-Headers": ("the header fields that any page may read", _STRING, True),
    "Allow": ("the methods of the path", _STRING, True),
    "Content-Encoding": ("how the body is compressed", {"enum": ["gzip", "zstd"]}, False),
    "Cache-Control": ("how long the response may be kept", _STRING, True),
    "ETag": ("names the bytes, for If-None-Match", {"type": "string", "pattern": '^"'}, True),
    "Jetstream-Wire": ("the wire of the events", {"enum": [*RENDERERS]}, True),
    "Jetstream-Cursor": ("where playback begins", _MICROSECONDS, True),
    "Jetstream-Oldest": ("the oldest event, if there is one", _MICROSECONDS, False),
    "Jetstream-Latest": ("the newest event, if there is one", _MICROSECONDS, False),
    "Retry-After": ("seconds after which to try again", {"type": "integer", "minimum": 1}, False),
    "Sec-WebSocket-Accept": ("accepts the handshake", _STRING, True),
    "Sec-WebSocket-Protocol": ("the subprotocol, if it was offered", {"const": "xrpc.v1.json"}, False),
    "Sec-WebSocket-Version": ("the version of WebSocket, if another was asked for", {"const": "13"}, False),
    "Upgrade": ("websocket", {"const": "websocket"}, True),
    "Vary": ("the header fields on which the response depends", _STRING, True),
    "X-Accel-Buffering": ("proxies pass the events on at once", {"const": "no"}, True),
    "X-Zstd-Dictionary-Id": ("the ID of the dictionary", {"type": "integer", "minimum": 1}, True),
}
_EVERY: Final = ("Server", "Access-Control-Allow-Origin", "Access-Control-Expose-Headers")
_POSITIONS: Final = ("Jetstream-Cursor", "Jetstream-Oldest", "Jetstream-Latest")


def page(wire: str, *, metrics: bool) -> Callable[[Request], Response]:
    """Return the page. `wire` is that of `/subscribe`; `metrics` tells whether `/metrics` is served here."""
    # `orjson` writes no numbers of more than 64 bits.
    body = json.dumps(document(wire, metrics=metrics), separators=(",", ":"))
    response = Response(200, body.encode() + b"\n", "application/json")

    def handler(_request: Request) -> Response:
        return response

    return handler


def document(wire: str = "classic", *, metrics: bool = True) -> Json:
    """Return the document of a server, as `page` serves it."""
    paths = _paths(wire)
    if not metrics:
        del paths["/metrics"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Jetstream", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "headers": {name: _header(*each) for name, each in _HEADERS.items()},
            "responses": {name: _response(text, _SENTENCE) for name, text in _REFUSALS.values()},
            "schemas": _SCHEMAS,
        },
    }


def _paths(wire: str) -> Json:
    """Return all paths with their operations."""
    dictionary = _dictionary()
    return {
        "/": _get("page", "Addresses and parameters, for people", {"200": _response("the page", _PAGE)}),
        "/subscribe": _subscribe("subscribe", f"Events as JSON, by default in the {wire} wire"),
        "/v1/subscribe": _subscribe("subscribeV1", "Events as JSON, by default in the v1 wire"),
        PREFIX + EVENTS_METHOD: _subscribe_events(),
        "/events": _event_stream(),
        "/explain": _explain(),
        "/filters": _filters(),
        "/zstd-dictionary": _get("zstdDictionary", *dictionary),
        PREFIX + GET_ZSTD_DICTIONARY: _get("getZstdDictionary", *dictionary),
        "/cursors": _get(
            "cursors",
            "Positions of a subscription that would begin now",
            {"200": _response("the positions", _json("Cursors"), _POSITIONS)},
        ),
        "/health": _get(
            "health",
            "The state of the server",
            {
                "200": _response("events can be stored", _json("Health")),
                "503": _response("events cannot be stored, or the server is overloaded", _HEALTH_503),
            },
        ),
        "/metrics": _get("metrics", "Metrics for Prometheus", {"200": _response("the metrics", _METRICS)}),
        "/openapi.json": _get("openapi", "This document", {"200": _response("the document", _JSON_OBJECT)}),
        **{f"{PREFIX}{nsid}": _archive(nsid, method) for nsid, method in ARCHIVE.items()},
    }


# Operations


def _get(name: str, summary: str, responses: Json, parameters: Iterable[Json] = ()) -> Json:
    return {"get": _operation(name, summary, responses, parameters)}


def _operation(name: str, summary: str, responses: Json, parameters: Iterable[Json] = ()) -> Json:
    """Return an operation, with the refusals of HTTP itself beside its own responses."""
    common = {status: {"$ref": f"#/components/responses/{each}"} for status, (each, _) in _REFUSALS.items()}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [*parameters],
        "responses": dict(sorted((common | responses).items())),
    }


def _subscribe(name: str, summary: str) -> Json:
    parameters = (
        *map(_query, SUBSCRIBE),
        _field("Socket-Encoding", "zstd: the same as compress=true", _STRING),
    )
    refused = _response("a parameter that cannot be used: the sentence names it", _SENTENCE)
    unavailable = _response("there is no room, or no dictionary yet", _SENTENCE, ("Retry-After",))
    return _upgrade(name, summary, parameters, {"400": refused, "503": unavailable})


def _subscribe_events() -> Json:
    refused = _response("a parameter that cannot be used", _json("Error") | _SENTENCE)
    unavailable = _response("there is no room", _json("Error") | _SENTENCE, ("Retry-After",))
    responses = {"400": refused, "503": unavailable}
    parameters = map(_query, SUBSCRIBE_EVENTS)
    return _upgrade("subscribeEvents", "Events as JSON, in the v2 wire", parameters, responses)


def _upgrade(name: str, summary: str, parameters: Iterable[Json], refusals: Json) -> Json:
    """Return the path of a WebSocket."""
    handshake = ("Upgrade", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol")
    fields = _fields(("Server", *handshake, "Jetstream-Wire", *_POSITIONS))
    responses = {
        "101": {"description": "events follow, in messages of the WebSocket", "headers": fields},
        "426": _response("no handshake", _SENTENCE, ("Upgrade", "Sec-WebSocket-Version")),
    }
    operation = _operation(name, summary, responses | refusals, parameters)
    return {"get": operation | {"description": _HANDSHAKE}}


def _event_stream() -> Json:
    parameters = (
        *map(_query, EVENT_STREAM),
        _field("Accept-Encoding", "zstd or gzip: the body is compressed", _STRING),
        _field("Last-Event-ID", "the position of the last event that the client has", _EVENT_ID),
    )
    fields = ("Cache-Control", "X-Accel-Buffering", "Vary", "Jetstream-Wire", *_POSITIONS)
    responses = {
        "200": _response("events follow, until the end", _EVENTS, ("Content-Encoding", *fields)),
        "204": _response("the client has all events up to until", {}, fields),
        "400": _response("a parameter that cannot be used: the sentence names it", _SENTENCE),
        "406": _response("no content coding that the client accepts", _SENTENCE),
        "503": _response("there is no room", _SENTENCE, ("Retry-After",)),
    }
    return _get("events", "Events without a WebSocket, by default in the v1 wire", responses, parameters)


def _explain() -> Json:
    responses = {
        "200": _response("what is understood, and what it selects", _json("Explanation")),
        "400": _response("a parameter that cannot be used: the sentence names it", _SENTENCE),
        "429": _response("too many requests", _SENTENCE, ("Retry-After",)),
    }
    return _get("explain", "How the parameters are understood", responses, map(_query, EXPLAIN))


def _filters() -> Json:
    lines: Schema = {"type": "string", "description": "one DID a line"}
    responses = {
        "200": _response("the list is kept", _json("DidList")),
        "400": _response("no list of DIDs", _SENTENCE),
        "411": _response("no Content-Length", _SENTENCE),
        "429": _response("too many uploads", _SENTENCE, ("Retry-After",)),
        "503": _response("no room for another list", _SENTENCE, ("Retry-After",)),
    }
    body = {"required": True, "content": {"text/plain": {"schema": lines}, **_json("Dids")}}
    operation = _operation("uploadFilter", "Upload a list of DIDs, for filter", responses)
    return {"post": operation | {"requestBody": body}}


def _dictionary() -> tuple[str, Json, Iterable[Json]]:
    """Return the summary, the responses and the parameters of our own dictionary."""
    bytes_: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    fields = ("ETag", "Cache-Control", "X-Zstd-Dictionary-Id")
    responses = {
        "200": _response("the dictionary (RFC 8878, section 5)", bytes_, fields),
        "304": _response("the client has it", bytes_, fields),
        "400": _response("id is not an integer", _json("Error") | _SENTENCE),
        "404": _response("there is no dictionary of this ID", _json("Error")),
    }
    parameters = (
        _query(Parameter("id", "the ID that the dictionary must have", _INTEGER)),
        _field("If-None-Match", "the ETag of the dictionary that the client has", _STRING),
    )
    return "Our own zstd dictionary, for zstdDictionary", responses, parameters


def _archive(nsid: str, method: str) -> Json:
    """Return the path of a method of an archive, which this server does not have."""
    responses = {"501": _response("this server keeps no archive", _json("Error"))}
    name = nsid.rpartition(".")[2]
    return {method.lower(): _operation(name, "A method of an archive", responses)}


# Parameters


def _query(parameter: Parameter) -> Json:
    name, meaning, schema, example = parameter
    described = {"name": name, "in": "query", "description": meaning, "schema": schema}
    return described if example is None else described | {"example": example}


def _field(name: str, meaning: str, schema: Schema) -> Json:
    return {"name": name, "in": "header", "description": meaning, "schema": schema}


# Responses


def _response(description: str, content: Json, fields: Iterable[str] = ()) -> Json:
    return {"description": description, "headers": _fields((*_EVERY, *fields)), "content": content}


def _fields(names: Iterable[str]) -> Json:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _header(meaning: str, schema: Schema, required: bool) -> Json:
    return {"description": meaning, "required": required, "schema": schema}


def _json(schema: str) -> Json:
    return {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}


# What any request may be refused with, by status: a name, and when.
_REFUSALS: Final = {
    "400": ("Malformed", "the request is not HTTP/1.1"),
    "408": ("Timeout", "the request was not complete in time"),
    "413": ("Body", "there is a body that is not taken, or it is too long"),
    "414": ("LineTooLong", "the request line is too long"),
    "429": ("Flood", "too many requests on one connection"),
    "431": ("FieldsTooLong", "the header fields are too long or too many"),
    "500": ("Failure", "the server failed to answer"),
    "501": ("Coding", "the body has an unknown transfer coding"),
    "503": ("Overload", "there are too many unfinished requests"),
    "505": ("Version", "another version of HTTP"),
}
_PAGE: Final = _SENTENCE | {"text/html": {"schema": _STRING}}
_EVENTS: Final = {each: {"schema": _STRING} for each in ("application/x-ndjson", "text/event-stream")}
_METRICS: Final = _SENTENCE | {"application/openmetrics-text": {"schema": _STRING}}
_JSON_OBJECT: Final = {"application/json": {"schema": {"type": "object"}}}
_HEALTH_503: Final = _json("Health") | _SENTENCE


# Schemas


def _object(required: Mapping[str, Schema]) -> Json:
    """Return the schema of an object with exactly these keys."""
    return {
        "type": "object",
        "properties": required,
        "required": [*required],
        "additionalProperties": False,
    }


def _or_null(schema: Schema) -> Json:
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
_SCHEMAS: Final = {
    "Error": _object({"error": _STRING, "message": _STRING}),
    "Dids": {"anyOf": [_DIDS, {"type": "object", "properties": {"dids": _DIDS}, "required": ["dids"]}]},
    "DidList": _object({"id": _STRING, "dids": {"type": "integer", "minimum": 1}, "kept_s": _INTEGER}),
    "Cursors": _object(_now("cursor") | _kept("oldest") | _kept("latest") | _now("now")),
    "Explanation": _object(
        {
            "wire": {"enum": [*RENDERERS]},
            "filter": {"type": "object"},
            "maxMessageSizeBytes": _COUNT,
            **_now("begins"),
            **_kept("until"),
            **dict.fromkeys(("limit", "heartbeat"), _or_null(_COUNT)),
            "prefixes": {"type": "object", "additionalProperties": {"type": "array", "items": _STRING}},
            "last_minute": _object(dict.fromkeys(("events", "matched", "bytes", "zstd_bytes"), _COUNT)),
        }
    ),
    "Health": _object(
        {
            "status": _STRING,
            "reasons": {"type": "array", "items": _STRING},
            "version": _STRING,
            "upstream": _object({"url": _STRING, "state": _STRING, "seq": _or_null(_INTEGER)}),
            "last_event_age_s": {"type": ["number", "null"]},
            "log": _LOG,
            "subscribers": _COUNT,
        }
    ),
}
