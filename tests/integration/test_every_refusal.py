"""Every refusal of a request: how it is provoked, its status, and its words."""

from __future__ import annotations

import ast
import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.serving import Start
from tests.unit.test_api_docs import trees

from jetstream.limits import Limits, WebLimits
from jetstream.metrics import BAD_REQUEST_REASONS, REFUSAL_REASONS
from jetstream.token_bucket import Rate

EVENTS = "/xrpc/network.bsky.jetstream.subscribeEvents"
HANDSHAKE = (
    "Connection: Upgrade",
    "Upgrade: websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
)
UNKNOWN = "zstdDictionary: '7' is not a dictionary here: the current one is "
NO_LIST = "body: 'of the request' is neither a list of DIDs nor {\"dids\":[…]}"
FULL = "0 subscribers are connected, and that is the limit: try again later"


def request(path: str = "/", *fields: str, method: str = "GET", version: str = "HTTP/1.1") -> bytes:
    return "\r\n".join([f"{method} {path} {version}", "Host: here", *fields, "", ""]).encode()


def upload(body: str) -> bytes:
    data = body.encode()
    return request("/filters", f"Content-Length: {len(data)}", "Connection: close", method="POST") + data


class Row(NamedTuple):
    """A refusal. `label` is its reason in the metrics, or its name in JSON, or empty."""

    status: int
    label: str
    data: bytes  # what a client sends
    text: str  # how the sentence begins; of JSON, the message
    settings: dict[str, Any] = {}  # noqa: RUF012 - never changed
    limits: WebLimits = WebLimits()


