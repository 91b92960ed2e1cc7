"""Client libraries of other projects, unmodified, with captured frames."""

from __future__ import annotations

import json
import shutil
import subprocess
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from tests.builders import DID, LIKE, commit, create, delete, identity
from tests.fixtures import captured_frames, json_lines
from tests.foreign.conftest import missing
from tests.programs import Program, program
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, published, running, until

from jetstream.app import Service
from jetstream.settings import Address, Settings

ROOT = Path(__file__).resolve().parents[2]
NODE = ROOT / "tests" / "foreign" / "node"
# What npm says when the registry does not answer; everything else is a failure.
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ERR_SOCKET_TIMEOUT")
Event = dict[str, Any]


class Library(NamedTuple):
    """A client library: the program that uses it, and the path of its URL."""

    program: str
    path: str


LIBRARIES = [
    pytest.param(Library("skyware.mjs", "/v1/subscribe"), id="skyware"),
    pytest.param(
        Library("atcute.mjs", ""), id="atcute"
    ),  # it always uses /subscribe, and sends an options_update
]


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the locked libraries beside the programs that use them."""
    npm = shutil.which("npm")
    if npm is None or shutil.which("node") is None:
        missing("Node with npm")
    directory = tmp_path_factory.mktemp("node")
    for path in (*NODE.glob("*.mjs"), *NODE.glob("package*.json"), *(ROOT / "examples").glob("*.mjs")):
        shutil.copy(path, directory)
    done = subprocess.run(
        [npm, "ci", "--no-audit", "--no-fund"], cwd=directory, capture_output=True, text=True, check=False
    )
    if done.returncode and any(code in done.stderr for code in UNREACHABLE):
        pytest.skip(f"the package registry does not answer: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr
    return directory


@pytest.fixture(scope="session")
def pairs() -> list[tuple[int, bytes]]:
    """Return captured frames with their seqs."""
    return numbered(captured_frames())


@pytest.fixture(scope="session")
def expected() -> list[Event]:
    """Return the events that production served for them, without time_us."""
    events = [without_time(event) for event in json_lines("firehose/events.v1.jsonl")]
    assert len(events) == 92
    return events


def client(
    programs: Path, library: Library, port: int, cursor: int | None = None
) -> AbstractAsyncContextManager[Program]:
    """Start the program of a library."""
    url = f"ws://127.0.0.1:{port}{library.path}"
    return program("node", library.program, url, *([] if cursor is None else [str(cursor)]), cwd=programs)


async def events(seeing: Program, count: int) -> list[Event]:
    """Return the next events that a client sees."""
    return [json.loads(line) for line in await seeing.lines(count)]


def without_time(event: Event) -> Event:
    return {key: value for key, value in event.items() if key != "time_us"}


def times(events: list[Event]) -> list[int]:
    return [event["time_us"] for event in events]


async def is_next(seeing: Program, relay: Relay) -> bool:
    """Return whether a new commit is the next event of the client, so that it had received all others."""
    rkey = "after-all"
    relay.publish(numbered([commit(relay.history[-1][0] + 1, [delete(f"{LIKE}/{rkey}")])]))
    [event] = await events(seeing, 1)
    return bool(event["commit"]["rkey"] == rkey)


@pytest.mark.parametrize("library", LIBRARIES)
async def test_from_a_cursor_it_sees_every_commit(
    library: Library,
    programs: Path,
    pairs: list[tuple[int, bytes]],
    expected: list[Event],
    relay: Relay,
    start: Start,
) -> None:
    relay.publish(pairs)
    service = await start(wire="v1", upstream_cursor=0)
    await published(service, pairs[-1][0])
    async with client(programs, library, service.port, cursor=1) as seeing:
        seen = await events(seeing, len(expected))
        assert await is_next(seeing, relay)
    assert [without_time(event) for event in seen] == expected
    assert times(seen) == sorted(set(times(seen)))


@pytest.mark.parametrize("library", LIBRARIES)
async def test_live_it_sees_every_commit(
    library: Library,
    programs: Path,
    pairs: list[tuple[int, bytes]],
    expected: list[Event],
    relay: Relay,
    start: Start,
) -> None:
    service = await start(wire="v1", upstream_cursor=0)
    relay.publish(pairs[:20])
    await published(service, pairs[19][0])
    missed = service.log.statistics().events
    async with client(programs, library, service.port) as seeing:
        await until(lambda: len(service.delivery) == 1)
        relay.publish(pairs[20:])
        seen = await events(seeing, len(expected) - missed)
        assert await is_next(seeing, relay)
    assert 0 < missed < len(expected)
    assert [without_time(event) for event in seen] == expected[missed:]


@pytest.mark.parametrize("library", LIBRARIES)
async def test_across_a_restart_it_sees_every_commit_and_its_last_one_again(
    library: Library,
    programs: Path,
    pairs: list[tuple[int, bytes]],
    expected: list[Event],
    relay: Relay,
    tmp_path: Path,
) -> None:
    """Both libraries resume at the `time_us` of the last event, which a cursor includes."""
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, wire="v1", upstream_cursor=0)
    relay.publish(pairs[:45])
    async with AsyncExitStack() as clients:
        async with running(Service(settings)) as first:
            await published(first, pairs[44][0])
            count = first.log.statistics().events
            seeing = await clients.enter_async_context(client(programs, library, first.port, cursor=1))
            before = await events(seeing, count)
        relay.publish(pairs[45:])
        listen = Address("127.0.0.1", first.port)
        async with running(Service(replace(settings, listen=listen, upstream_cursor=None))):
            [again, *after] = await events(seeing, 1 + len(expected) - count)
            assert await is_next(seeing, relay)
    assert 0 < count < len(expected)
    assert again == before[-1]
    assert [without_time(event) for event in before + after] == expected
    assert times(before + after) == sorted(set(times(before + after)))


@pytest.mark.parametrize(
    ("example", "path", "wire"),
    [
        ("print_posts.mjs", "/subscribe", "classic"),
        ("print_posts.mjs", "/v1/subscribe", "classic"),
        ("print_posts_skyware.mjs", "/v1/subscribe", "classic"),
        ("print_posts_atcute.mjs", "", "v1"),
    ],
)
async def test_an_example_prints_posts(
    example: str, path: str, wire: str, programs: Path, relay: Relay, start: Start
) -> None:
    service = await start(upstream_cursor=0, wire=wire)
    url = f"ws://127.0.0.1:{service.port}{path}"
    async with program("node", "--experimental-websocket", example, url, cwd=programs) as printing:
        await until(lambda: len(service.delivery) == 1)
        post = create("app.bsky.feed.post/one", {"text": "grüß dich\n"})
        relay.publish(numbered([identity(1), commit(2, [delete(post.path)]), commit(3, [post])]))
        assert await printing.line() == f'{DID} "grüß dich\\n"\n'
