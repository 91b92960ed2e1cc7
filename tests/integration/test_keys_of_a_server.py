"""The keys of a server that verifies: directories that are dead, slow, wrong or hostile cost it little."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson
import pytest
from aiohttp import web
from structlog.testing import capture_logs
from tests.plc import (
    PlcExport,
    bomb,
    broken,
    busy,
    cut,
    date_of,
    drip,
    endless,
    forever,
    http_server,
    key_requests,
    local,
    says,
)
from tests.serving import until
from tests.unit.identity.accounts import did_of, document, entry, key_of, operation
from tests.unit.identity.fakes import Answers

from jetstream.admission.keys import CONDITION, NOT_FOLLOWED, Following, Keys, KeySettings
from jetstream.atproto.tid import tid
from jetstream.conditions import Conditions
from jetstream.identity.answers import Answer, Candidates
from jetstream.identity.export import Progress
from jetstream.identity.fetch import Fetches
from jetstream.identity.store import export_lock
from jetstream.limits import ExportLimits, KeyLimits
from jetstream.metrics import Metrics

DID, KEY, NEXT = did_of(1), key_of(1), key_of(2)
DOCUMENT = orjson.dumps(document(DID, KEY))
WEB = "did:web:alice.example.com"
# Without pauses after failures in a row: the clock of these tests stands still.
LIMITS = KeyLimits(write_s=0.01, look_s=0.01, retry_s=0.01, directory_failures=1_000)
QUICK = replace(LIMITS, timeout_s=0.3)
EXPORT = ExportLimits(poll_s=0.02)
REV = tid(1_700_000_000_000_000, 0)


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


class Directory:
    """Answers with what is set for a path."""

    def __init__(self) -> None:
        self.replies: dict[str, Any] = {f"/{DID}": document(DID, KEY)}
        self.asked: list[str] = []

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request.path)
        reply = self.replies.get(request.path)
        return web.Response(status=404) if reply is None else web.json_response(reply)


class Setup:
    def __init__(self, path: Path, stack: AsyncExitStack) -> None:
        self.path = path
        self._stack = stack
        self.metrics = Metrics()
        self.conditions = Conditions()
        self.clock = Clock()

    async def server(self, handler: Any) -> str:
        return f"http://127.0.0.1:{await self._stack.enter_async_context(http_server(handler))}"

    async def open(
        self,
        *urls: str,
        follow: bool = False,
        rate: float = 10_000.0,
        limits: KeyLimits = LIMITS,
        web: Fetches | None = None,
    ) -> Keys:
        settings = KeySettings(self.path, urls, rate, follow)
        keys = Keys(settings, self.metrics, self.conditions, limits, EXPORT, web, self.clock)
        return await self._stack.enter_async_context(keys)

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.registry.get_sample_value(f"jetstream_{name}", labels) or 0.0


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    async with AsyncExitStack() as stack:
        yield Setup(tmp_path, stack)


async def test_a_key_is_waited_for_once_and_then_cached(setup: Setup) -> None:
    directory = Directory()
    keys = await setup.open(await setup.server(directory.handle))
    assert keys.cached(DID) is None
    assert await asyncio.gather(*(keys.wait(DID) for _ in range(100))) == [Answer(KEY, "", "")] * 100
    assert keys.cached(DID) == KEY
    assert directory.asked == [f"/{DID}"]
    assert key_requests(setup.metrics) == {"ok": 1}
    assert (setup.value("keys_in_memory"), setup.value("key_requests_waiting")) == (1, 0)


async def test_keys_of_a_batch_come_from_the_file_at_once(setup: Setup) -> None:
    url = await setup.server(Directory().handle)
    async with Keys(KeySettings(setup.path, [url]), Metrics(), Conditions(), LIMITS) as before:
        await before.wait(DID)
    keys = await setup.open(url)
    assert keys.cached(DID) is None
    await keys.load([DID, did_of(2), WEB, "did:other:x"])
    assert (keys.cached(DID), keys.cached(did_of(2))) == (KEY, None)
    assert key_requests(setup.metrics) == {}


async def test_the_next_directory_is_asked_when_one_fails(setup: Setup) -> None:
    urls = [await setup.server(each) for each in (broken, Directory().handle)]
    keys = await setup.open(*urls)
    assert await keys.wait(DID) == Answer(KEY, "", "")


async def test_an_announced_change_brings_the_next_key(setup: Setup) -> None:
    directory = Directory()
    keys = await setup.open(await setup.server(directory.handle))
    await keys.wait(DID)
    directory.replies[f"/{DID}"] = document(DID, NEXT)
    setup.clock.now += 10
    keys.announced(DID)
    assert keys.cached(DID) == KEY
    await until(lambda: keys.cached(DID) == NEXT)
    assert setup.value("key_refreshes_total", cause="announced") == 1


async def test_after_a_failure_the_keys_of_that_time_are_tried(setup: Setup) -> None:
    directory = Directory()
    at_ms = 1_700_000_000_000
    directory.replies[f"/{DID}/log/audit"] = [
        entry(DID, operation(KEY), date_of(at_ms - 86_400_000)),
        entry(DID, operation(NEXT), date_of(at_ms + 86_400_000)),
    ]
    keys = await setup.open(await setup.server(directory.handle))
    assert await keys.after_failure(DID, REV) == Candidates([KEY], "")
    assert keys.cached(DID) == NEXT
    for _ in range(10):
        await keys.after_failure(DID, REV)
    assert directory.asked == [f"/{DID}/log/audit"]


async def test_a_directory_that_gives_no_logs_is_out_although_it_has_documents(setup: Setup) -> None:
    directory = Directory()
    directory.replies[f"/{DID}"] = document(DID, NEXT)

    async def handle(request: web.Request) -> web.StreamResponse:
        return await (local if request.path.endswith("/log/audit") else directory.handle)(request)

    keys = await setup.open(await setup.server(handle))
    assert not keys.is_out
    assert await keys.after_failure(DID, REV) == Candidates([NEXT], "redirect")
    assert keys.cached(DID) == NEXT
    assert keys.is_out


async def test_a_host_of_a_did_web_is_asked_apart(setup: Setup) -> None:
    hosts = Answers()
    hosts.put(f"https://{WEB.removeprefix('did:web:')}/.well-known/did.json", document(WEB, KEY))
    keys = await setup.open("http://127.0.0.1:1", web=hosts)
    assert await keys.wait(WEB) == Answer(KEY, "", "")
    assert await keys.wait("did:web:127.0.0.1") == Answer(None, "method")
    assert key_requests(setup.metrics) == {"ok": 1, "method": 1}


HOSTILE = [
    (forever, "timeout"),
    (drip, "timeout"),
    (endless, "too_big"),
    (bomb, "too_big"),
    (local, "redirect"),
    (busy, "rate_limited"),
    (broken, "status"),
    (cut, "unreachable"),
    (says(b"<html>"), "malformed"),
    (says(orjson.dumps(document(did_of(2), KEY))), "wrong_did"),
    (says(orjson.dumps(document(DID, KEY, publicKeyMultibase="z1"))), "bad_key"),
]


@pytest.mark.parametrize(("handler", "reason"), HOSTILE)
async def test_a_bad_directory_is_counted_and_bounded(setup: Setup, handler: Any, reason: str) -> None:
    keys = await setup.open(await setup.server(handler), limits=QUICK if reason == "timeout" else LIMITS)
    assert await asyncio.gather(*(keys.wait(DID) for _ in range(3))) == [Answer(None, reason)] * 3
    assert key_requests(setup.metrics) == {reason: 1}
    assert await keys.wait(DID) == Answer(None, reason)  # remembered
    assert key_requests(setup.metrics) == {reason: 1}
    assert (await keys.after_failure(DID, REV)).keys == []


async def test_a_directory_that_is_not_there(setup: Setup) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    keys = await setup.open(f"http://127.0.0.1:{port}")
    assert await keys.wait(DID) == Answer(None, "unreachable")


async def test_nothing_waits_longer_than_it_may(setup: Setup) -> None:
    """Not even for its turn, before which its own time does not begin."""
    limits = replace(LIMITS, wait_s=0.1, requests_max=1)
    keys = await setup.open(await setup.server(forever), limits=limits)
    waiting = [keys.wait(did_of(number)) for number in range(20)]
    assert await asyncio.gather(*waiting) == [Answer(None, "timeout")] * 20
    assert await keys.after_failure(DID, REV) == Candidates([], "timeout")


async def test_so_many_wait_and_no_more(setup: Setup) -> None:
    limits = replace(QUICK, waiting_max=10)
    keys = await setup.open(await setup.server(forever), limits=limits)
    answers = await asyncio.gather(*(keys.wait(did_of(number)) for number in range(8)))
    assert [answer.reason for answer in answers].count("overload") == 3
    assert key_requests(setup.metrics) == {"overload": 3, "timeout": 5}


async def test_requests_keep_to_the_rate(setup: Setup) -> None:
    """A bucket of two is empty after two requests, and the clock of this test gives it no more."""
    directory = Directory()
    limits = replace(LIMITS, wait_s=0.2)
    keys = await setup.open(await setup.server(directory.handle), rate=2.0, limits=limits)
    answers = await asyncio.gather(*(keys.wait(did_of(number)) for number in range(1, 7)))
    assert len(directory.asked) == 2
    assert [answer.reason for answer in answers].count("timeout") == 4


async def test_a_directory_that_wants_a_pause_gets_it(setup: Setup) -> None:
    asked: list[str] = []

    async def handle(request: web.Request) -> web.StreamResponse:
        asked.append(request.path)
        return await busy(request)

    keys = await setup.open(await setup.server(handle))
    answers = [await keys.wait(did_of(number)) for number in range(5)]
    assert answers == [Answer(None, "rate_limited")] * 5
    assert len(asked) == 1
    setup.clock.now += 31
    await keys.wait(did_of(6))
    assert len(asked) == 2


# The condition


async def fail(setup: Setup, keys: Keys, numbers: range, pause_s: float) -> None:
    for number in numbers:
        await keys.wait(did_of(number))
        setup.clock.now += pause_s


async def test_a_condition_begins_when_no_directory_answers_and_ends_with_an_answer(setup: Setup) -> None:
    replies: list[Any] = [broken]

    async def handle(request: web.Request) -> web.StreamResponse:
        reply: web.StreamResponse = await replies[0](request)
        return reply

    urls = [await setup.server(handle), await setup.server(broken)]
    keys = await setup.open(*urls)
    await fail(setup, keys, range(2), 20)
    keys.check()
    assert setup.conditions.reasons == {}
    await keys.wait(did_of(3))
    await until(lambda: setup.conditions.reasons)
    reason = setup.conditions.reasons[CONDITION]
    assert reason.startswith("no PLC directory has answered for 40 s (http://127.0.0.1:")
    assert "status: HTTP 500): accounts whose key is" in reason
    replies[0] = says(DOCUMENT)
    setup.clock.now += 40
    assert await keys.wait(DID) == Answer(KEY, "", "")
    await until(lambda: not setup.conditions.reasons)


async def test_the_condition_ends_when_nothing_was_asked_for_long(setup: Setup) -> None:
    keys = await setup.open(await setup.server(says(b"<html>")))
    await fail(setup, keys, range(3), 20)
    keys.check()
    assert CONDITION in setup.conditions.reasons
    setup.clock.now += LIMITS.outage_over_s
    keys.check()
    assert setup.conditions.reasons == {}


async def test_accounts_that_do_not_exist_are_no_outage(setup: Setup) -> None:
    keys = await setup.open(await setup.server(says(b"", 404)))
    await fail(setup, keys, range(5), 20)
    keys.check()
    assert setup.conditions.reasons == {}


# The export


async def test_the_export_is_read_and_followed(setup: Setup) -> None:
    export = PlcExport(operations=20, page=1_000)
    keys = await setup.open(await setup.server(export.handle), follow=True)

    async def has(number: int) -> None:
        while keys.cached(did_of(number)) != key_of(number):
            await keys.load([did_of(number)])
            await asyncio.sleep(0.005)

    async with asyncio.timeout(20):
        await has(20)
        export.operations = 30
        await has(30)
    assert key_requests(setup.metrics) == {}


async def test_the_log_says_when_the_end_of_the_export_is_reached(setup: Setup) -> None:
    export = PlcExport(operations=20, page=1_000)
    with capture_logs() as lines:
        await setup.open(await setup.server(export.handle), follow=True)
        await until(lambda: [line for line in lines if "to its end" in line["event"]])
        count = len(export.asked)
        await until(lambda: len(export.asked) > count + 3)
    (said,) = [line for line in lines if "export" in line["event"]]
    assert (said["log_level"], said["operations"], said["unreadable"]) == ("info", 20, 0)
    assert said["up_to"] == "2023-11-14T22:13:20+00:00"


async def test_an_export_that_cannot_be_read_is_a_condition_until_it_can(setup: Setup) -> None:
    export = PlcExport(operations=20, page=1_000)
    export.replies = [web.Response(status=404) for _ in range(3)]
    with capture_logs() as lines:
        await setup.open(await setup.server(export.handle), follow=True)
        await until(lambda: NOT_FOLLOWED in setup.conditions.reasons)
        reason = setup.conditions.reasons[NOT_FOLLOWED]
        await until(lambda: [line for line in lines if "to its end" in line["event"]])
    assert "2 times in a row (http://127.0.0.1:" in reason
    assert reason.endswith("set another --plc-url, or leave out --follow-plc")
    assert setup.conditions.reasons == {}


def test_until_the_end_the_log_says_once_a_minute_how_far_behind_the_export_is() -> None:
    clock, conditions = Clock(), Conditions()
    following = Following(conditions, ExportLimits(), clock, lambda: 5_000_000_000)
    with capture_logs() as lines:
        for page in range(1, 131):
            clock.now += 1
            following.note(Progress(operations=page * 1_000, newest_us=page * 10_000_000))
        following.ended("")
        clock.now += 1_000
        following.note(Progress(operations=131_000, newest_us=1_310_000_000))
        following.ended("")
    assert [(line["operations"], line.get("behind_s")) for line in lines] == [
        (60_000, 4_400),
        (120_000, 3_800),
        (130_000, None),
    ]


async def test_a_server_follows_when_the_other_process_has_ended(setup: Setup) -> None:
    export = PlcExport(operations=20, page=1_000)
    url = await setup.server(export.handle)
    with export_lock(setup.path), capture_logs() as lines:
        await setup.open(url, follow=True)
        await until(lambda: [line for line in lines if line["log_level"] == "warning"])
        assert export.asked == []
    await until(lambda: export.asked)


async def test_a_file_that_was_damaged_is_replaced(setup: Setup) -> None:
    (setup.path / "keys.sqlite3").write_bytes(b"no database" * 1_000)
    keys = await setup.open(await setup.server(Directory().handle))
    assert await keys.wait(DID) == Answer(KEY, "", "")


async def test_what_waits_at_the_end_gets_an_answer(setup: Setup) -> None:
    url = await setup.server(forever)
    async with Keys(KeySettings(setup.path, [url]), setup.metrics, setup.conditions, LIMITS) as keys:
        waiting = asyncio.create_task(keys.wait(DID))
        await until(lambda: setup.value("key_requests_waiting") == 1)
    assert await waiting == Answer(None, "unreachable")


async def test_a_source_of_unknown_accounts_leaves_turns_and_room_to_the_others(setup: Setup) -> None:
    """The directory answers one request at a time, and 100 of one source wait for it."""
    turn = asyncio.Semaphore(0)
    directory = Directory()

    async def slow(request: web.Request) -> web.StreamResponse:
        await turn.acquire()
        return await directory.handle(request)

    limits = replace(LIMITS, requests_max=1, waiting_max=200, timeout_s=60.0, wait_s=60.0)
    keys = await setup.open(await setup.server(slow), limits=limits)
    flood = [asyncio.create_task(keys.wait(did_of(number), "many")) for number in range(100, 300)]
    await until(lambda: setup.value("key_requests_total", result="overload") == 100)
    genuine = asyncio.create_task(keys.wait(DID, "other"))
    again = asyncio.create_task(keys.wait(did_of(2), "other"))
    await until(lambda: keys._resolver.statistics().waiting == 102)
    again.cancel()
    for _ in range(3):
        turn.release()
    assert await genuine == Answer(KEY, "", "")
    assert len(directory.asked) <= 3
    for each in flood:
        each.cancel()
