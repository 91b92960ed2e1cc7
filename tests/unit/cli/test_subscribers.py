from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest

from jetstream import cli
from jetstream.cli.ask import read_token
from jetstream.cli.subscribers import summary, table
from jetstream.errors import SettingError

TOKEN = "operator-operator"
NO_FILTER = {"collections": [], "dids": {"number": 0, "some": []}, "sample": 100.0, "records": [], "text": []}
ROWS = [
    {
        "id": number,
        "address": "203.0.113.9",
        "token": "alice [red]" if number == 1 else None,
        "wire": "v1",
        "transport": "websocket",
        "compression": "zstd" if number == 1 else "none",
        "filter": NO_FILTER,
        "connected_us": 0,
        "state": "live" if number == 1 else "waiting",
        "lag_s": 75.0 if number == 2 else None,
        "messages": 1_200,
        "bytes": 648_000,
        "buffered_bytes": 0,
    }
    for number in (1, 2, 3)
]
Run = Callable[..., tuple[int, str, str]]


class Server:
    """Answers as a server with operators' tokens does, two subscribers a page."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, Any]] = []

    def answer(self, path: str, body: Any, token: str | None) -> tuple[int, object]:
        self.asked.append((path, body))
        if token != f"Bearer {TOKEN}":
            return 401, "needs a token: send it"
        if body is not None:
            known = {row["id"] for row in ROWS}
            unknown = [each for each in body["ids"] if each not in known]
            return 200, {"kicked": len(body["ids"]) - len(unknown), "unknown_ids": unknown}
        after = int(parse_qs(urlsplit(path).query)["after"][0])
        rows = [row for row in ROWS if int(str(row["id"])) > after][:2]
        return 200, {"total": 3, "next": rows[-1]["id"] if len(rows) == 2 else None, "subscribers": rows}


@pytest.fixture
def server() -> Iterator[tuple[Server, str]]:
    made = Server()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            size = self.headers.get("Content-Length")
            body = json.loads(self.rfile.read(int(size))) if size else None
            status, answer = made.answer(self.path, body, self.headers.get("Authorization"))
            data = answer.encode() if isinstance(answer, str) else json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def do_POST(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as listening:
        thread = Thread(target=listening.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield made, f"http://127.0.0.1:{listening.server_port}"
        finally:
            listening.shutdown()
            thread.join()


@pytest.fixture
def run(server: tuple[Server, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run `jetstream subscribers` with an operator's token; return the code, and what it printed."""
    file = tmp_path / "operators"
    file.write_text(f"# ours\nme:{TOKEN}\n")

    def run(*arguments: str, token: bool = True) -> tuple[int, str, str]:
        more = ["--token-file", str(file)] if token else []
        with pytest.raises(SystemExit) as ended:
            cli.main(["subscribers", *arguments, "--url", server[1], *more])
        captured = capsys.readouterr()
        return int(ended.value.code or 0), captured.out, captured.err

    return run


def test_columns_without_anything_are_left_out() -> None:
    def columns(*rows: dict[str, Any]) -> list[object]:
        return [column.header for column in table(list(rows), 0.0).columns]

    plain = {**ROWS[2], "token": None, "lag_s": None}
    assert {"token", "lag"}.isdisjoint(columns(plain))
    assert "token" in columns(plain, ROWS[0])
    assert "lag" in columns(plain, ROWS[1])


@pytest.mark.parametrize("figure", [1e300, -1e300, 10**30, -(10**30), 2**63])
def test_figures_that_no_time_has_are_shown_as_the_longest_or_none(figure: float) -> None:
    row = {**ROWS[1], "lag_s": figure, "connected_us": figure}
    assert table([row], 1e9).row_count == 1


def test_a_table_of_all_pages(run: Run, server: tuple[Server, str]) -> None:
    code, out, _ = run("list")
    assert code == 0
    assert "3 subscribers" in out
    assert [path for path, _ in server[0].asked] == [f"/subscribers.json?after={after}" for after in (0, 2)]
    lines = out.splitlines()
    assert "alice [red]" in out
    assert [line.split()[0] for line in lines[2:5]] == ["1", "2", "3"]
    for words in ("websocket zstd", "0:01:15", "waiting", "1,200", "648,000"):
        assert words in out


def test_json_lines(run: Run) -> None:
    code, out, _ = run("list", "--json")
    assert code == 0
    assert [json.loads(line) for line in out.splitlines()] == ROWS


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        (["2", "3"], {"ids": [2, 3], "addresses": [], "all": False}),
        (
            ["--address", "203.0.113.0/24", "--address", "::1", "--reason", "no more"],
            {"ids": [], "addresses": ["203.0.113.0/24", "::1"], "all": False, "reason": "no more"},
        ),
        (["--all"], {"ids": [], "addresses": [], "all": True}),
    ],
)
def test_who_is_disconnected(
    arguments: list[str], body: dict[str, object], run: Run, server: tuple[Server, str]
) -> None:
    code, out, err = run("kick", *arguments)
    assert (code, err) == (0, "")
    assert server[0].asked == [("/subscribers/kick", body)]
    assert out == f"disconnected {len(arguments) if body.get('ids') else 0}\n"


def test_who_has_gone_is_named(run: Run) -> None:
    assert run("kick", "2", "8", "9") == (0, "disconnected 1; not connected (any more): 8, 9\n", "")


def test_nobody_is_an_error(run: Run, server: tuple[Server, str]) -> None:
    code, _, err = run("kick")
    assert code == 2
    assert "names nobody: give an ID, --address or --all" in err
    assert server[0].asked == []


def test_a_server_that_wants_a_token_says_so(run: Run) -> None:
    code, _, err = run("list", token=False)
    assert code == 1
    assert "HTTP 401: needs a token: send it (here: --token-file)" in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("text", "token"),
    [("secret-token\n", "secret-token"), ("\n# x\nme:secret-token\nb:other", "secret-token")],
)
def test_the_token_of_a_file(text: str, token: str, tmp_path: Path) -> None:
    (file := tmp_path / "token").write_text(text)
    assert read_token(file) == token
    assert read_token(None) is None


@pytest.mark.parametrize("text", ["", "# x", "me:", f"me:sha256:{'0' * 64}", None])
def test_a_file_without_a_token(text: str | None, tmp_path: Path) -> None:
    file = tmp_path / "token"
    if text is not None:
        file.write_text(text)
    with pytest.raises(SettingError, match=r"^--token-file: "):
        read_token(file)


@pytest.mark.parametrize(
    ("wanted", "text"),
    [
        ({}, "all"),
        (NO_FILTER, "all"),
        ({"collections": ["a.b.c", "d.*"], "kinds": ["create"]}, "collections=a.b.c,d.* kinds=create"),
        ({"dids": {"number": 1, "some": ["did:plc:a"]}}, "dids=did:plc:a"),
        ({"dids": {"number": 9, "some": ["did:plc:a"]}, "sample": 2.5}, "9 dids sample=2.5"),
        ({"records": [["lang en"]], "text": ["cat"]}, "text=cat records"),
        ({"collections": ["a.b.c" * 20]}, "collections=" + ("a.b.c" * 20)[:47] + "…"),
    ],
)
def test_a_filter_in_a_few_words(wanted: dict[str, Any], text: str) -> None:
    assert summary(wanted) == text
