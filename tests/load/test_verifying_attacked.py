"""A server that verifies, on a full disk, and among relays of which one lies."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import pytest
from aiohttp import web
from structlog.testing import capture_logs
from tests.full_disk import fill, small_disk
from tests.integration.test_verifying import (
    LIMITS as MERGING,
)
from tests.integration.test_verifying import (
    by_account,
    events,
    expected,
    keys_of,
    patient,
    settled,
    truth,
    verdicts,
)
from tests.plc import http_server
from tests.relay import Relay, numbered
from tests.serving import Start, until
from tests.signed import DID, KEY, TIME, Account, resigned
from tests.subscriber import subscribe
from tests.unit.identity.accounts import document

from jetstream.app import Service
from jetstream.atproto.compact_did import compact_did
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.simulator import frames
from jetstream.simulator.repo import Revision
from jetstream.simulator.signing import K256Key
from jetstream.simulator.simulated_network import simulated_network
from jetstream.upstreams import Upstream
from jetstream.verify.chain import State

COMMITS = 300
OTHER = K256Key(b"\x09" * 32)


async def test_a_server_waits_for_its_disk_and_loses_nothing(start: Start, tmp_path: Path) -> None:
    """The log, the states and the keys are all on the disk that is full."""
    network = simulated_network(repos=400, records=2, seed=4)
    with small_disk(tmp_path / "disk", "24m") as disk:
        async with network.serving():
            service = await start(
                limits=MERGING,
                data_dir=disk / "data",
                upstream=network.firehose_url,
                upstream_cursor=0,
                verify="full",
                **keys_of(network),
            )
            network.emit(50)
            await settled(service, network)
            filler = fill(disk)
            network.emit(1_500)
            await until(lambda: service.conditions.reasons)
            filler.unlink()
            await settled(service, network)
            await until(lambda: not service.conditions.reasons)
            assert await verdicts(service) == expected(network)
            served = await events(service)
            assert by_account(served) == by_account(truth(network))
            revs = {event["did"]: event["commit"]["rev"] for event in served if event["kind"] == "commit"}
            for did, rev in revs.items():
                state = service.log.repo(compact_did(did))
                assert state is None or State.unpacked(state).rev == rev


async def directory(request: web.Request) -> web.StreamResponse:
    """Answer with the document. It keeps no audit logs."""
    if request.path != f"/{DID}":
        return web.Response(status=404)
    return web.json_response(document(DID, parse_multikey(KEY.multibase)))


@pytest.mark.parametrize("mode", ["signature", "full"])
@pytest.mark.parametrize("first", ["liar", "honest"])
async def test_a_relay_that_sends_other_data_under_the_same_revs_takes_nothing_away(
    start: Start, relay: Relay, mode: str, first: str
) -> None:
    """Its copies come before those of the honest relay, or after them."""
    account = Account()
    good = [account.create(f"{number}") for number in range(COMMITS)]
    forger = Account(OTHER)
    bad = [
        resigned(each, each.commit.cid, OTHER) if number % 2 else forger.create(f"forged{number}")
        for number, each in enumerate(good)
    ]
    async with Relay() as liar, http_server(directory) as port:
        with capture_logs() as lines:
            service = await start(
                limits=MERGING,
                upstream=(Upstream("liar", liar.url), Upstream("honest", relay.url)),
                upstream_cursor=(("liar", 0), ("honest", 0)),
                verify=mode,
                plc_url=(f"http://127.0.0.1:{port}",),
            )
            sent = {"liar": (liar, bad), "honest": (relay, good)}
            async with subscribe(service.port, cursor=1) as reader:
                for name in sorted(sent, key=lambda name: name != first):
                    server, revisions = sent[name]
                    publish(server, revisions)
                served = await reader.events(COMMITS)
        assert [event["commit"]["rkey"] for event in served] == [f"{number}" for number in range(COMMITS)]
        refusals = [line for line in lines if line["event"].startswith("refused")]
        assert len(refusals) <= 4


@pytest.mark.parametrize(("unproven", "verdict"), [("pass", "replay"), ("drop", "refused: unproven")])
async def test_a_relay_that_takes_proofs_away_leaves_nothing_out(
    start: Start, relay: Relay, unproven: str, verdict: str
) -> None:
    """Its copies, without one of two ops, come before those of the honest relay."""
    account = Account()
    good = [account.create(f"{number}", f"{number}-left-out") for number in range(20)]
    bad = [each._replace(prev_data=None, ops=each.ops[:1]) for each in good]
    async with Relay() as liar, http_server(directory) as port:
        service = await start(
            limits=patient(30.0),
            upstream=(Upstream("liar", liar.url), Upstream("honest", relay.url)),
            upstream_cursor=(("liar", 0), ("honest", 0)),
            verify="full",
            unproven=unproven,
            plc_url=(f"http://127.0.0.1:{port}",),
        )
        async with subscribe(service.port, cursor=1) as reader:
            publish(liar, bad)
            admission = service.intake.admission
            assert admission is not None
            await until(lambda: admission.waiting or read_to(service, "liar") == len(bad))
            publish(relay, good)
            served = await reader.events(2 * len(good))
        wanted = [rkey for number in range(20) for rkey in (f"{number}", f"{number}-left-out")]
        assert [event["commit"]["rkey"] for event in served] == wanted
        await until(lambda: read_to(service, "liar") == read_to(service, "honest") == len(good))
        counted = await verdicts(service)
        assert counted == {"ok": len(good), verdict: len(bad)}


def read_to(service: Service, source: str) -> int:
    cursor = service.log.cursors.get(source)
    return 0 if cursor is None else cursor.seq


def publish(relay: Relay, revisions: Iterable[Revision]) -> None:
    commits = [frames.Commit(DID, TIME, each) for each in revisions]
    relay.publish(numbered([frames.encode(each, number) for number, each in enumerate(commits, 1)]))
