"""A DID to its key: what is asked, when, and how often."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from structlog.testing import capture_logs
from tests.serving import until
from tests.unit.identity.accounts import TOMBSTONE, did_of, document, entry, key_of, operation
from tests.unit.identity.fakes import NOW_S, Answers, Clock

from jetstream.identity.answers import JUST_ASKED, UNREADABLE, Answer
from jetstream.identity.cache import KeyCache
from jetstream.identity.directories import Directories
from jetstream.identity.documents import Declared
from jetstream.identity.export import Progress
from jetstream.identity.failures import KEY_FAILURES, NoKey
from jetstream.identity.resolver import Resolver
from jetstream.identity.store import KeyStore
from jetstream.limits import KeyLimits
from jetstream.metrics import Metrics
from jetstream.token_bucket import Rate

PLC = "http://plc"
DID, WEB = did_of(1), "did:web:alice.com"
KEY, NEXT = key_of(1), key_of(2)
WEB_URL = "https://alice.com/.well-known/did.json"
DAY_S = 24 * 3600
LIMITS = KeyLimits(timeout_s=5.0, write_s=60.0, plc_rate=Rate(10_000.0, 10_000))


class Setup:
    """A resolver, with a directory, hosts and a clock that a test controls."""

    def __init__(self, path: Path, limits: KeyLimits = LIMITS) -> None:
        self.clock = Clock()
        self.plc, self.web = Answers(), Answers()
        self.metrics = Metrics()
        self.cache = KeyCache(KeyStore(path, self.clock.now), limits, self.clock.now)
        directories = Directories([PLC], self.plc, limits, self.clock, self.clock.sleep)
        self.resolver = Resolver(
            self.cache,
            directories,
            self.web,
            self.metrics.keys(KEY_FAILURES),
            limits,
            self.clock,
            self.clock.now,
            self.clock.sleep,
        )

    def put(self, key: object, did: str = DID, pds: str = "") -> None:
        """Set the key and the PDS that the directory gives a DID, or an error."""
        self.plc.put(f"{PLC}/{did}", key if isinstance(key, NoKey) else document(did, key, pds))  # type: ignore[arg-type]

    def put_log(self, *keys: tuple[object, str], did: str = DID) -> None:
        log = [
            entry(did, key if isinstance(key, dict) else operation(key), date)  # type: ignore[arg-type]
            for key, date in keys
        ]
        self.plc.put(f"{PLC}/{did}/log/audit", log)

    def count(self, result: str) -> float | None:
        return self.metrics.registry.get_sample_value("jetstream_key_requests_total", {"result": result})

    async def settled(self) -> None:
        """Wait for refreshes in the background."""
        while tasks := list(self.resolver._shared._running.values()):
            await asyncio.wait(tasks)


@pytest.fixture
async def setup(tmp_path: Path) -> AsyncIterator[Setup]:
    setup = Setup(tmp_path)
    yield setup
    await setup.resolver.close()
    await setup.cache.close()


async def test_a_key_is_fetched_once(setup: Setup) -> None:
    setup.put(KEY)
    assert setup.resolver.cached(DID) is None
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")
    assert setup.resolver.cached(DID) == KEY
    assert setup.plc.asked == [f"{PLC}/{DID}"]
    assert setup.count("ok") == 1


async def test_the_key_of_a_did_web_is_at_its_host(setup: Setup) -> None:
    setup.web.put(WEB_URL, document(WEB, KEY))
    assert await setup.resolver.resolve(WEB) == Answer(KEY, "", "")
    assert setup.web.asked == [WEB_URL]
    assert setup.plc.asked == []


@pytest.mark.parametrize("did", ["did:web:127.0.0.1", "did:web:a.com:b", "did:key:z1", "did:plc:short", "x"])
async def test_nothing_is_asked_for_a_did_that_can_have_no_key(setup: Setup, did: str) -> None:
    setup.resolver.announced(did)
    assert await setup.resolver.resolve(did) == Answer(None, "method")
    assert await setup.resolver.keys_at(did, 0) == ([], "method")
    assert setup.plc.asked == setup.web.asked == []


async def test_requests_for_one_did_are_shared(setup: Setup) -> None:
    setup.put(KEY)
    setup.plc.held.clear()
    waiting = [asyncio.create_task(setup.resolver.resolve(DID)) for _ in range(50)]
    await until(lambda: setup.plc.asked)
    waiting[0].cancel()  # the request goes on for the others
    setup.plc.held.set()
    assert await asyncio.gather(*waiting[1:]) == [Answer(KEY, "", "")] * 49
    assert len(setup.plc.asked) == 1


async def test_what_is_announced_during_a_request_is_asked_for_again(setup: Setup) -> None:
    """The answer may be from before the change."""
    setup.put_log((KEY, "2023-01-01T00:00:00.000Z"))
    setup.plc.held.clear()
    asking = asyncio.create_task(setup.resolver.keys_at(DID, int(NOW_S * 1e6)))
    await until(lambda: setup.plc.asked)
    setup.clock.passed += 1
    setup.resolver.announced(DID)
    setup.plc.held.set()
    assert (await asking).reason == JUST_ASKED
    dates = ("2023-01-01T00:00:00.000Z", "2023-06-01T00:00:00.000Z")
    setup.put_log(*zip((KEY, NEXT), dates, strict=True))
    setup.clock.passed += 5
    assert await setup.resolver.keys_at(DID, int(NOW_S * 1e6)) == ([NEXT], "")


@pytest.mark.parametrize(
    ("error", "kept_s"),
    [
        (NoKey("not_found"), LIMITS.negative_s),
        (NoKey("no_key"), LIMITS.negative_s),
        (NoKey("timeout"), LIMITS.failure_s),
        (NoKey("malformed"), LIMITS.failure_s),
    ],
)
async def test_a_failure_is_remembered_for_a_while(setup: Setup, error: NoKey, kept_s: float) -> None:
    setup.put(error)
    for _ in range(3):
        assert await setup.resolver.resolve(DID) == Answer(None, error.reason)
    assert len(setup.plc.asked) == 1
    assert setup.count(error.reason) == 1
    setup.put(KEY)
    setup.clock.passed += kept_s - 0.1
    assert await setup.resolver.resolve(DID) == Answer(None, error.reason)
    setup.clock.passed += 0.2
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")


async def test_an_error_of_the_server_itself_is_of_one_request_only(setup: Setup) -> None:
    setup.web.put(WEB_URL, OverflowError("too large"))
    setup.plc.put(f"{PLC}/{DID}/log/audit", RecursionError("too deep"))
    with capture_logs() as lines:
        assert await setup.resolver.resolve(WEB) == Answer(None, "internal")
        assert await setup.resolver.find_pds(WEB, refresh=True) == Answer(None, "internal")
        assert await setup.resolver.keys_at(DID, 0) == ([], "internal")
    assert [(line["log_level"], line["did"], line["exc_info"]) for line in lines] == [("error", WEB, True)]
    assert setup.count("internal") == 2
    setup.web.put(WEB_URL, document(WEB, KEY))
    setup.put(NEXT)
    setup.clock.passed += LIMITS.failure_s
    assert await setup.resolver.resolve(WEB) == Answer(KEY, "", "")
    assert await setup.resolver.resolve(DID) == Answer(NEXT, "", "")


async def test_a_host_is_left_alone_for_as_long_as_it_asks_for(setup: Setup) -> None:
    setup.web.put(WEB_URL, NoKey("status", retry_after=200.0))
    assert await setup.resolver.resolve(WEB) == Answer(None, "status")
    setup.clock.passed += 199
    await setup.resolver.resolve(WEB)
    assert len(setup.web.asked) == 1


async def test_an_announcement_ends_the_memory_of_a_failure(setup: Setup) -> None:
    setup.put(NoKey("not_found"))
    await setup.resolver.resolve(DID)
    setup.put(KEY)
    setup.clock.passed += LIMITS.announced_min_s
    setup.resolver.announced(DID)
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")


async def test_announcements_do_not_drive_requests_for_an_account_without_a_key(setup: Setup) -> None:
    setup.put(NoKey("not_found"))
    for _ in range(100):
        setup.resolver.announced(DID)
        await setup.resolver.resolve(DID)
        setup.clock.passed += 0.5
    assert len(setup.plc.asked) == 50 / LIMITS.announced_min_s


async def test_no_answer_ends_in_time(tmp_path: Path) -> None:
    setup = Setup(tmp_path, replace(LIMITS, timeout_s=0.01))
    setup.plc.held.clear()
    assert await setup.resolver.resolve(DID) == Answer(None, "timeout")
    assert setup.count("timeout") == 1
    await setup.cache.close()


async def test_an_old_key_is_used_while_it_is_refreshed(setup: Setup) -> None:
    setup.put(KEY)
    await setup.resolver.resolve(DID)
    setup.put(NEXT)
    setup.clock.passed += DAY_S + 1
    setup.plc.held.clear()
    for _ in range(5):
        assert setup.resolver.cached(DID) == KEY
        assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")
    setup.plc.held.set()
    await setup.settled()
    assert setup.resolver.cached(DID) == NEXT
    assert len(setup.plc.asked) == 2
    assert setup.metrics.registry.get_sample_value("jetstream_key_refreshes_total", {"cause": "age"}) == 1


async def test_an_announced_change_is_fetched_when_the_key_is_used(setup: Setup) -> None:
    setup.put(KEY)
    await setup.resolver.resolve(DID)
    setup.put(NEXT)
    setup.clock.passed += LIMITS.announced_min_s
    setup.resolver.announced(DID)
    await setup.settled()
    assert len(setup.plc.asked) == 1
    assert setup.resolver.cached(DID) == KEY
    await setup.settled()
    assert setup.resolver.cached(DID) == NEXT
    await setup.settled()
    assert len(setup.plc.asked) == 2


async def test_announcements_do_not_drive_requests(setup: Setup) -> None:
    setup.put(KEY)
    await setup.resolver.resolve(DID)
    for _ in range(100):
        setup.clock.passed += 0.5
        setup.resolver.announced(DID)
        setup.resolver.cached(DID)
        await setup.settled()
    assert len(setup.plc.asked) == 1 + 50 / LIMITS.announced_min_s


async def test_a_failed_refresh_leaves_the_key_and_is_not_repeated_at_once(setup: Setup) -> None:
    setup.put(KEY)
    await setup.resolver.resolve(DID)
    setup.put(NoKey("status"))
    setup.clock.passed += DAY_S + 1
    for _ in range(4):
        assert setup.resolver.cached(DID) == KEY
        await setup.settled()
    assert len(setup.plc.asked) == 2
    setup.clock.passed += LIMITS.refresh_min_s
    setup.resolver.cached(DID)
    await setup.settled()
    assert len(setup.plc.asked) == 3


async def test_a_key_that_is_no_longer_there_is_forgotten(setup: Setup) -> None:
    setup.put(KEY)
    await setup.resolver.resolve(DID)
    setup.put(NoKey("not_found"))
    setup.clock.passed += DAY_S + 1
    setup.resolver.cached(DID)
    await setup.settled()
    assert await setup.resolver.resolve(DID) == Answer(None, "not_found")


async def test_refreshes_in_the_background_are_few(setup: Setup) -> None:
    dids = [did_of(number) for number in range(20)]
    for did in dids:
        setup.put(KEY, did)
        await setup.resolver.resolve(did)
    setup.clock.passed += DAY_S + 1
    setup.plc.held.clear()
    for did in dids:
        setup.resolver.cached(did)
    assert setup.resolver.statistics().waiting == LIMITS.refreshes_max
    setup.plc.held.set()
    await setup.settled()


async def test_few_requests_run_at_once_and_slow_hosts_do_not_hold_up_directories(setup: Setup) -> None:
    setup.web.held.clear()
    slow = [asyncio.create_task(setup.resolver.resolve(f"did:web:a{n}.com")) for n in range(30)]
    await until(lambda: setup.web.at_once >= LIMITS.web_requests_max)
    setup.put(KEY)
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")
    setup.web.held.set()
    await asyncio.gather(*slow)
    assert setup.web.most_at_once == LIMITS.web_requests_max
    setup.plc.held.clear()
    many = [asyncio.create_task(setup.resolver.resolve(did_of(n))) for n in range(100, 160)]
    await until(lambda: setup.plc.at_once >= LIMITS.requests_max)
    setup.plc.held.set()
    await asyncio.gather(*many)
    assert setup.plc.most_at_once == LIMITS.requests_max
    assert LIMITS.requests_max + LIMITS.web_requests_max == 32


async def test_too_many_waiting_requests_are_refused(tmp_path: Path) -> None:
    setup = Setup(tmp_path, replace(LIMITS, waiting_max=20))
    setup.plc.held.clear()
    waiting = [asyncio.create_task(setup.resolver.resolve(did_of(number))) for number in range(10)]
    await until(lambda: setup.resolver.statistics().waiting >= 10)
    assert await setup.resolver.resolve(did_of(99)) == Answer(None, "overload")
    assert setup.count("overload") == 1
    setup.plc.held.set()
    await asyncio.gather(*waiting)
    assert await setup.resolver.resolve(did_of(99)) == Answer(None, "not_found")
    await setup.cache.close()


async def test_the_end_answers_those_that_wait(setup: Setup) -> None:
    setup.plc.held.clear()
    waiting = asyncio.create_task(setup.resolver.resolve(DID))
    await until(lambda: setup.plc.asked)
    await setup.resolver.close()
    assert await waiting == Answer(None, "unreachable")


async def test_keys_of_another_process_are_found_in_the_file(tmp_path: Path) -> None:
    setup = Setup(tmp_path)
    setup.put(KEY)
    await setup.resolver.resolve(DID)
    await setup.cache.close()
    again = Setup(tmp_path)
    await again.resolver.load([DID, did_of(2)])
    assert again.resolver.cached(DID) == KEY
    assert again.plc.asked == []
    await again.cache.close()


async def test_what_the_export_covers_is_not_asked(setup: Setup) -> None:
    now = int(NOW_S)
    page = {DID: Declared(KEY, ""), did_of(2): Declared(None, "")}
    await setup.cache.apply(page, now - 900 * DAY_S, Progress(complete_s=now))
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "")
    assert await setup.resolver.resolve(did_of(2)) == Answer(None, "no_key", "")
    assert setup.plc.asked == []
    setup.clock.passed += DAY_S + 1
    assert setup.resolver.cached(DID) == KEY
    assert await setup.resolver.resolve(did_of(2)) == Answer(None, "not_found")
    await setup.settled()
    assert sorted(setup.plc.asked) == sorted([f"{PLC}/{DID}", f"{PLC}/{did_of(2)}"])


class TestEarlierKeys:
    log: ClassVar = [(KEY, "1970-01-02T00:00:00Z"), (NEXT, "1970-01-03T00:00:00Z")]
    day_us = DAY_S * 1_000_000

    async def test_a_signature_that_fails_fetches_all_keys_once_a_minute(self, setup: Setup) -> None:
        setup.put(KEY)
        await setup.resolver.resolve(DID)
        setup.put_log(*self.log)
        for _ in range(20):
            assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([NEXT], "")
            assert await setup.resolver.keys_at(DID, self.day_us * 3 // 2) == ([KEY], "")
            assert await setup.resolver.keys_at(DID, 2 * self.day_us) == ([NEXT, KEY], "")
        assert len(setup.plc.asked) == 2
        assert setup.resolver.cached(DID) == NEXT
        setup.clock.passed += LIMITS.refresh_min_s
        await setup.resolver.keys_at(DID, 0)
        assert len(setup.plc.asked) == 3

    async def test_an_announcement_fetches_them_again_sooner(self, setup: Setup) -> None:
        setup.put_log(self.log[0])
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([KEY], "")
        setup.resolver.announced(DID)
        setup.put_log(*self.log)
        # For a moment the new key may be missing, and that is said.
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([KEY], JUST_ASKED)
        setup.clock.passed += LIMITS.announced_min_s
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([NEXT], "")

    async def test_a_directory_without_audit_logs_has_the_document(self, setup: Setup) -> None:
        setup.put(NEXT)
        assert await setup.resolver.keys_at(DID, 0) == ([NEXT], "")
        assert setup.plc.asked == [f"{PLC}/{DID}/log/audit", f"{PLC}/{DID}"]

    async def test_a_log_that_is_too_big_may_have_had_the_key(self, setup: Setup) -> None:
        setup.put(NEXT)
        setup.plc.put(f"{PLC}/{DID}/log/audit", NoKey("too_big"))
        assert await setup.resolver.keys_at(DID, 0) == ([NEXT], "too_big")

    async def test_the_keys_of_all_operations_that_can_be_read_count(self, setup: Setup) -> None:
        unknown = {"type": "rotate"}
        setup.put_log(self.log[0], (unknown, "1970-01-03T00:00:00Z"), (NEXT, "1970-01-05T00:00:00Z"))
        assert await setup.resolver.keys_at(DID, self.day_us * 3 // 2) == ([KEY], "")
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([], UNREADABLE)
        assert await setup.resolver.keys_at(DID, 5 * self.day_us) == ([NEXT], "")
        assert setup.count("malformed") == 0

    async def test_if_the_last_cannot_be_read_the_document_has_the_key(self, setup: Setup) -> None:
        setup.put(NEXT, pds="https://b.test")
        setup.put_log(self.log[0], ({"type": "rotate"}, "1970-01-03T00:00:00Z"))
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([NEXT], "")
        assert await setup.resolver.keys_at(DID, self.day_us * 3 // 2) == ([KEY], "")
        assert setup.resolver.cached(DID) == NEXT
        assert setup.resolver.pds(DID) == "b.test"

    @pytest.mark.parametrize("created", [None, "", "yesterday", 3])
    async def test_if_the_last_has_no_time_what_was_signed_before_it_may_be_genuine(
        self, setup: Setup, created: Any
    ) -> None:
        setup.put(NEXT, pds="https://b.test")
        setup.put_log((key_of(8), "1970-01-01T00:00:00Z"), self.log[0], (NEXT, created))
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([NEXT], UNREADABLE)
        assert await setup.resolver.keys_at(DID, self.day_us // 2) == ([key_of(8)], "")
        assert setup.resolver.cached(DID) == NEXT

    async def test_if_the_document_has_no_key_either_the_earlier_ones_stay(self, setup: Setup) -> None:
        setup.put_log(self.log[0], ({"type": "rotate"}, "1970-01-03T00:00:00Z"))
        assert await setup.resolver.keys_at(DID, self.day_us * 3 // 2) == ([KEY], "")
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([], "")

    @pytest.mark.parametrize("failure", ["redirect", "status", "malformed"])
    async def test_a_directory_whose_logs_cannot_be_had_is_told_from_one_that_has_none(
        self, setup: Setup, failure: str
    ) -> None:
        setup.put(NEXT)
        setup.plc.put(f"{PLC}/{DID}/log/audit", b"<html>" if failure == "malformed" else NoKey(failure))
        assert await setup.resolver.keys_at(DID, 0) == ([NEXT], failure)
        assert setup.resolver.cached(DID) == NEXT
        assert setup.resolver.logs_fail
        other = did_of(2)
        setup.put_log(*self.log, did=other)
        await setup.resolver.keys_at(other, 0)
        assert not setup.resolver.logs_fail

    async def test_a_did_web_has_only_its_current_key(self, setup: Setup) -> None:
        setup.web.put(WEB_URL, document(WEB, NEXT))
        assert await setup.resolver.keys_at(WEB, 5) == ([NEXT], "")
        assert setup.resolver.cached(WEB) == NEXT

    async def test_a_dead_directory_is_told_from_a_key_that_does_not_fit(self, setup: Setup) -> None:
        setup.plc.put(f"{PLC}/{DID}/log/audit", NoKey("unreachable"))
        for _ in range(5):
            assert await setup.resolver.keys_at(DID, 0) == ([], "unreachable")
        assert len(setup.plc.asked) == 2  # with the second attempt

    async def test_without_an_answer_it_is_not_asked_again_at_once(self, tmp_path: Path) -> None:
        setup = Setup(tmp_path, replace(LIMITS, timeout_s=0.01))
        setup.plc.held.clear()
        for _ in range(5):
            assert await setup.resolver.keys_at(DID, 0) == ([], "timeout")
        assert len(setup.plc.asked) == 1
        await setup.cache.close()

    async def test_what_is_known_stays_when_a_later_request_fails(self, setup: Setup) -> None:
        setup.put_log(*self.log)
        await setup.resolver.keys_at(DID, 0)
        setup.plc.put(f"{PLC}/{DID}/log/audit", NoKey("timeout"))
        setup.clock.passed += LIMITS.refresh_min_s
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([NEXT], "timeout")

    async def test_an_account_that_has_ended_has_earlier_keys(self, setup: Setup) -> None:
        setup.put_log(self.log[0], (TOMBSTONE, "1970-01-03T00:00:00Z"))
        assert await setup.resolver.keys_at(DID, self.day_us * 3 // 2) == ([KEY], "")
        assert await setup.resolver.keys_at(DID, 3 * self.day_us) == ([], "")
        assert setup.resolver.cached(DID) is None


async def test_the_pds_is_known_with_the_key(setup: Setup) -> None:
    setup.put(KEY, pds="https://PDS.test")
    assert setup.resolver.pds(DID) is None
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", "pds.test")
    assert setup.resolver.pds(DID) == "pds.test"
    assert await setup.resolver.find_pds(DID) == Answer(KEY, "", "pds.test")
    assert len(setup.plc.asked) == 1


async def test_the_pds_of_an_audit_log_is_that_of_the_last_operation(setup: Setup) -> None:
    log = [
        (operation(KEY, f"https://{host}.test"), f"2026-01-0{day}T00:00:00Z")
        for day, host in [(1, "a"), (2, "b")]
    ]
    setup.put_log(*log)
    await setup.resolver.keys_at(DID, int(NOW_S * 1e6))
    assert setup.resolver.pds(DID) == "b.test"


async def test_a_key_without_a_pds_is_not_enough(setup: Setup) -> None:
    setup.cache.put(DID, KEY)  # as from a file of an earlier version
    setup.put(KEY, pds="https://pds.test")
    assert await setup.resolver.resolve(DID) == Answer(KEY, "", None)
    assert setup.resolver.pds(DID) is None
    assert await setup.resolver.find_pds(DID) == Answer(KEY, "", "pds.test")


async def test_a_move_is_found_but_not_asked_for_all_the_time(setup: Setup) -> None:
    setup.put(KEY, pds="https://old.test")
    await setup.resolver.resolve(DID)
    setup.put(KEY, pds="https://new.test")
    assert (await setup.resolver.find_pds(DID, refresh=True)).pds == "old.test"
    setup.clock.passed += 60
    assert (await setup.resolver.find_pds(DID)).pds == "old.test"
    assert (await setup.resolver.find_pds(DID, refresh=True)).pds == "new.test"
    setup.put(KEY, pds="https://newer.test")
    setup.clock.passed += 5
    assert (await setup.resolver.find_pds(DID, refresh=True)).pds == "new.test"
    setup.resolver.announced(DID)
    assert (await setup.resolver.find_pds(DID, refresh=True)).pds == "newer.test"
    assert len(setup.plc.asked) == 3


async def test_a_pds_that_cannot_be_fetched(setup: Setup) -> None:
    setup.put(KEY, pds="https://pds.test")
    await setup.resolver.resolve(DID)
    setup.clock.passed += 60
    setup.put(NoKey("status", status=500))
    assert await setup.resolver.find_pds(DID, refresh=True) == Answer(KEY, "status", "pds.test")
    assert await setup.resolver.find_pds(did_of(2)) == Answer(None, "not_found")
    assert await setup.resolver.find_pds("did:key:x") == Answer(None, "method")
    asked = len(setup.plc.asked)
    assert await setup.resolver.find_pds(did_of(2)) == Answer(None, "not_found")
    assert len(setup.plc.asked) == asked
