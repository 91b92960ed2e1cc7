from __future__ import annotations

import pytest

from jetstream.doctor.finding import Finding, size, well
from jetstream.doctor.firehose import Answer, Seen, judge, judge_clock

URL = "wss://me:hunter2@relay.example/xrpc/com.atproto.sync.subscribeRepos?a=hunter2"


def seen(answer: Answer, **fields: object) -> Seen:
    return Seen("relay.example:443", URL, answer)._replace(**fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "level", "words"),
    [
        (seen("frame", after_s=0.25), "ok", "is a firehose: its first message came after 0.2 s"),
        (seen("silent", after_s=5), "warn", "sent nothing in 5 s - a relay sends at once"),
        (seen("frame", is_pds=True), "ok", "is a PDS: it has the events of its own accounts only"),
        (seen("silent", is_pds=True, is_crawled=True, after_s=5), "ok", "it sent nothing in 5 s"),
        (seen("frame", is_pds=True, is_crawled=False), "warn", "no public relay crawls it - for others"),
        (seen("jetstream"), "fail", "is a Jetstream, not a firehose - --upstream takes a relay or a PDS"),
        (seen("jetstream", is_mirrored=True), "ok", "is a Jetstream, whose events are taken"),
        (seen("silent", is_mirrored=True, after_s=5), "ok", "accepts connections, and sent nothing in 5 s"),
        (
            seen("frame", is_mirrored=True),
            "fail",
            "is no Jetstream: it sends binary messages - leave jetstream+",
        ),
        (seen("status", is_mirrored=True, status=503), "fail", "answers with HTTP 503"),
        (seen("status", status=200, is_page=True), "fail", "is a web page (HTTP 200), not a firehose"),
        (seen("status", status=404), "fail", "answers with HTTP 404 - there is no firehose at this path"),
        (seen("status", status=404, is_pds=True), "fail", "is a PDS, but answers with HTTP 404"),
        (seen("status", status=302), "fail", "the server has moved"),
        (seen("status", status=418), "fail", "answers with HTTP 418 - --upstream takes"),
        (
            seen("name", detail="not known"),
            "fail",
            "the host has no address (not known) - check the spelling",
        ),
        (
            seen("connect", detail="refused at wss://me:hunter2@a"),
            "fail",
            "cannot be reached (refused at wss://a)",
        ),
        (seen("tls"), "fail", "TLS failed - check the clock"),
        (seen("text"), "fail", "sends text"),
        (seen("unreadable"), "fail", "none of a firehose"),
        (seen("error", detail="FutureCursor"), "fail", "has an error (FutureCursor)"),
        (seen("closed"), "fail", "closed the connection before a message"),
    ],
)
def test_each_answer_has_a_verdict_and_what_to_do(what: Seen, level: str, words: str) -> None:
    finding = judge(what)
    line = finding.line()
    assert finding.level == level
    assert words in line
    assert line.startswith(f"{level:<4}  upstream  wss://relay.example/xrpc/")
    assert "hunter2" not in line
    assert bool(finding.hint) == (level != "ok")


def test_an_upstream_with_a_name_is_called_by_it() -> None:
    assert "  west wss://relay.example/" in judge(seen("frame")._replace(name="west")).line()


@pytest.mark.parametrize(
    ("offsets", "level", "words"),
    [
        ([(None, None)], "warn", "no upstream has told its time - `timedatectl`"),
        ([(0.3, -900.0)], "ok", "within 5 s"),
        ([(None, -0.4)], "ok", "within 5 s"),
        ([(7.0, None)], "warn", "7 s behind upstream's - set it right"),
        ([(-4_000.0, None)], "fail", "4,000 s ahead of upstream's - set"),
        ([(None, -90.0)], "fail", "90 s ahead of upstream's; or upstream's messages are late"),
        ([(0.1, None), (0.2, None), (9_999.0, None)], "ok", "within 5 s"),
    ],
)
def test_the_clock_is_compared_with_those_of_the_upstreams(
    offsets: list[tuple[float | None, float | None]], level: str, words: str
) -> None:
    finding = judge_clock([seen("frame", date_offset_s=a, time_offset_s=b) for a, b in offsets])
    assert finding.level == level
    assert words in finding.line()


def test_all_is_well_if_each_check_is_ok() -> None:
    assert well([Finding("a", "ok", "")])
    assert not well([Finding("a", "ok", ""), Finding("b", "warn", "", "x")])


def test_a_finding_is_one_line() -> None:
    assert Finding("log", "fail", "one\ntwo", "do it").line() == "fail  log       one two - do it"


@pytest.mark.parametrize(
    ("count", "text"),
    [(0, "0 bytes"), (999, "999 bytes"), (1500, "1.5 kB"), (2e6, "2.0 MB"), (6.04e9, "6.0 GB")],
)
def test_sizes(count: float, text: str) -> None:
    assert size(count) == text
