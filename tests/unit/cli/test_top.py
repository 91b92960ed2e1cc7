from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import StringIO
from pathlib import Path
from threading import Thread

import pytest
from rich.console import Console, RenderableType
from rich.text import Text

from jetstream import cli
from jetstream.cli.ask import NoAnswer, address_of
from jetstream.cli.top import PATH, fetch, screen, watch
from jetstream.errors import SettingError

EXAMPLE = (Path(__file__).parent / "status.json").read_bytes()


@contextmanager
def serving(body: bytes, status: int = 200) -> Iterator[str]:
    """Answer `/status.json` with a body; give the URL of the server."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            found = status if self.path == "/status.json" else 404
            self.send_response(found)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("localhost:6008", "http://localhost:6008/status.json"),
        ("jetstream.example", "http://jetstream.example/status.json"),
        ("https://jetstream.example/", "https://jetstream.example/status.json"),
        ("wss://jetstream.example/subscribe?cursor=0", "https://jetstream.example/status.json"),
        ("ws://[::1]:6008", "http://[::1]:6008/status.json"),
        ("http://me:hunter2@a:1", "http://a:1/status.json"),
    ],
)
def test_the_address_of_the_figures(text: str, url: str) -> None:
    assert address_of(text, PATH) == url


@pytest.mark.parametrize("text", ["ftp://a", "http://", "a b", "http://a:0", "http://a:x", "http://[::1", ""])
def test_what_is_no_server_is_refused(text: str) -> None:
    with pytest.raises(SettingError, match=r"^URL: "):
        address_of(text, PATH)


def test_without_a_terminal_one_screen_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(EXAMPLE) as url, pytest.raises(SystemExit) as ended:
        cli.main(["top", url])
    out = capsys.readouterr().out
    assert not ended.value.code
    assert out.count("Jetstream 1.0.0") == 1
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{}", 404, "HTTP 404: is this a Jetstream server of ours?"),
        (b"hello", 200, "does not answer with JSON"),
        (b"[]", 200, "does not answer with a status"),
    ],
)
def test_other_answers_exit_1_with_one_line(
    body: bytes, status: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(body, status) as url, pytest.raises(SystemExit) as ended:
        cli.main(["top", url])
    err = capsys.readouterr().err
    assert ended.value.code == 1
    assert words in err
    assert err.count("\n") == 1


def test_a_server_that_is_not_there_is_an_error_once_and_a_screen_when_live() -> None:
    with pytest.raises(NoAnswer, match="refused"):
        fetch("http://127.0.0.1:9/status.json")
    out = StringIO()
    Console(file=out, width=100).print(screen("http://127.0.0.1:9/status.json", "http://a"))
    assert "http://a does not answer" in out.getvalue()
    assert "Ctrl-C ends this" in out.getvalue()


def test_the_screen_is_renewed_until_it_is_interrupted() -> None:
    looks: list[int] = []
    waits: list[float] = []

    def look() -> RenderableType:
        looks.append(len(looks))
        return Text(f"look {len(looks)}")

    def sleep(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 3:
            raise KeyboardInterrupt

    out = StringIO()
    watch(Console(file=out, force_terminal=True, width=80, height=5), look, 2.0, sleep)
    assert (len(looks), waits) == (3, [2.0, 2.0, 2.0])
    assert "look 3" in out.getvalue()
    assert out.getvalue().endswith("\x1b[?25h\x1b[?1049l")  # the cursor and the old screen are shown again


def test_figures_are_read_as_they_are() -> None:
    with serving(EXAMPLE) as url:
        assert fetch(address_of(url, PATH)) == json.loads(EXAMPLE)
