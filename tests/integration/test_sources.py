"""Several upstreams: each with a cursor, a state and conditions of its own, added and removed by a file."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, MutableMapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs
from tests.builders import error, identity
from tests.relay import Relay, drop_after, go_deaf, refuse, stay_silent
from tests.serving import LOOPBACK, Start, figures, get, health, reconnecting_at_once, running, until
from tests.signed import DID, TIME, Account
from tests.subscriber import subscribe

from jetstream.app import Service
from jetstream.errors import SettingError
from jetstream.eventlog import SourceCursor
from jetstream.eventlog.sqlite.store import SqliteLog
from jetstream.limits import Limits, RuntimeLimits, SourceLimits, UpstreamLimits
from jetstream.settings import Settings
from jetstream.simulator import frames
from jetstream.simulator.relays import Relay as SimulatedRelay
from jetstream.simulator.simulated_network import simulated_network
from jetstream.token_bucket import Rate
from jetstream.upstream import pipeline as pipeline_module
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.upstreams import Upstream

# PDSes connect as soon as they can, and are looked at all the time.
QUICK = reconnecting_at_once(
    replace(
        Limits(upstream=UpstreamLimits(settle_s=0.01, backoff_max_s=0.02)),
        sources=SourceLimits(
            pds=UpstreamLimits(settle_s=0.01, backoff_first_s=0.001, backoff_max_s=0.02),
            pds_connects_per_s=10_000.0,
            pds_status_s=0.0,
            gone_s=0.05,
            fault_pause_s=0.001,
            fault_pause_max_s=0.02,
        ),
        runtime=RuntimeLimits(watch_every_s=0.01),
    )
)


@pytest.fixture
async def another() -> AsyncIterator[Relay]:
    async with Relay() as another:
        yield another


def named(**relays: Relay) -> tuple[Upstream, ...]:
    return tuple(Upstream(name, relay.url) for name, relay in relays.items())


def publish(relay: Relay, *seqs: int) -> None:
    """Publish identities, each with a handle of its own: equal ones pass once."""
    relay.publish([(seq, identity(seq, handle=f"number-{seq}.test")) for seq in seqs])


async def seqs(service: Service, count: int) -> list[int]:
    """Return the seq of all identity events in the log, once there are so many."""
    await until(lambda: service.log.statistics().events >= count)
    async with subscribe(service.port, cursor=1) as subscriber:
        return [event["identity"]["seq"] for event in await subscriber.events(count)]


def states(service: Service) -> dict[str, str]:
    return {each.name: each.state for each in service.intake.sources}


async def stored(service: Service, **seqs: int) -> None:
    """Return once the cursors in the log are these, and no others."""
    wanted = {name: SourceCursor(seq) for name, seq in seqs.items()}
    await until(lambda: service.log.cursors == wanted)


def said(lines: Sequence[MutableMapping[str, Any]], event: str) -> list[MutableMapping[str, Any]]:
    """Return the log lines of an event."""
    return [line for line in lines if event in line["event"]]


# Each has its own


async def test_several_upstreams_are_read_and_each_is_resumed_after_its_own_cursor(
    relay: Relay, another: Relay, tmp_path: Path, start: Start
) -> None:
    upstreams = named(a=relay, b=another)
    cursors = (("a", 0), ("b", 500))
    publish(relay, 1, 2, 3)
    publish(another, 500, 501, 502)
    settings = Settings(upstream=upstreams, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=cursors)
    async with running(Service(settings, QUICK)) as service:
        assert sorted(await seqs(service, 5)) == [1, 2, 3, 501, 502]
        await stored(service, a=3, b=502)
        assert service.intake.sources.connected == ["a", "b"]
    publish(relay, 4)
    publish(another, 503)
    service = await start(upstream=upstreams, limits=QUICK)
    assert sorted((await seqs(service, 7))[5:]) == [4, 503]
    await stored(service, a=4, b=503)
    assert [asked.cursor for each in (relay, another) for asked in each.asked] == [0, 3, 500, 502]


async def test_what_another_upstream_repeats_after_a_restart_passes_once(
    relay: Relay, another: Relay, tmp_path: Path, start: Start
) -> None:
    upstreams = named(a=relay, b=another)
    publish(relay, 1)
    settings = Settings(
        upstream=upstreams, listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=(("a", 0), ("b", 0))
    )
    async with running(Service(settings, QUICK)) as service:
        await seqs(service, 1)
    another.publish([(7, identity(7, handle="number-1.test")), (8, identity(8, handle="new.test"))])
    service = await start(upstream=upstreams, limits=QUICK, upstream_cursor=(("a", 1), ("b", 0)))
    assert await seqs(service, 2) == [1, 8]


async def test_an_upstream_that_is_lost_comes_back_and_the_others_go_on(
    relay: Relay, another: Relay, start: Start
) -> None:
    service = await start(upstream=named(a=relay, b=another), limits=QUICK)
    await until(lambda: service.intake.sources.connected == ["a", "b"])
    publish(another, 500)
    await seqs(service, 1)
    publish(relay, 1)
    await seqs(service, 2)
    another.script += [refuse(503)] * 1_000
    await another.cut()
    await until(lambda: service.conditions.names == {"upstream_gone"})
    status, body = await health(service.port)
    assert (status, body["status"]) == (200, "degraded")
    (reason,) = body["reasons"]
    assert reason.startswith(f"b ({another.url}) has been gone for ")
    await until(lambda: "503" in service.conditions.reasons["upstream_gone b"])
    assert [(each["name"], each["state"]) for each in body["upstreams"]] == [
        ("a", "connected"),
        ("b", "reconnecting"),
    ]
    publish(relay, 2)
    publish(another, 501)
    assert await seqs(service, 3) == [500, 1, 2]
    relay.script += [refuse(503)] * 1_000
    await relay.cut()
    await until(lambda: service.conditions.names == {"upstreams_gone"})
    another.script.clear()
    await until(lambda: service.conditions.names == {"upstream_gone"})
    assert await seqs(service, 4) == [500, 1, 2, 501]
    relay.script.clear()
    await until(lambda: not service.conditions.names)


async def test_a_relay_that_ends_each_connection_at_once_is_gone(
    relay: Relay, another: Relay, start: Start
) -> None:
    another.script += [drop_after(0)] * 1_000
    limits = replace(QUICK, upstream=replace(QUICK.upstream, settle_s=30.0))
    service = await start(upstream=named(a=relay, b=another), limits=limits)
    publish(relay, 1)
    await until(lambda: "upstream_gone b" in service.conditions.reasons)
    accepted = another.accepted
    await another.wait_accepted(accepted + 3)
    publish(relay, 2)
    await until(lambda: service.conditions.names == {"upstream_gone"})
    another.script.clear()
    publish(another, 500)
    await another.wait_accepted(another.accepted + 1)
    publish(another, 501)
    await until(lambda: "upstream_gone b" not in service.conditions.reasons)


async def test_one_that_is_not_taken_is_a_condition_that_another_does_not_end(
    relay: Relay, another: Relay, start: Start
) -> None:
    async def send_info(connection: Any) -> None:
        await connection.accept()
        while True:
            await connection.send(error("x", seq=1)[:-1])
            await asyncio.sleep(0.001)

    another.script.append(send_info)
    limits = replace(QUICK, upstream=replace(QUICK.upstream, none_accepted_s=0.02))
    service = await start(upstream=named(a=relay, b=another), limits=limits)
    await relay.wait_accepted(1)
    await until(lambda: "frames_not_taken b" in service.conditions.reasons)
    assert "frames come from b;" in service.conditions.reasons["frames_not_taken b"]
    publish(relay, *range(1, 51))
    await seqs(service, 50)
    assert "frames_not_taken b" in service.conditions.reasons


# Errors of the server itself


NEVER_GONE = replace(QUICK, sources=replace(QUICK.sources, gone_s=60.0))


class Poison:
    """Lets the reading of the frame with a number fail, by an error of the server itself, while `acts`."""

    def __init__(self, seq: int, monkeypatch: pytest.MonkeyPatch) -> None:
        self.acts = True

        def read(frame: bytes, items_max: int) -> Envelope:
            envelope = read_envelope(frame, items_max)
            if self.acts and envelope.seq == seq:
                raise OverflowError("a fault of ours")
            return envelope

        monkeypatch.setattr(pipeline_module, "read_envelope", read)


@pytest.mark.parametrize("parts", [[(1, 2, 3, 4)], [(1, 2), (3, 4)], [(1,), (2,), (3,), (4,)]])
async def test_a_message_that_the_server_fails_at_stops_neither_it_nor_anything_before_the_message(
    parts: list[tuple[int, ...]], relay: Relay, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = Poison(3, monkeypatch)
    publish(relay, *parts[0])
    with capture_logs() as lines:
        service = await start(upstream=relay.url, upstream_cursor=0, limits=NEVER_GONE)
        (name,) = states(service)
        done = len(parts[0])
        for part in parts[1:]:
            if done < 3:
                await seqs(service, done)
            publish(relay, *part)
            done += len(part)
        await until(lambda: service.conditions.names == {"upstream_stuck"})
        status, body = await health(service.port)
        assert (status, body["status"]) == (200, "degraded")
        before = 2 if len(parts) > 1 else 0  # in one batch with the message, they come again with it
        (reason,) = body["reasons"]
        assert reason.startswith(f"{name}: nothing after {before} is taken: an error of the server itself")
        assert (await figures(service.port))['jetstream_internal_errors_total{doing="upstream"}'] >= 2
        poison.acts = False
        assert await seqs(service, 4) == [1, 2, 3, 4]
        await until(lambda: not service.conditions.names)
    assert service.log.statistics().events == 4
    assert [line["exc_info"] for line in said(lines, "error of the server itself") if "exc_info" in line] == [
        True
    ]


async def test_a_message_that_the_server_fails_at_holds_up_no_other_upstream(
    relay: Relay, another: Relay, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    poison = Poison(502, monkeypatch)
    cursors = (("a", 0), ("b", 0))
    service = await start(upstream=named(a=relay, b=another), limits=NEVER_GONE, upstream_cursor=cursors)
    publish(relay, 1)
    publish(another, 500, 501)
    await seqs(service, 3)
    publish(another, 502, 503)
    await until(lambda: list(service.conditions.reasons) == ["upstream_stuck b"])
    publish(relay, 2, 3)
    assert sorted((await seqs(service, 5))[3:]) == [2, 3]
    poison.acts = False
    assert sorted(await seqs(service, 7)) == [1, 2, 3, 500, 501, 502, 503]
    await until(lambda: not service.conditions.names)
    await stored(service, a=3, b=503)


async def test_metrics_and_the_page_show_each_upstream(relay: Relay, another: Relay, start: Start) -> None:
    relay.script.append(stay_silent)
    another.script += [refuse(503)] * 1_000
    service = await start(upstream=named(a=relay, b=another), limits=QUICK)
    await until(lambda: states(service) == {"a": "connected", "b": "reconnecting"})
    _, text = await get(service.port, "/metrics")
    lines = text.splitlines()
    assert 'jetstream_upstream_state{state="connected",upstream="a"} 1.0' in lines
    assert 'jetstream_upstream_state{state="connected",upstream="b"} 0.0' in lines
    assert 'jetstream_upstreams{kind="relay",state="reconnecting"} 1.0' in lines
    _, page = await get(service.port, "/")
    assert f"connected: {relay.url}" in page
    assert f"reconnecting: {another.url}" in page


# Cursors and names


async def test_a_number_cannot_be_the_cursor_of_two(relay: Relay, another: Relay, tmp_path: Path) -> None:
    settings = Settings(upstream=named(a=relay, b=another), data_dir=tmp_path, upstream_cursor=5)
    with pytest.raises(SettingError, match=r"--upstream-cursor: '5' .*: write name=seq, such as a=5"):
        await Service(settings).run()


async def test_a_cursor_of_no_upstream_is_refused_before_there_is_a_log(relay: Relay, tmp_path: Path) -> None:
    data_dir = tmp_path / "data"
    settings = Settings(upstream=named(a=relay), data_dir=data_dir, upstream_cursor=(("b", 5),))
    with pytest.raises(SettingError, match="--upstream-cursor: 'b' is no upstream: names are a"):
        await Service(settings).run()
    assert not data_dir.exists()


async def test_cursors_of_upstreams_that_are_gone_are_told_and_removed(
    relay: Relay, tmp_path: Path, start: Start
) -> None:
    publish(relay, 1)
    log = await SqliteLog.open(tmp_path)
    old = Settings(upstream=named(old=relay), listen=LOOPBACK, data_dir=tmp_path, upstream_cursor=0)
    await log.close()
    async with running(Service(old, QUICK)) as service:
        await stored(service, old=1)
    with capture_logs() as lines:
        service = await start(upstream=named(new=relay), limits=QUICK)
    assert [(line["stored"], line["upstream"]) for line in lines if "another" in line["event"]] == [
        ("old", "new")
    ]
    await relay.wait_accepted(2)
    publish(relay, 2)
    await stored(service, new=2)


# The file


async def test_a_file_that_is_read_again_adds_removes_and_replaces_pdses(
    relay: Relay, another: Relay, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "pds.txt"
    file.write_text(f"a={another.url}  # the first\n")
    async with Relay() as third:
        service = await start(upstream=named(r=relay), upstream_file=file, limits=QUICK)
        await until(lambda: service.intake.sources.connected == ["r", "a"])
        for upstream, seq in (relay, 1), (another, 101):
            publish(upstream, seq)
        await stored(service, r=1, a=101)

        # Another URL under the same name: it goes on after its cursor. The relay notices nothing.
        file.write_text(f"b={another.url}\na={third.url}\n")
        publish(third, 101, 102)
        with capture_logs() as lines:
            service.reload()
            await until(partial(said, lines, "read again"))
        (line,) = said(lines, "read again")
        assert {name: line[name] for name in ("added", "replaced", "unchanged")} == {
            "added": "1: b",
            "replaced": "1: a",
            "unchanged": 1,
        }
        await stored(service, r=1, a=102)
        await until(lambda: service.intake.sources.connected == ["r", "b", "a"])
        assert (third.asked[0].cursor, relay.accepted) == (101, 1)

        file.write_text(f"b={another.url}\n")
        service.reload()
        await stored(service, r=1)
        assert states(service) == {"r": "connected", "b": "connected"}
        await until(lambda: not third._connections)

        # One that comes back begins with what is new.
        file.write_text(f"a={third.url}\n")
        service.reload()
        await third.wait_accepted(2)
        assert third.asked[1].cursor is None


async def test_a_file_that_cannot_be_used_changes_nothing(relay: Relay, tmp_path: Path, start: Start) -> None:
    file = tmp_path / "pds.txt"
    file.write_text(f"a={relay.url}\n")
    service = await start(upstream=(), upstream_file=file, limits=QUICK)
    await relay.wait_accepted(1)
    for text, problem in (f"b={relay.url}\nftp://x\n", "line 2: 'ftp://x' is not"), (None, "cannot be read"):
        if text is None:
            file.unlink()
        else:
            file.write_text(text)
        with capture_logs() as lines:
            service.reload()
            await until(partial(said, lines, "the file"))
        (line,) = said(lines, "the file")
        assert (line["log_level"], problem in line["error"]) == ("error", True)
    assert (states(service), relay.accepted) == ({"a": "connected"}, 1)


@pytest.mark.parametrize("alone", [True, False])
async def test_a_file_without_a_pds_is_warned_of(
    relay: Relay, tmp_path: Path, start: Start, alone: bool
) -> None:
    file = tmp_path / "pds.txt"
    file.write_text("# none yet\n\n")
    with capture_logs() as lines:
        service = await start(upstream=() if alone else named(a=relay), upstream_file=file, limits=QUICK)
        assert len(said(lines, "the file names no PDS")) == 1
        service.reload()
        await until(partial(said, lines, "the file was read again"))
    warnings = said(lines, "the file names no PDS")
    expected = ("warning", str(file), 0 if alone else 1)
    assert [(line["log_level"], line["file"], line["others"]) for line in warnings] == [expected] * 2
    file.write_text(f"b={relay.url}\n")
    with capture_logs() as lines:
        service.reload()
        await until(partial(said, lines, "the file was read again"))
    assert said(lines, "the file names no PDS") == []


async def test_a_storm_of_signals_reads_the_file_a_few_times_and_then_as_it_is(
    relay: Relay, another: Relay, tmp_path: Path, start: Start
) -> None:
    file = tmp_path / "pds.txt"
    file.write_text(f"a={relay.url}\n")
    sources = replace(QUICK.sources, reloads=Rate(20.0, 2))
    service = await start(upstream=(), upstream_file=file, limits=replace(QUICK, sources=sources))
    await relay.wait_accepted(1)
    with capture_logs() as lines:
        for number in range(1_000):
            new = tmp_path / "new.txt"
            new.write_text(f"a={relay.url}\n" + f"b={another.url}\n" * (number % 2))
            new.replace(file)  # at once: a file that is half written has fewer PDSes
            service.reload()
            await asyncio.sleep(0)
        await another.wait_accepted(1)
        await until(lambda: states(service) == {"a": "connected", "b": "connected"})
    assert 1 <= len(said(lines, "read again")) < 500
    assert relay.accepted == 1


async def test_a_bad_file_at_the_start_ends_the_server(relay: Relay, tmp_path: Path) -> None:
    file = tmp_path / "pds.txt"
    file.write_text("a=b=c\n")
    settings = Settings(upstream=relay.url, upstream_file=file, data_dir=tmp_path)
    with pytest.raises(SettingError, match=r"--upstream-file: '.*pds.txt' line 1: 'a=b=c' "):
        await Service(settings).run()


async def test_a_pds_that_is_removed_while_it_hangs_or_fails_leaves_nothing(tmp_path: Path) -> None:
    file = tmp_path / "pds.txt"
    async with AsyncExitStack() as relays:
        deaf, refusing = [await relays.enter_async_context(Relay()) for _ in range(2)]
        deaf.script.append(go_deaf)
        refusing.script += [refuse(503)] * 10_000
        file.write_text(f"deaf={deaf.url}\nrefusing={refusing.url}\nnowhere=ws://127.0.0.1:9\n")
        settings = Settings(upstream=(), upstream_file=file, listen=LOOPBACK, data_dir=tmp_path)
        async with running(Service(settings, QUICK)) as service:
            await until(lambda: states(service)["deaf"] == "connected")
            await refusing.wait_asked(3)
            pds = service.intake.sources.pds()
            assert pds is not None
            assert (pds.states, pds.gone) == (
                {"connected": 1, "reconnecting": 2},
                ("refusing", "nowhere"),
            )
            file.write_text("")
            service.reload()
            await until(lambda: not service.intake.sources)
            asked = len(refusing.asked)
            await until(lambda: not deaf._connections)
            status, body = await health(service.port)
            assert (status, body["status"], body["upstream"], body["pds"]) == (200, "ok", None, None)
            assert len(refusing.asked) == asked


async def test_one_that_brings_only_what_is_known_is_taken(
    relay: Relay, another: Relay, start: Start
) -> None:
    account = Account()
    commits = [frames.Commit(DID, TIME, account.create(f"{number}")) for number in range(20)]
    limits = replace(QUICK, upstream=replace(QUICK.upstream, none_accepted_s=0.0))
    given: dict[str, Any] = {"upstream": named(a=relay, b=another), "upstream_cursor": (("a", 0), ("b", 500))}
    service = await start(limits=limits, **given)
    relay.publish((seq, frames.encode(commit, seq)) for seq, commit in enumerate(commits, 1))
    await stored(service, a=20)
    another.publish((seq, frames.encode(commit, seq)) for seq, commit in enumerate(commits, 501))
    await stored(service, a=20, b=520)
    assert not service.conditions.names
    assert service.log.statistics().events == 20


# A simulated network


async def test_two_simulated_relays_and_their_pdses_are_read_to_their_ends(tmp_path: Path) -> None:
    relays = (SimulatedRelay(name="a"), SimulatedRelay(name="b", seq=5_000_000))
    file = tmp_path / "pds.txt"
    async with simulated_network(relays=relays, pds=2).serving() as network:
        urls = network.firehose_urls
        upstreams = tuple(Upstream(name, urls[name]) for name in ("a", "b"))
        file.write_text("\n".join(f"{name}={url}" for name, url in urls.items() if name not in {"a", "b"}))
        settings = Settings(upstream=upstreams, upstream_file=file, listen=LOOPBACK, data_dir=tmp_path)
        async with running(Service(settings, QUICK)) as service:
            await network.wait_subscribed(4)
            network.emit(50)
            await network.wait_written()
            await until(lambda: {"a", "b"} <= service.log.cursors.keys())
            await until(lambda: service.log.cursors["b"].seq == 5_000_000 + service.log.cursors["a"].seq)
            await until(lambda: service.log.cursors["a"].seq == network.seq)
            assert service.log.statistics().events >= len(network.truth)
