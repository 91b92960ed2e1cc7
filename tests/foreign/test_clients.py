"""Client libraries of other projects, unmodified, with captured frames."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.builders import LIKE, commit, delete
from tests.fixtures import captured_frames, fixture, json_lines
from tests.foreign.clients import CLIENTS, Client, Event
from tests.programs import Program, program
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, published, running, until

from jetstream.app import Service
from jetstream.settings import Address, Settings

# A build takes minutes: that of the Rust client includes OpenSSL.
pytestmark = pytest.mark.timeout(1200)

Built = Callable[[Client], list[str | Path]]


class Use(NamedTuple):
    """A client with one of its ways to receive messages."""

    client: Client
    compress: bool


USES = [
    pytest.param(Use(client, compress), id=f"{client.name}{', zstd' if compress else ''}")
    for client in CLIENTS
    for compress in ([False, True] if client.compresses else [False])
]
Run = Callable[..., AbstractAsyncContextManager[Program]]


@pytest.fixture(params=USES)
def use(request: pytest.FixtureRequest) -> Use:
    """Return each use of each client, in turn."""
    chosen: Use = request.param
    return chosen


@pytest.fixture(scope="session")
def built(tmp_path_factory: pytest.TempPathFactory) -> Built:
    """Return a function that builds the program of a client, once."""
    commands: dict[str, list[str | Path]] = {}

    def build(client: Client) -> list[str | Path]:
        if client.name not in commands:
            commands[client.name] = client.build(tmp_path_factory.mktemp("client"))
        return commands[client.name]

    return build


@pytest.fixture(scope="session")
def pairs() -> list[tuple[int, bytes]]:
    """Return captured frames with their seqs."""
    return numbered(captured_frames())


@pytest.fixture
def expected(use: Use) -> list[Event]:
    """Return what the client shows of the events that production served for them, without time_us."""
    events = [without_time(event) for event in json_lines("firehose/events.v1.jsonl")]
    assert len(events) == 92
    return [use.client.shows(event) for event in events]


@pytest.fixture
def dictionary() -> str:
    """Return the setting for the dictionary that clients have built in."""
    return str(fixture("firehose/legacy_subscribe.zdict"))


@pytest.fixture
def serve(start: Start, dictionary: str) -> Start:
    """Return a function that starts a server with the dictionary, from the oldest frame on."""
    return partial(start, upstream_cursor=0, zstd_dictionary=dictionary)


@pytest.fixture
def run(use: Use, built: Built) -> Run:
    """Return a function that starts the program of the client. A cursor of 0 means live."""

    def run(
        port: int, cursor: int = 0, collections: Sequence[str] = ()
    ) -> AbstractAsyncContextManager[Program]:
        command = use.client.command(built(use.client), port, cursor, collections, compress=use.compress)
        return program(*command)

    return run


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


async def test_from_a_cursor_it_sees_every_commit(
    run: Run, pairs: list[tuple[int, bytes]], expected: list[Event], relay: Relay, serve: Start
) -> None:
    relay.publish(pairs)
    service = await serve()
    await published(service, pairs[-1][0])
    async with run(service.port, cursor=1) as seeing:
        seen = await events(seeing, len(expected))
        assert await is_next(seeing, relay)
    assert [without_time(event) for event in seen] == expected
    assert times(seen) == sorted(set(times(seen)))


async def test_live_it_sees_every_commit(
    run: Run, pairs: list[tuple[int, bytes]], expected: list[Event], relay: Relay, serve: Start
) -> None:
    service = await serve()
    relay.publish(pairs[:20])
    await published(service, pairs[19][0])
    missed = service.log.statistics().events
    async with run(service.port) as seeing:
        await until(lambda: len(service.delivery) == 1)
        relay.publish(pairs[20:])
        seen = await events(seeing, len(expected) - missed)
        assert await is_next(seeing, relay)
    assert 0 < missed < len(expected)
    assert [without_time(event) for event in seen] == expected[missed:]


async def test_filtered_it_sees_the_commits_that_it_wants(
    run: Run, pairs: list[tuple[int, bytes]], expected: list[Event], relay: Relay, serve: Start
) -> None:
    wanted = [event for event in expected if "commit" not in event or event["commit"]["collection"] == LIKE]
    relay.publish(pairs)
    service = await serve()
    await published(service, pairs[-1][0])
    async with run(service.port, 1, [LIKE]) as seeing:
        seen = await events(seeing, len(wanted))
        assert await is_next(seeing, relay)
    assert 0 < len(wanted) < len(expected)
    assert [without_time(event) for event in seen] == wanted


async def test_across_a_restart_it_sees_every_commit(
    use: Use,
    run: Run,
    pairs: list[tuple[int, bytes]],
    expected: list[Event],
    dictionary: str,
    relay: Relay,
    tmp_path: Path,
) -> None:
    """Some libraries resume at the `time_us` of the last event, which a cursor includes; see `repeats`."""
    settings = Settings(
        upstream=relay.url,
        listen=LOOPBACK,
        data_dir=tmp_path,
        zstd_dictionary=dictionary,
        upstream_cursor=0,
    )
    relay.publish(pairs[:45])
    async with AsyncExitStack() as clients:
        async with running(Service(settings)) as first:
            await published(first, pairs[44][0])
            count = first.log.statistics().events
            seeing = await clients.enter_async_context(run(first.port, cursor=1))
            before = await events(seeing, count)
        relay.publish(pairs[45:])
        listen = Address("127.0.0.1", first.port)
        again = {"none": [], "last": before[-1:], "all": before}[use.client.repeats]
        async with running(Service(replace(settings, listen=listen, upstream_cursor=None))):
            after = await events(seeing, len(again) + len(expected) - count)
            assert await is_next(seeing, relay)
    assert 0 < count < len(expected)
    assert after[: len(again)] == again
    seen = before + after[len(again) :]
    assert [without_time(event) for event in seen] == expected
    assert times(seen) == sorted(set(times(seen)))