ROWS = [
    Row(400, "malformed", b"GET / HTTP/1.1\n", "a line of the request does not end in CR LF"),
    Row(400, "malformed", b"\r\n\r\n\r\n", "empty lines are not an HTTP request"),
    Row(400, "malformed", b"\x16\x03\x01", r"'\x16\x03\x01' does not begin an HTTP request"),
    Row(400, "malformed", b"GET / HTTP\r\n", "'GET / HTTP' is not a request line of HTTP/1.1"),
    Row(400, "malformed", request("/", "field"), "'field' is not a header field"),
    Row(400, "malformed", b"GET / HTTP/1.1\r\n\r\n", "the request has no Host field that names a host"),
    Row(400, "malformed", request("/", "Content-Length: x"), "Content-Length 'x' is not one number"),
    Row(414, "too_long", b"GET /" + b"x" * (1 << 20), "the request line is longer than 1048576 bytes: "),
    Row(431, "too_long", request("/", "a:" + "x" * (1 << 14)), "a header field is longer than 16384 bytes: "),
    Row(
        431,
        "too_long",
        request("/", *["a:" + "x" * 16_000] * 5),
        "the header fields are longer than 65536 bytes together: ",
    ),
    Row(431, "too_long", request("/", *["a:b"] * 100), "there are more than 100 header fields: send fewer"),
    Row(505, "version", request(version="HTTP/2.0"), "HTTP/2.0 is not spoken here: use HTTP/1.1"),
    Row(501, "body", request("/", "Transfer-Encoding: br"), "the coding of the body is not known here: "),
    Row(411, "body", request("/filters", method="POST"), "the request has no Content-Length: "),
    Row(
        413,
        "body",
        request("/filters", "Content-Length: 5000000", method="POST"),
        "the body has 5000000 bytes: it may have at most 4194304",
    ),
    Row(413, "body", request("/", "Content-Length: 1"), "a request has no body here: send none"),
    Row(
        408,
        "timeout",
        b"GET / HTTP/1.1\r\n",
        "the request was not whole within 0.05 s: send it faster",
        limits=WebLimits(request_timeout_s=0.05, deadline_check_s=0.01),
    ),
    Row(
        429,
        "flood",
        request("/health") * 2,
        "more than 1 requests a second on one connection: ask less often",
        limits=WebLimits(requests=Rate(1, 1)),
    ),
    Row(
        400,
        "handshake",
        request("/subscribe", *HANDSHAKE, version="HTTP/1.0"),
        "a WebSocket needs HTTP/1.1",
    ),
    Row(
        400,
        "handshake",
        request("/subscribe", *HANDSHAKE[:3], "Sec-WebSocket-Key: short"),
        "Sec-WebSocket-Key is not 16 bytes in base64",
    ),
    Row(
        426,
        "handshake",
        request("/subscribe", *HANDSHAKE[:2], "Sec-WebSocket-Version: 12"),
        "only version 13 of the WebSocket protocol is spoken here",
    ),
    Row(400, "parameter", request("/subscribe?limit=0", *HANDSHAKE), "limit: '0' is not a number of events "),
    Row(400, "parameter", request("/events?limit=0"), "limit: '0' is not a number of events "),
    Row(400, "parameter", request(f"{EVENTS}?limit=0", *HANDSHAKE), "limit: '0' is not a number of events "),
    Row(426, "transport", request("/subscribe"), "/subscribe is a WebSocket: connect to ws://here/subscribe"),
    Row(426, "transport", request(EVENTS), f"{EVENTS} is a WebSocket: connect to ws://here{EVENTS}"),
    Row(400, "transport", request("/events", *HANDSHAKE), "/events is no WebSocket: connect to ws://here/"),
    Row(406, "coding", request("/events", "Accept-Encoding: identity;q=0"), "Accept-Encoding: accept "),
    Row(
        503,
        "coding",
        request("/events", "Accept-Encoding: gzip, identity;q=0"),
        "0 event streams are compressed, and that is the limit: accept identity, or try again later",
        limits=WebLimits(compressed_streams_max=0),
    ),
    Row(400, "unknown_dictionary", request(f"{EVENTS}?zstdDictionary=7", *HANDSHAKE), UNKNOWN),
    Row(400, "parameter", request("/subscribe?zstdDictionary=7", *HANDSHAKE), UNKNOWN),
    Row(400, "cursor_too_old", request(f"{EVENTS}?cursor=5", *HANDSHAKE), "cursor: 5 is a seq of another "),
    *(
        Row(503, "full", request(path, *HANDSHAKE), FULL, {"max_subscribers": 0})
        for path in ("/subscribe", EVENTS)
    ),
    Row(503, "full", request("/events"), FULL, {"max_subscribers": 0}),
    Row(501, "MethodNotImplemented", request("/xrpc/a.b.c"), "method not implemented: a.b.c"),
    Row(
        501,
        "MethodNotImplemented",
        request("/xrpc/network.bsky.jetstream.getBlock"),
        "network.bsky.jetstream.getBlock: this server keeps no archive: use subscribeEvents, ",
    ),
    Row(
        405,
        "MethodNotAllowed",
        request(EVENTS, method="POST"),
        "network.bsky.jetstream.subscribeEvents is not for POST: use GET",
    ),
    Row(400, "InvalidRequest", request("/zstd-dictionary?id=x"), "id: 'x' is not an integer"),
    Row(404, "DictionaryNotFound", request("/zstd-dictionary?id=7"), "there is no dictionary 7 here: the "),
    Row(404, "", request("/nothing"), "there is nothing here: there are /, "),
    Row(405, "", request("/health", method="POST"), "/health is not for POST: use GET"),
    Row(405, "", request("/filters"), "/filters is not for GET: use POST"),
    Row(400, "", upload("{}"), NO_LIST),
    Row(400, "", upload("bob"), "body: 'bob' is not a DID, such as did:plc:…"),
    Row(
        429,
        "",
        upload("did:plc:a"),
        "too many lists are uploaded: try again later",
        limits=WebLimits(did_lists_read=Rate(1e-9, 0)),
    ),
    Row(
        503,
        "",
        upload("did:plc:a"),
        "there is no room for another list: try again later",
        limits=WebLimits(did_lists_max=0),
    ),
    Row(400, "", request("/explain?limit=0"), "limit: '0' is not a number of events "),
    Row(
        429,
        "",
        request("/explain"),
        "explanations are asked for too often: try again later",
        limits=WebLimits(explanations=Rate(1e-9, 0)),
    ),
]
# Those that need more than a row: the file and the name of the test.
ELSEWHERE = {
    (500, ""): ("test_untrusted.py", "test_errors_while_requests_are_answered"),
    (503, "overload"): ("test_untrusted.py", "test_unfinished_requests_are_bounded_together"),
    **{
        (429, f"address_{reason}"): ("test_address_limits.py", test)
        for reason, test in (
            ("connections", "test_a_connection_too_many_is_told_when_to_try_again"),
            ("connection_rate", "test_an_address_connects_no_faster_than_its_rate"),
            ("replays", "test_a_replay_too_many_is_refused_and_a_live_subscription_is_not"),
            ("replay_rate", "test_an_address_begins_replays_no_faster_than_its_rate"),
        )
    },
    (503, "ServiceUnavailable"): (
        "test_address_limits.py",
        "test_a_connection_too_many_is_told_when_to_try_again",
    ),
    **{
        (status, "unauthorized"): ("test_tokens.py", test)
        for status, test in (
            (401, "test_a_token_is_needed_for_events"),
            (403, "test_subscribers_are_for_programs_of_this_machine"),
        )
    },
    (400, "tls"): ("test_tls.py", "test_http_without_tls_is_not_answered"),
    (503, "log_unreadable"): (
        "test_roles.py",
        "test_a_cursor_that_cannot_be_judged_is_refused",
    ),
    (503, "no_dictionary"): (
        "test_compression.py",
        "test_the_public_dictionary_is_fetched_when_a_client_first_asks",
    ),
}
# Refusals that tell a client to come back, and when.
LATER = {"full", "coding", ""}


