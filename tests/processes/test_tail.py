"""`jetstream tail` as a process: what it prints, what it says, and how it ends."""

from __future__ import annotations

import json
import os
import select
import shlex
import sys
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import replace
from pathlib import Path

import pytest
from tests.builders import DID as ALICE
from tests.builders import LIKE, commit, create, identity
from tests.programs import Program, program
from tests.relay import Relay, numbered
from tests.serving import LOOPBACK, Start, published, running, until
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.settings import Address, Settings
from jetstream.web.dialect import SHUTDOWN

TAIL = [sys.executable, "-m", "jetstream", "tail"]
BOB = "did:web:bob.example"
POST = "app.bsky.feed.post"
NOBODY = "ws://127.0.0.1:9/subscribe"  # the port of the discard protocol, which nobody serves


def tail(*arguments: str, shell: str = "") -> AbstractAsyncContextManager[Program]:
    """Start it, with a piece of `shell` behind it if given."""
    command = [*TAIL, *arguments]
    return program("bash", "-c", f"{shlex.join(command)} {shell}") if shell else program(*command)


@pytest.fixture
async def service(relay: Relay, start: Start) -> Service:
    """Serve five events: Alice's identity, and a post and a like of hers and of Bob's."""
    relay.publish(
        numbered(
            [
                identity(1),
                commit(2, [create(f"{POST}/one", {"text": "grüß dich\n"}), create(f"{LIKE}/two", {})]),
                commit(3, [create(f"{POST}/three", {}), create(f"{LIKE}/four", {})], repo=BOB),
            ]
        )
    )
    service = await start(upstream_cursor=0)
    await published(service, 3)
    return service


def host(service: Service) -> str:
    return f"127.0.0.1:{service.port}"


async def sent(service: Service, count: int) -> list[str]:
    """Return all that the server sends, line by line."""
    async with subscribe(service.port, cursor=0, queue=10) as subscriber:  # more than there are
        return [str(await subscriber.connection.recv()) + "\n" for _ in range(count)]


async def test_events_are_printed_as_they_were_received(service: Service) -> None:
    async with tail(host(service), "--cursor", "0", "--limit", "5") as running_tail:
        code, out, err = await running_tail.ended()
    assert code == 0
    assert out.splitlines(keepends=True) == await sent(service, 5)
    assert err == f"jetstream tail: connected to ws://{host(service)}/subscribe\n"


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--collection", LIKE, "--collection", "app.bsky.graph.*"], ["id", "two", "four"]),
        (["--did", BOB, "--did", "did:web:nobody.example", "--collection", POST], ["three"]),
        (
            ["--since", "1970-01-01T00:00:00Z", "--kind", "commit", "--operation", "create", "--did", BOB],
            ["three", "four"],
        ),
        (
            ["--since", "-1h", "--until", "2100-01-01T00:00:00Z", "--compress"],
            ["id", "one", "two", "three", "four"],
        ),
        (["--since", "1h", "--kind", "identity", "--compress"], ["id"]),
    ],
)
async def test_flags_filter(flags: list[str], expected: list[str], service: Service) -> None:
    begin = [] if "--since" in flags else ["--cursor", "0"]
    async with tail(host(service), *begin, *flags, "--limit", str(len(expected))) as running_tail:
        code, out, _ = await running_tail.ended()
    events = [json.loads(line) for line in out.splitlines()]
    assert [event["commit"]["rkey"] if event["type"] == "com" else "id" for event in events] == expected
    assert code == 0


async def test_a_cursor_is_where_it_begins(service: Service) -> None:
    third = json.loads((await sent(service, 5))[2])["time_us"]
    async with tail(host(service), "--cursor", str(third), "--limit", "1") as running_tail:
        code, out, _ = await running_tail.ended()
    assert (code, json.loads(out)["time_us"]) == (0, third)


async def test_without_a_cursor_it_prints_what_comes(service: Service, relay: Relay) -> None:
    async with tail(host(service), "--limit", "1") as running_tail:
        assert "connected" in await running_tail.error_line()
        relay.publish(numbered([identity(4, did=BOB)]))
        code, out, _ = await running_tail.ended()
    assert (code, json.loads(out)["did"]) == (0, BOB)


