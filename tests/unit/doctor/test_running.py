from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from jetstream.doctor.running import check_running, is_jetstream
from jetstream.settings import Address

LOOPBACK = "127.0.0.1"


@contextmanager
def serving(answers: Mapping[str, tuple[int, bytes]], name: str = "jetstream/0.1.0") -> Iterator[Address]:
    """Answer each path with its status and body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, body = answers.get(self.path, (404, b""))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def version_string(self) -> str:
            return name

        def log_message(self, *_arguments: object) -> None:
            pass

    with ThreadingHTTPServer((LOOPBACK, 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Address(LOOPBACK, server.server_address[1])
        finally:
            server.shutdown()
            thread.join()


def said(status: int, **body: object) -> tuple[int, bytes]:
    return status, json.dumps(body).encode()


def test_another_server_is_not_ours() -> None:
    with serving({"/health": said(200, reasons=["none of ours"])}, name="other/1") as address:
        assert not is_jetstream(address)
        assert list(check_running(address)) == []
    assert not is_jetstream(Address(LOOPBACK, 9))
    assert list(check_running(Address(LOOPBACK, 9))) == []


def test_a_server_that_is_well_is_no_finding() -> None:
    answers = {"/health": said(200, reasons=[]), "/ready": said(200, ready=True, not_ready=[])}
    with serving(answers) as address:
        assert is_jetstream(address)
        assert list(check_running(address)) == []


def test_what_a_server_says_is_wrong_is_found() -> None:
    check = {"check": "upstream_idle", "text": "no frame came", "hint": "check --upstream"}
    answers = {
        "/health": said(503, reasons=["the clock has stepped"]),
        "/ready": said(503, ready=False, not_ready=[check]),
    }
    with serving(answers) as address:
        assert is_jetstream(address)
        assert [each.line() for each in check_running(address)] == [
            f"fail  running   the server at {address} is not ready: no frame came - check --upstream",
            f"warn  running   the server at {address}: the clock has stepped",
        ]


def test_a_server_of_ours_that_does_not_answer_with_json_is_ours() -> None:
    with serving({"/health": (429, b"too many connections"), "/ready": (429, b"[]")}) as address:
        assert is_jetstream(address)
        assert list(check_running(address)) == []
