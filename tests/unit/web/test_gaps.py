"""`/gaps`: which lines it has, where the next ones are, and what is refused."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from jetstream.eventlog import UPSTREAM_GAP, Gap
from jetstream.limits import WebLimits
from jetstream.model.timestamp import TIME_MAX
from jetstream.steps import finish
from jetstream.token_bucket import Rate
from jetstream.web.gaps import Gaps
from jetstream.web.http import Request, Response

NOW = 1_800_000_000_000_000
SMALL = WebLimits(gaps_per_page=3)


def gap(time_us: int, did: str = "did:plc:a") -> Gap:
    return Gap(time_us, did, "3l3qo2vutsw2b", "3l3qo2vuowo2b", "commit")


class Kept:
    """A log with some gaps, which returns those of one time together, as `LogReader.gaps` does."""

    def __init__(self, *gaps: Gap) -> None:
        self.gaps_kept = gaps
        self.since: list[int] = []

    async def gaps(self, since_us: int, count_max: int) -> list[Gap]:
        self.since.append(since_us)
        found = [each for each in self.gaps_kept if each.time_us >= since_us]
        last = found[count_max - 1].time_us if len(found) >= count_max else TIME_MAX
        return [each for each in found if each.time_us <= last]


def ask(route: Gaps, query: str = "") -> Any:
    """Return what the route responds with: a response, or one that is being made."""
    return finish(route.handle(Request("GET", "/gaps", query, 1, {}), None))


def route(*gaps: Gap, limits: WebLimits = SMALL) -> Gaps:
    return Gaps(Kept(*gaps), limits, now_us=lambda: NOW, clock=lambda: 0.0)


async def test_a_line_has_what_is_missing() -> None:
    response = await ask(route(gap(7)))
    assert (response.status, response.content_type) == (200, "application/x-ndjson")
    assert response.body.endswith(b"\n")
    assert orjson.loads(response.body) == {
        "did": "did:plc:a",
        "from_rev": "3l3qo2vutsw2b",
        "to_rev": "3l3qo2vuowo2b",
        "time_us": 7,
        "cause": "commit",
    }
    assert response.headers is None


async def test_without_gaps_there_are_no_lines() -> None:
    response = await ask(route(), "since=-1h")
    assert (response.status, response.body) == (200, b"")


@pytest.mark.parametrize(
    ("query", "since_us"),
    [
        ("", 0),
        ("since=", 0),
        ("since=12345", 12345),
        ("since=-1h", NOW - 3_600_000_000),
        ("since=1970-01-01T00:00:01Z", 1_000_000),
        ("since=99999999999999999999", TIME_MAX),
        ("other=1&since=5", 5),
    ],
)
async def test_since_is_a_time(query: str, since_us: int) -> None:
    log = Kept()
    await ask(Gaps(log, SMALL, now_us=lambda: NOW, clock=lambda: 0.0), query)
    assert log.since == [since_us]


@pytest.mark.parametrize("value", ["yesterday", "1.5", "-", "-5x", "%00", "1" * 21, "2026-13-01T00:00:00Z"])
def test_a_bad_time_is_refused_with_its_value(value: str) -> None:
    response = ask(route(), f"since={value}")
    assert isinstance(response, Response)
    assert response.status == 400
    assert b"since" in response.body
    assert b"is not a time: give unix microseconds" in response.body


def test_a_parameter_that_is_repeated_is_refused() -> None:
    response = ask(route(), "since=1&since=2")
    assert (response.status, response.body) == (400, b"since: '1, 2' is given more than once: give it once\n")


@pytest.mark.parametrize("count", range(9))
async def test_pages_have_all_gaps_once(count: int) -> None:
    kept = [gap(10 * (number // 2), f"did:plc:{number}") for number in range(count)]
    gaps, query, seen = route(*kept), "since=0", list[str]()
    while True:
        response = await ask(gaps, query)
        lines = [orjson.loads(line) for line in response.body.splitlines()]
        seen += [line["did"] for line in lines]
        if response.headers is None:
            break
        assert len(lines) >= 3
        query = response.headers["Link"].partition("?")[2].partition(">")[0]
    assert seen == [each.did for each in kept]


async def test_a_page_is_bounded_by_bytes_too() -> None:
    kept = [gap(10 * (number // 2), f"did:plc:{number}") for number in range(9)]
    gaps = route(*kept, limits=WebLimits(gap_page_bytes=1))
    response = await ask(gaps)
    assert len(response.body.splitlines()) == 2
    assert response.headers == {"Link": '</gaps?since=10>; rel="next"'}


async def test_too_many_requests_are_refused() -> None:
    gaps = route(limits=WebLimits(gap_pages=Rate(1, 2)))
    for _ in range(2):
        assert (await ask(gaps)).status == 200
    refused = ask(gaps)
    assert (refused.status, refused.headers) == (429, {"Retry-After": str(SMALL.retry_after_s)})


async def test_a_gap_of_all_repositories_has_positions() -> None:
    response = await ask(route(Gap(9, "", "3", "9", UPSTREAM_GAP)))
    assert orjson.loads(response.body) == {"from_us": 3, "to_us": 9, "time_us": 9, "cause": "upstream"}