async def test_a_store_is_where_it_begins_the_next_time(service: Service, tmp_path: Path) -> None:
    lines, file = await sent(service, 5), tmp_path / "tail.cursor"
    for expected in (lines[:2], lines[2:4]):
        flags = ("--store", str(file), "--cursor", "0", "--limit", "2", "--heartbeat", "30")
        async with tail(host(service), *flags) as running_tail:
            code, out, _ = await running_tail.ended()
        assert (code, out.splitlines(keepends=True)) == (0, expected)
    assert int(file.read_text()) == json.loads(lines[3])["time_us"] + 1


async def test_a_file_that_has_no_cursor_is_named(tmp_path: Path) -> None:
    file = tmp_path / "tail.cursor"
    file.write_text("yesterday")
    async with tail(NOBODY, "--store", str(file)) as running_tail:
        code, out, err = await running_tail.ended()
    assert (code, out) == (1, "")
    assert err.startswith(f"jetstream: {file}: has 'yesterday'")


async def test_another_server_is_read_when_the_first_fails(service: Service) -> None:
    async with tail(NOBODY, host(service), "--cursor", "0", "--limit", "1") as running_tail:
        code, out, err = await running_tail.ended()
    assert (code, out) == (0, (await sent(service, 1))[0])
    assert err.splitlines()[-1] == f"jetstream tail: connected to ws://{host(service)}/subscribe"


async def test_it_ends_before_a_time(service: Service) -> None:
    lines = await sent(service, 5)
    fourth = json.loads(lines[3])["time_us"]
    async with tail(host(service), "--cursor", "0", "--until", str(fourth)) as running_tail:
        code, out, err = await running_tail.ended()
    assert (code, out.splitlines(keepends=True)) == (0, lines[:3])
    assert err == f"jetstream tail: connected to ws://{host(service)}/subscribe\n"


@pytest.mark.parametrize(
    ("flags", "error"),
    [
        (["--until", "soon"], "--until: 'soon' is not a time"),
        (["--kind", "commits"], "commits"),
    ],
)
async def test_a_wrong_flag_is_named(flags: list[str], error: str) -> None:
    async with tail(NOBODY, *flags) as running_tail:
        code, out, err = await running_tail.ended()
    assert (code, out) == (2, "")
    assert error in err
    assert len(err.splitlines()) == 1


async def test_a_path_selects_the_v1_wire(service: Service) -> None:
    async with tail(f"http://{host(service)}/v1/subscribe?cursor=0", "--limit", "1") as running_tail:
        code, out, _ = await running_tail.ended()
    assert (code, json.loads(out)["kind"]) == (0, "identity")


async def test_each_event_is_printed_at_once(service: Service, relay: Relay) -> None:
    async with tail(host(service), "--cursor", "0") as running_tail:
        lines = await running_tail.lines(5)
        relay.publish(numbered([identity(4)]))
        lines.append(await running_tail.line())
    assert lines == await sent(service, 6)


async def test_a_restart_of_the_server_is_reported_and_nothing_lost_or_repeated(
    relay: Relay, tmp_path: Path
) -> None:
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
    relay.publish(numbered([identity(1), identity(2)]))
    async with AsyncExitStack() as tails:
        async with running(Service(settings)) as first:
            running_tail = await tails.enter_async_context(tail(host(first), "--cursor", "0", "--limit", "4"))
            lines = await running_tail.lines(2)
        relay.publish(numbered([identity(3), identity(4)]))
        listen = Address("127.0.0.1", first.port)
        async with running(Service(replace(settings, listen=listen, upstream_cursor=None))) as second:
            code, out, err = await running_tail.ended()
            assert lines + out.splitlines(keepends=True) == await sent(second, 4)
    after = json.loads(lines[-1])["time_us"] + 1
    reason = f"{SHUTDOWN.text}; cursor={after}"
    assert [line.removeprefix("jetstream tail: ") for line in err.splitlines()] == [
        f"connected to ws://{host(first)}/subscribe",
        f"connection lost: closed by the server, 1001 {reason}; reconnecting at cursor {after}",
        f"reconnected to ws://{host(first)}/subscribe",
    ]
    assert code == 0