async def ask(port: int, data: bytes) -> tuple[int, dict[str, str], str]:
    """Send bytes; return the status, the header fields and the body of the last response."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(data)
    try:
        async with asyncio.timeout(20):
            for _ in range(data.count(b"GET /health") or 1):
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                first, *lines = head.rstrip().split("\r\n")
                fields = dict(line.split(": ", 1) for line in lines)
                body = await reader.readexactly(int(fields["Content-Length"]))
    finally:
        writer.close()
    return int(first.split()[1]), fields, body.decode()


@pytest.mark.parametrize("row", ROWS, ids=[f"{row.status}-{row.label}-{row.text[:30]}" for row in ROWS])
async def test_a_refusal_says_what_is_wrong(row: Row, start: Start) -> None:
    service = await start(limits=Limits(web=row.limits), **row.settings)
    status, fields, body = await ask(service.port, row.data)
    assert status == row.status
    if fields["Content-Type"] == "application/json":
        refusal = json.loads(body)
        assert refusal["message"].startswith(row.text)
        name = refusal["error"]
        assert name == row.label if row.label not in REFUSAL_REASONS else name in NAMES[status, row.label]
    else:
        assert fields["Content-Type"] == "text/plain; charset=utf-8"
        assert body.startswith(row.text)
        assert body.endswith("\n")
        assert body.count("\n") == 1
    assert ("Retry-After" in fields) == (status in (429, 503) and row.label in LATER)
    assert ("Allow" in fields) == (status == 405)
    assert ("Upgrade" in fields) == (status == 426)


# Names in JSON of refusals to subscribe.
NAMES = {
    (400, "parameter"): {"InvalidRequest"},
    (400, "unknown_dictionary"): {"UnknownZstdDictionary"},
    (400, "cursor_too_old"): {"CursorTooOld"},
    (503, "full"): {"ServiceUnavailable"},
}


# Where the status and the label are among the arguments of what makes a refusal.
AT: dict[str, tuple[int | None, int | None]] = {
    "BadRequest": (0, 1),
    "Refused": (1, 0),
    "unavailable": (None, 0),  # 503
    "_over": (None, 0),  # 429
    "error_response": (0, 1),
    "Denied": (0, None),
    "_refusal": (0, 1),
    "sentence": (0, None),
    "_later": (0, None),
}


def refusals() -> Iterator[tuple[int, str]]:
    """Yield the status and the label of each refusal in the source, where they are constants."""
    for _, tree in trees("web"):
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = ast.unparse(node.func).rpartition(".")[2]
                status, label = (constant(node, place) for place in AT.get(name, (None, None)))
                status = {"unavailable": 503, "_over": 429}.get(name, status)
                if status is not None:
                    yield status, "unauthorized" if name == "Denied" else label or ""


def constant(node: ast.Call, place: int | None) -> Any:
    """Return an argument if it is a constant, else None."""
    argument = None if place is None else node.args[place]
    return argument.value if isinstance(argument, ast.Constant) else None


def test_every_refusal_has_a_row() -> None:
    assert {(row.status, row.label) for row in ROWS} | set(ELSEWHERE) == set(refusals())
    labels = {label for _, label in refusals()}
    assert labels >= {*BAD_REQUEST_REASONS, *REFUSAL_REASONS}


def test_what_is_elsewhere_is_there() -> None:
    for file, name in ELSEWHERE.values():
        assert f"def {name}(" in Path(__file__).with_name(file).read_text()
