"""`/openapi.json`: all endpoints of a server, for programs, as OpenAPI 3.1. Pure.

The document is put together from small parts: an operation from parameters (`parameter_table`) and
responses, a response from its content and header fields. Tests compare it with the routes of a running
server, and schemathesis compares it with the server's responses.

OpenAPI knows no WebSockets. An endpoint to subscribe is a GET that is answered with 101, and docs/api.md says
what comes then. HEAD and OPTIONS, which all endpoints have, are not repeated for each of them.

To add an endpoint: an entry in `_paths`.

    _paths ──▶ _get, _upgrade ──▶ _operation ──▶ parameters (`parameter_table`)
                                            └──▶ responses, schemas (`openapi_parts`)

It is made once, when the server starts: nothing in it changes then.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from typing import Final

from jetstream import __version__
from jetstream.web.http import Request, Response
from jetstream.web.methods import ARCHIVE, GET_ZSTD_DICTIONARY, PREFIX
from jetstream.web.methods import SUBSCRIBE_EVENTS as EVENTS_METHOD
from jetstream.web.openapi_parts import (
    EVENT_ID,
    EVENTS,
    FILES,
    GAP_LINES,
    HEADERS,
    HEALTH_503,
    ICON,
    INTEGER,
    JSON_OBJECT,
    METRICS,
    PAGE,
    POSITIONS,
    READY_503,
    REFUSALS,
    SCHEMAS,
    SENTENCE,
    STRING,
    Json,
    header,
    header_fields,
    in_header,
    in_path,
    in_query,
    json_of,
    response,
)
from jetstream.web.parameter_table import (
    EVENT_STREAM,
    EXPLAIN,
    GAPS,
    SUBSCRIBE,
    SUBSCRIBE_EVENTS,
    Parameter,
    Schema,
)

_ABOUT: Final = (
    "The ATProto firehose as light, friendly JSON over WebSocket. Every path of GET answers HEAD, and every "
    "path OPTIONS. A slash at its end does not matter. Unknown parameters are ignored, unless they are "
    "surely a mistake."
)
# Responses that several operations have.
_TOKEN: Final = response("the token is missing or unknown", SENTENCE, ("WWW-Authenticate",))
_ADDRESS: Final = response("the address of the client has too many", SENTENCE, ("Retry-After",))
_LOCAL: Final = response("without tokens, this is for programs of the server's machine", SENTENCE)
# 401 where operators have tokens, else 403: see `access`.
_OPERATORS: Final = {"401": _TOKEN, "403": _LOCAL}
# A number of a query that is not in `parameter_table`.
_NUMBER: Final[Schema] = {"type": "integer", "minimum": 0}
# Header fields of a file of the page, also of a 304.
_FILE_FIELDS: Final = (
    *("Cache-Control", "ETag"),
    *("Content-Security-Policy", "Referrer-Policy", "X-Content-Type-Options"),
)
_HANDSHAKE: Final = "With the header fields of a WebSocket handshake (RFC 6455): an upgrade."


def page(wire: str, *, metrics: bool) -> Callable[[Request], Response]:
    """Return the page. `wire` is that of `/subscribe`; `metrics` tells whether `/metrics` is served here.

    A server whose metrics have a listener of their own leaves that path out.
    """
    # `orjson` writes no numbers of more than 64 bits.
    body = json.dumps(document(wire, metrics=metrics), separators=(",", ":"))
    answer = Response(200, body.encode() + b"\n", "application/json")

    def handler(_request: Request) -> Response:
        """Return the document, which is the same for all requests."""
        return answer

    return handler


def document(wire: str = "classic", *, metrics: bool = True) -> Json:
    """Return the document of a server, as `page` serves it.

    It is a new object with each call, of parts that must not be changed.
    """
    paths = _paths(wire)
    if not metrics:
        del paths["/metrics"]
    return {
        "openapi": "3.1.0",
        "info": {"title": "Jetstream", "version": __version__, "description": _ABOUT},
        "paths": paths,
        "components": {
            "headers": {name: header(*each) for name, each in HEADERS.items()},
            "responses": {name: response(text, SENTENCE) for name, text in REFUSALS.values()},
            "schemas": SCHEMAS,
        },
    }


def _paths(wire: str) -> Json:
    """Return all paths with their operations.

    One entry for each route of `endpoints`; a test finds those that are missing.
    """
    dictionary = _dictionary()
    return {
        "/": _page(),
        "/page/{file}": _page_file(),
        "/favicon.ico": _get("icon", "The icon of the page", _file_responses(ICON)),
        "/subscribe": _subscribe("subscribe", f"Events as JSON, by default in the {wire} wire"),
        "/v1/subscribe": _subscribe("subscribeV1", "Events as JSON, by default in the v1 wire"),
        PREFIX + EVENTS_METHOD: _subscribe_events(),
        "/events": _event_stream(),
        "/explain": _explain(),
        "/gaps": _gaps(),
        "/filters": _filters(),
        "/zstd-dictionary": _get("zstdDictionary", *dictionary),
        PREFIX + GET_ZSTD_DICTIONARY: _get("getZstdDictionary", *dictionary),
        "/cursors": _get(
            "cursors",
            "Positions of a subscription that would begin now",
            {"200": response("the positions", json_of("Cursors"), POSITIONS)},
        ),
        "/health": _get(
            "health",
            "The state of the server",
            {
                "200": response("events can be stored", json_of("Health")),
                "503": response("events cannot be stored, or the server is overloaded", HEALTH_503),
            },
        ),
        "/ready": _get(
            "ready",
            "Whether clients should be sent to this server",
            {
                "200": response("they can be", json_of("Ready")),
                "503": response("they should not be, or the server is overloaded", READY_503),
            },
        ),
        "/status.json": _get(
            "status",
            "The figures of the server",
            {"200": response("the figures", json_of("Status"), ("Cache-Control",)), "401": _TOKEN},
        ),
        "/metrics": _get(
            "metrics", "Metrics for Prometheus", {"200": response("the metrics", METRICS), "401": _TOKEN}
        ),
        "/subscribers.json": _subscribers(),
        "/subscribers/kick": _kick(),
        "/openapi.json": _get("openapi", "This document", {"200": response("the document", JSON_OBJECT)}),
        **{f"{PREFIX}{nsid}": _archive(nsid, method) for nsid, method in ARCHIVE.items()},
    }


# Operations


def _get(name: str, summary: str, responses: Json, parameters: Iterable[Json] = ()) -> Json:
    """Return a path that has one operation, for GET."""
    return {"get": _operation(name, summary, responses, parameters)}


def _operation(name: str, summary: str, responses: Json, parameters: Iterable[Json] = ()) -> Json:
    """Return an operation, with the refusals of HTTP itself beside its own responses.

    `name` is unique in the document: programs make the name of a function of it.
    """
    common = {status: {"$ref": f"#/components/responses/{each}"} for status, (each, _) in REFUSALS.items()}
    return {
        "operationId": name,
        "summary": summary,
        "parameters": [*parameters],
        "responses": dict(sorted((common | responses).items())),
    }


def _page() -> Json:
    """Return the path of the page for people."""
    fields = ("Vary",)
    responses = {
        "200": response("the page: HTML or text, as the client accepts", PAGE, fields),
        "304": response("the client has it", {}, (*fields, *_FILE_FIELDS)),
    }
    return _get("page", "Figures, a live viewer, addresses and parameters, for people", responses)


def _page_file() -> Json:
    """Return the path of the files of this page."""
    responses = _file_responses(FILES) | {"404": response("there is no such file", SENTENCE)}
    return _get(
        "pageFile", "A script or a style of the page", responses, (in_path("file", STRING, "main.js"),)
    )


def _file_responses(content: Json) -> Json:
    """Return the responses of a file: its bytes, or 304."""
    return {
        "200": response("the file", content, _FILE_FIELDS),
        "304": response("the client has it", content, _FILE_FIELDS),
    }


def _subscribe(name: str, summary: str) -> Json:
    """Return a path that is subscribed to with the parameters of `/subscribe`."""
    parameters = (
        *map(in_query, SUBSCRIBE),
        in_header("Socket-Encoding", "zstd: the same as compress=true", STRING),
    )
    refused = response("a parameter that cannot be used: the sentence names it", SENTENCE)
    unavailable = response("there is no room, or no dictionary yet", SENTENCE, ("Retry-After",))
    return _upgrade(
        name, summary, parameters, {"400": refused, "401": _TOKEN, "503": unavailable, "429": _ADDRESS}
    )


def _subscribe_events() -> Json:
    """Return the path of the v2 wire, whose refusals are JSON."""
    refused = response("a parameter that cannot be used", json_of("Error") | SENTENCE)
    unavailable = response("there is no room", json_of("Error") | SENTENCE, ("Retry-After",))
    token = response("the token is missing or unknown", json_of("Error"), ("WWW-Authenticate",))
    responses = {"400": refused, "401": token, "503": unavailable}
    parameters = map(in_query, SUBSCRIBE_EVENTS)
    more = ("Jetstream-Forget",)
    return _upgrade("subscribeEvents", "Events as JSON, in the v2 wire", parameters, responses, more)


def _upgrade(
    name: str, summary: str, parameters: Iterable[Json], refusals: Json, more: Sequence[str] = ()
) -> Json:
    """Return the path of a WebSocket. `more` are header fields that only it has.

    `refusals` are responses beside 101 and 426.
    """
    handshake = ("Upgrade", "Sec-WebSocket-Accept", "Sec-WebSocket-Protocol")
    fields = header_fields(("Server", *handshake, "Jetstream-Wire", *POSITIONS, *more))
    responses = {
        "101": {"description": "events follow, in messages of the WebSocket", "headers": fields},
        "426": response("no handshake", SENTENCE, ("Upgrade", "Sec-WebSocket-Version")),
    }
    operation = _operation(name, summary, responses | refusals, parameters)
    return {"get": operation | {"description": _HANDSHAKE}}


def _event_stream() -> Json:
    """Return the path of events without a WebSocket."""
    parameters = (
        *map(in_query, EVENT_STREAM),
        in_header("Accept-Encoding", "zstd or gzip: the body is compressed", STRING),
        in_header("Last-Event-ID", "the position of the last event that the client has", EVENT_ID),
    )
    fields = ("Cache-Control", "X-Accel-Buffering", "Vary", "Jetstream-Wire", *POSITIONS)
    responses = {
        "200": response("events follow, until the end", EVENTS, ("Content-Encoding", *fields)),
        "204": response("the client has all events up to until", {}, fields),
        "400": response("a parameter that cannot be used: the sentence names it", SENTENCE),
        "401": _TOKEN,
        "406": response("no content coding that the client accepts", SENTENCE),
        "429": _ADDRESS,
        "503": response("there is no room", SENTENCE, ("Retry-After",)),
    }
    return _get("events", "Events without a WebSocket, by default in the v1 wire", responses, parameters)


def _explain() -> Json:
    """Return the path that tells how parameters are understood."""
    responses = {
        "200": response("what is understood, and what it selects", json_of("Explanation")),
        "400": response("a parameter that cannot be used: the sentence names it", SENTENCE),
        "401": _TOKEN,
        "429": response("too many requests", SENTENCE, ("Retry-After",)),
    }
    return _get("explain", "How the parameters are understood", responses, map(in_query, EXPLAIN))


def _gaps() -> Json:
    """Return the path of messages that never came."""
    responses = {
        "200": response("gaps, the oldest first, one a line", GAP_LINES, ("Link",)),
        "400": response("a time that cannot be read", SENTENCE),
        "401": _TOKEN,
        "429": response("too many requests", SENTENCE, ("Retry-After",)),
    }
    return _get("gaps", "Messages of repositories that never came", responses, map(in_query, GAPS))


def _filters() -> Json:
    """Return the path to which lists of DIDs are uploaded."""
    lines: Schema = {"type": "string", "description": "one DID a line"}
    responses = {
        "200": response("the list is kept", json_of("DidList")),
        "400": response("no list of DIDs", SENTENCE),
        "401": _TOKEN,
        "411": response("no Content-Length", SENTENCE),
        "429": response("too many uploads", SENTENCE, ("Retry-After",)),
        "503": response("no room for another list", SENTENCE, ("Retry-After",)),
    }
    body = {"required": True, "content": {"text/plain": {"schema": lines}, **json_of("Dids")}}
    operation = _operation("uploadFilter", "Upload a list of DIDs, for filter", responses)
    return {"post": operation | {"requestBody": body}}


def _subscribers() -> Json:
    """Return the path of the subscribers one by one."""
    responses = {
        "200": response("a page of them", json_of("Subscribers"), ("Cache-Control",)),
        "400": response("a number that cannot be read", SENTENCE),
        **_OPERATORS,
    }
    parameters = (
        in_query(Parameter("after", "the ID after which to begin: next of the page before", _NUMBER)),
        in_query(Parameter("limit", "how many, at most 1,000", _NUMBER)),
    )
    return _get("subscribers", "The subscribers, one by one, for operators", responses, parameters)


def _kick() -> Json:
    """Return the path with which operators disconnect subscribers."""
    responses = {
        "200": response("how many were disconnected", json_of("Kicked")),
        "400": response("a body that cannot be used: the sentence says why", SENTENCE),
        **_OPERATORS,
        "411": response("no Content-Length", SENTENCE),
    }
    operation = _operation("kick", "Disconnect subscribers, for operators", responses)
    return {"post": operation | {"requestBody": {"required": True, "content": json_of("Kick")}}}


def _dictionary() -> tuple[str, Json, Iterable[Json]]:
    """Return the summary, the responses and the parameters of our own dictionary.

    Two paths have them: that of XRPC is the same page.
    """
    bytes_: Json = {"application/octet-stream": {"schema": {"type": "string", "format": "binary"}}}
    fields = ("ETag", "Cache-Control", "X-Zstd-Dictionary-Id")
    responses = {
        "200": response("the dictionary (RFC 8878, section 5)", bytes_, fields),
        "304": response("the client has it", bytes_, fields),
        "400": response("id is not an integer", json_of("Error") | SENTENCE),
        "404": response("there is no dictionary of this ID", json_of("Error")),
    }
    parameters = (
        in_query(Parameter("id", "the ID that the dictionary must have", INTEGER)),
        in_header("If-None-Match", "the ETag of the dictionary that the client has", STRING),
    )
    return "Our own zstd dictionary, for zstdDictionary", responses, parameters


def _archive(nsid: str, method: str) -> Json:
    """Return the path of a method of an archive, which this server does not have.

    Clients that look for an archive learn that there is none.
    """
    responses = {"501": response("this server keeps no archive", json_of("Error"))}
    name = nsid.rpartition(".")[2]
    return {method.lower(): _operation(name, "A method of an archive", responses)}
