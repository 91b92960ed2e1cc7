"""Several directories in turn: who is asked, who is left alone, and how fast."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from itertools import pairwise

import pytest
from structlog.testing import capture_logs
from tests.unit.identity.fakes import Answers, Clock

from jetstream.identity.directories import Directories, Pace
from jetstream.identity.failures import NoKey
from jetstream.limits import KeyLimits
from jetstream.token_bucket import Rate

FIRST, SECOND = "http://a", "http://b"
FAST = KeyLimits(plc_rate=Rate(1_000.0, 1_000))


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def answers() -> Answers:
    return Answers()


@pytest.fixture
async def both(answers: Answers, clock: Clock) -> Directories:
    return Directories([FIRST + "/", SECOND], answers, FAST, clock, clock.sleep)


async def ask(directories: Directories, timeout_s: float = 10.0) -> bytes | str:
    """Return the answer, or why there is none."""
    try:
        return await directories.ask("/x", lambda body: body, 100, timeout_s)
    except NoKey as error:
        return error.reason


async def test_the_first_is_asked(both: Directories, answers: Answers) -> None:
    answers.put(f"{FIRST}/x", b"first")
    assert await ask(both) == b"first"
    assert answers.asked == [f"{FIRST}/x"]


@pytest.mark.parametrize("reason", ["timeout", "status", "malformed", "rate_limited", "not_found"])
async def test_the_second_is_asked_when_the_first_fails_or_does_not_know(
    both: Directories, answers: Answers, reason: str
) -> None:
    answers.put(f"{FIRST}/x", NoKey(reason))
    answers.put(f"{SECOND}/x", b"second")
    assert await ask(both) == b"second"
    assert answers.timeouts == [5.0, 10.0]  # the first has a half of the time, the second what is left


async def test_a_document_without_a_key_is_an_answer(both: Directories, answers: Answers) -> None:
    answers.put(f"{FIRST}/x", NoKey("no_key"))
    assert await ask(both) == "no_key"
    assert len(answers.asked) == 1


async def test_that_one_does_not_know_a_did_says_more_than_that_another_fails(
    both: Directories, answers: Answers
) -> None:
    answers.put(f"{SECOND}/x", NoKey("timeout"))
    assert await ask(both) == "not_found"
    answers.put(f"{FIRST}/x", NoKey("status"))
    assert await ask(both) == "timeout"


async def test_a_directory_is_left_alone_for_as_long_as_it_asks_for(
    both: Directories, answers: Answers, clock: Clock
) -> None:
    answers.put(f"{FIRST}/x", NoKey("rate_limited", retry_after=60.0))
    answers.put(f"{SECOND}/x", b"second")
    assert await ask(both) == await ask(both) == b"second"
    assert answers.asked.count(f"{FIRST}/x") == 1
    clock.passed += 60
    await ask(both)
    assert answers.asked.count(f"{FIRST}/x") == 2


async def test_a_pause_and_its_end_are_logged_once(both: Directories, answers: Answers, clock: Clock) -> None:
    with capture_logs() as logs:
        for error in (
            NoKey("rate_limited", retry_after=60.0),
            NoKey("rate_limited", retry_after=60.0),
            b"ok",
        ):
            answers.put(f"{FIRST}/x", error)
            answers.put(f"{SECOND}/x", b"second")
            for _ in range(3):
                await ask(both)
            clock.passed += 61
    assert [(line["event"], line["directory"]) for line in logs] == [
        ("a PLC directory is left alone for a while", FIRST),
        ("a PLC directory answers again", FIRST),
    ]


async def test_when_all_are_paused_a_short_pause_is_waited_for_and_a_long_one_is_not(
    both: Directories, answers: Answers, clock: Clock
) -> None:
    for url, pause_s in ((FIRST, 60.0), (SECOND, 3.0)):
        answers.put(f"{url}/x", NoKey("rate_limited", retry_after=pause_s))
    assert await ask(both) == "rate_limited"
    assert await ask(both, timeout_s=2.0) == "rate_limited"
    assert clock.slept == []
    answers.put(f"{SECOND}/x", b"second")
    assert await ask(both) == b"second"
    assert clock.slept == [3.0]


async def test_after_failures_in_a_row_the_pauses_grow(answers: Answers, clock: Clock) -> None:
    one = Directories([FIRST], answers, replace(FAST, directory_failures=3), clock, clock.sleep)
    answers.put(f"{FIRST}/x", NoKey("timeout"))
    for _ in range(3):
        assert await ask(one) == "timeout"
    assert clock.slept == []
    pauses = []
    for _ in range(8):
        pauses.append(one.directories[0].paused_until - clock())
        clock.passed += pauses[-1]
        assert await ask(one) == "timeout"
    assert pauses == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]
    answers.put(f"{FIRST}/x", b"ok")
    clock.passed += 30
    assert await ask(one) == b"ok"
    answers.put(f"{FIRST}/x", NoKey("timeout"))
    assert await ask(one) == "timeout"
    assert one.directories[0].paused_until <= clock()


async def test_after_an_error_that_may_be_over_all_are_asked_once_more(
    both: Directories, answers: Answers, clock: Clock
) -> None:
    for url in (FIRST, SECOND):
        answers.put(f"{url}/x", NoKey("status", status=502))
    assert await ask(both) == "status"
    assert answers.asked == [f"{FIRST}/x", f"{SECOND}/x"] * 2
    assert clock.slept == [KeyLimits().retry_s]
    for error in (NoKey("status", status=403), NoKey("status", status=503, retry_after=1.0)):
        answers.asked.clear()
        answers.put(f"{SECOND}/x", error)
        assert await ask(both) == "status"
        assert len(answers.asked) == 2
        clock.passed += 1


async def test_what_read_raises_is_a_failure_of_the_directory(both: Directories, answers: Answers) -> None:
    for url in (FIRST, SECOND):
        answers.put(f"{url}/x", b"lies")

    def read(_body: bytes) -> bytes:
        raise NoKey("wrong_did")

    with pytest.raises(NoKey, match="wrong_did"):
        await both.ask("/x", read, 100, 10.0)
    assert len(answers.asked) == 2


async def test_urls_are_shown_without_secrets(answers: Answers, clock: Clock) -> None:
    secret = Directories(["https://me:pass@a.com/plc?x=1"], answers, FAST, clock)
    assert secret.directories[0].name == "https://a.com/plc"


async def test_callers_pass_at_a_rate_in_order(clock: Clock) -> None:
    pace = Pace(Rate(10.0, 3), clock, clock.sleep)
    passed: list[tuple[int, float]] = []

    async def caller(number: int) -> None:
        await pace.wait()
        passed.append((number, round(clock(), 6)))

    await asyncio.gather(*(caller(number) for number in range(6)))
    assert [number for number, _ in passed] == list(range(6))
    assert [at for _, at in passed[:3]] == [0.0, 0.0, 0.0]
    assert all(later - at >= 0.09 for (_, at), (_, later) in pairwise(passed[2:]))


class TestOutage:
    async def ask(self, directories: Directories, clock: Clock, *outcomes: tuple[str, str]) -> None:
        """Note the outcomes of requests, five seconds apart."""
        by_url = {each.url: each for each in directories.directories}
        for url, reason in outcomes:
            by_url[url].note(NoKey(reason) if reason else None)
            clock.passed += 5

    async def test_it_lasts_from_the_first_failure_to_the_last(self) -> None:
        clock = Clock()
        directories = Directories(["a", "b"], Answers(), KeyLimits(), clock, clock.sleep)
        assert directories.outage() is None
        await self.ask(directories, clock, ("a", "status"), ("a", "status"))
        assert directories.outage() is None
        await self.ask(directories, clock, ("b", "timeout"), ("a", "status"), ("b", "tls"))
        assert directories.outage() == (10.0, 20.0, "b: tls")

    @pytest.mark.parametrize("reason", ["", "not_found", "no_key"])
    async def test_an_answer_ends_it(self, reason: str) -> None:
        clock = Clock()
        directories = Directories(["a"], Answers(), KeyLimits(), clock, clock.sleep)
        await self.ask(directories, clock, ("a", "status"), ("a", "status"))
        assert directories.outage() == (5.0, 5.0, "a: status")
        await self.ask(directories, clock, ("a", reason))
        assert directories.outage() is None

    async def test_without_directories_there_is_none(self) -> None:
        assert Directories([], Answers()).outage() is None