async def test_a_server_that_does_not_listen_is_reported_once_and_tried_again(
    relay: Relay, tmp_path: Path
) -> None:
    settings = Settings(upstream=relay.url, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
    async with running(Service(settings)) as service:
        url = f"ws://{host(service)}/subscribe"
    relay.publish(numbered([identity(1)]))
    async with tail(url, "--cursor", "0", "--limit", "1") as running_tail:
        assert await running_tail.error_line() == (
            f"jetstream tail: cannot connect to {url}: Connection refused; trying again\n"
        )
        async with running(Service(replace(settings, listen=Address("127.0.0.1", service.port)))):
            code, out, err = await running_tail.ended()
    assert (code, err) == (0, f"jetstream tail: connected to {url}\n")
    assert json.loads(out)["did"] == ALICE


async def test_a_refusal_ends_it_with_the_servers_message(service: Service) -> None:
    async with tail(f"{host(service)}?maxMessageSizeBytes=some") as running_tail:
        code, out, err = await running_tail.ended()
    assert (code, out) == (1, "")
    assert err == (
        f"jetstream: ws://{host(service)}/subscribe: refused, HTTP 400: "
        "maxMessageSizeBytes: 'some' is not a number of bytes\n"
    )


async def test_a_server_that_is_not_a_jetstream_ends_it(service: Service) -> None:
    async with tail(f"{host(service)}/metrics") as running_tail:
        code, _, err = await running_tail.ended()
    assert code == 1
    assert err.startswith(f"jetstream: ws://{host(service)}/metrics: refused, HTTP 200: ")
    assert err.count("\n") == 1


@pytest.mark.parametrize("flags", [["--cursor", "0"], ["--cursor", "0", "--did", ALICE]])
async def test_a_closed_pipe_ends_it_silently_and_at_once(flags: list[str], service: Service) -> None:
    """Nothing more will be sent, so only the pipe itself can tell."""
    async with tail(host(service), *flags, shell="| head -n 2; echo ${PIPESTATUS[0]}") as running_tail:
        code, out, err = await running_tail.ended()
    lines = out.splitlines(keepends=True)
    assert lines[:2] == (await sent(service, 5))[:2]
    assert lines[2:] == ["0\n"]
    assert err == f"jetstream tail: connected to ws://{host(service)}/subscribe\n"
    assert code == 0


async def test_a_pipe_closed_while_events_flow_ends_it_silently(service: Service, relay: Relay) -> None:
    async with tail(host(service), "--cursor", "0", shell="| head -n 500 >/dev/null") as running_tail:
        relay.publish(numbered(identity(seq) for seq in range(4, 3000)))
        code, _, err = await running_tail.ended()
    assert code == 0
    assert err == f"jetstream tail: connected to ws://{host(service)}/subscribe\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="/dev/full is not on this system")
async def test_a_full_disk_is_reported(service: Service) -> None:
    async with tail(host(service), "--cursor", "0", shell="> /dev/full") as running_tail:
        code, _, err = await running_tail.ended()
    assert code == 1
    assert err.splitlines()[1:] == ["jetstream: cannot write to standard output: No space left on device"]


async def test_ctrl_c_ends_it_silently(service: Service) -> None:
    async with tail(host(service), "--cursor", "0") as running_tail:
        await running_tail.lines(5)
        running_tail.interrupt()
        code, out, err = await running_tail.ended()
    assert (code, out) == (130, "")
    assert err == f"jetstream tail: connected to ws://{host(service)}/subscribe\n"


async def test_ctrl_c_ends_it_while_it_cannot_connect() -> None:
    async with tail(NOBODY) as running_tail:
        line = await running_tail.error_line()
        running_tail.interrupt()
        code, out, err = await running_tail.ended()
    assert line == f"jetstream tail: cannot connect to {NOBODY}: Connection refused; trying again\n"
    assert (code, out, err) == (130, "", "")


async def test_ctrl_c_ends_it_while_its_reader_has_stopped_reading(service: Service, relay: Relay) -> None:
    """A pipe holds 64 KiB: the rest of a megabyte waits in a write."""
    relay.publish(
        numbered(commit(seq, [create(f"{POST}/self", {"text": "x" * 1000})]) for seq in range(4, 1000))
    )
    await published(service, 999)
    unread, written = os.pipe()
    async with program(*TAIL, host(service), "--cursor", "0", stdout=written) as running_tail:
        await until(lambda: not select.select([], [written], [], 0)[1])
        running_tail.interrupt()
        code, _, err = await running_tail.ended()
    os.close(unread)
    os.close(written)
    assert code == 130
    assert err == f"jetstream tail: connected to ws://{host(service)}/subscribe\n"
