"""Odd numbers of relays, read by a server: each commit is passed on once, in order, in every mode."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, get_args

import pytest
from aiohttp import web
from tests.plc import http_server
from tests.relay import Act, Connection, Relay
from tests.sequences import CASES, STEADY, Connections, case, frame, wanted
from tests.serving import LOOPBACK, quick, running, until
from tests.signed import KEY
from tests.subscriber import subscribe
from tests.unit.identity.accounts import did_of, document

from jetstream.app import Service
from jetstream.atproto.encoded_key import parse_multikey
from jetstream.settings import Settings
from jetstream.upstreams import Upstream
from jetstream.verify_modes import Mode

LIMITS = quick(settle_s=0.01, backoff_max_s=0.01)
NAMES = ("a", "b")
OFFSET = 7_000_000_000  # of the numbers of the second relay from those of the first
# The cases come one after another, each with an account of its own: its numbers begin where they please. Each
# has one jump, up or down: tests/unit/admission/test_sequence.py has all of them.
SENT = [
    *(case(name, 0) for name in STEADY),
    *(
        case(name, jump)
        for name, jump in zip(CASES, cycle((10_001, 10_001, -1_000_000, -1_000_000)), strict=False)
    ),
]


async def key(request: web.Request) -> web.StreamResponse:
    """Answer as a directory in which all accounts have one key."""
    return web.json_response(document(request.path.strip("/"), parse_multikey(KEY.multibase)))


def sends(frames: Sequence[bytes]) -> Act:
    """Send frames, and close the connection when they are read."""

    async def act(connection: Connection) -> None:
        await connection.accept()
        for each in frames:
            await connection.send(each)
        await connection.close(1012, "again")

    return act


def acts(cases: Sequence[tuple[int, Connections]], offset: int) -> list[Act]:
    """Return what a relay does in these cases, each of an account."""
    return [
        sends([frame((seq + offset, number), did_of(account)) for seq, number in connection])
        for account, connections in cases
        for connection in connections
    ]


async def records(service: Service, count: int) -> dict[str, list[str]]:
    """Return the records of each account, in order, once there are at least so many."""
    await until(lambda: service.log.statistics().events >= count)
    found = defaultdict(list)
    async with subscribe(service.port, cursor=1) as reader:
        for event in await reader.events(service.log.statistics().events):
            found[event["did"]].append(event["commit"]["rkey"])
    return found


@pytest.mark.parametrize("relays", [1, 2])
@pytest.mark.parametrize("verify", get_args(Mode))
async def test_each_commit_is_passed_on_once(verify: str, relays: int, relay: Relay, tmp_path: Path) -> None:
    """The server is started again after half of the cases."""
    async with Relay() as another, http_server(key) as port:
        read = (relay, another)[:relays]
        given: dict[str, Any] = {"listen": LOOPBACK, "data_dir": tmp_path, "verify": verify}
        given |= {"plc_url": (f"http://127.0.0.1:{port}",), "plc_rate": 10_000.0}
        given |= {"upstream": tuple(map(Upstream, NAMES, (each.url for each in read)))}
        cases, count = list(enumerate(SENT)), 0
        for part in (cases[::2], cases[1::2]):
            count += sum(len(wanted(connections)) for _, connections in part)
            done = [each.accepted + sum(len(sent) for _, sent in part) + 1 for each in read]
            for place, each in enumerate(read):
                each.script += acts(part, place * OFFSET)
            async with running(Service(Settings(**given), LIMITS)) as service:
                for each, connections in zip(read, done, strict=True):
                    await each.wait_accepted(connections)
                found = await records(service, count)
    assert found == {did_of(account): wanted(connections) for account, connections in cases}
