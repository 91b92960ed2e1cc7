"""What answers at an upstream: a firehose or something else, and what its clock says. Judging it is pure.

    probe: connect, read a message, ask over HTTP ─▶ Seen ─▶ judge, judge_clock ─▶ Finding

A `Seen` has what was observed and no opinion. So each kind of mistake that operators make has a test
without a network: a web page, a Jetstream in place of a relay, a PDS that no relay crawls.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Final, Literal, NamedTuple
from urllib.parse import urlsplit

from jetstream.doctor.finding import Finding, Level
from jetstream.upstream.connection import response_fields
from jetstream.upstreams import origin
from jetstream.urls import shown, without_secrets

# What the connection came to:
#   frame       a message of a firehose
#   silent      connected, and nothing came
#   jetstream   events as JSON, here or at `/subscribe`
#   text        other text messages
#   unreadable  binary messages that are none of a firehose
#   error       the firehose says that it has an error
#   closed      connected, and closed before a message
#   status      an HTTP response instead of a WebSocket
#   name        the host has no address
#   tls         no agreement about TLS, or a certificate that is not trusted
#   connect     anything else that kept the connection from being made
Answer = Literal[
    "frame",
    "silent",
    "jetstream",
    "text",
    "unreadable",
    "error",
    "closed",
    "status",
    "name",
    "tls",
    "connect",
]

# Seconds of difference from which on the clock is a warning. The field `Date` has whole seconds, and a
# response takes a while.
CLOCK_WARN_S: Final = 5.0
# Seconds from which on it is a failure: `clock.STEP_US` counts such a difference as a step of the clock.
CLOCK_FAIL_S: Final = 60.0
# Ends of hints, of which several answers have one.
SIMULATE: Final = "without a network, run `jetstream simulate` and set --upstream ws://127.0.0.1:7777"
_RELAY: Final = "--upstream takes a relay or a PDS, such as wss://bsky.network"


class Seen(NamedTuple):
    """What one upstream has answered."""

    # As in `Upstream`: what the log calls it, and where it is.
    name: str
    url: str
    # What the connection came to, in one word; see `Answer`.
    answer: Answer
    # The text of an error, or the reason of a close. It comes from a library or from the peer: it is
    # shown without what is secret in its URLs.
    detail: str = ""
    status: int | None = None  # of an HTTP response that is no WebSocket handshake
    is_page: bool = False  # that response is HTML
    # Seconds from the connection to the first message, or for which was waited if there was none.
    after_s: float = 0.0
    # It has answered `com.atproto.server.describeServer` as a PDS does.
    is_pds: bool = False
    # The setting says that it is a Jetstream: `jetstream+` is before its URL.
    is_mirrored: bool = False
    is_crawled: bool | None = None  # by the public relay, if it is a PDS; None: not known
    # Seconds by which its clock is ahead of ours, by the field `Date` of a response; None: there was
    # none.
    date_offset_s: float | None = None
    # Seconds by which the time of its first message is ahead of our clock. It is below 0 if messages are
    # late, too.
    time_offset_s: float | None = None


# Answers of what cannot be read, whatever it is: what to say, and what to do.
_NO_ANSWER: Final[dict[Answer, tuple[str, str]]] = {
    "name": (
        "cannot be reached: the host has no address",
        f"check the spelling, and the network and DNS of this machine; {SIMULATE}",
    ),
    "tls": (
        "cannot be reached: TLS failed",
        "check the clock and the certificate; ws:// connects without TLS",
    ),
    "connect": ("cannot be reached", f"check the host, the port and the firewall; {SIMULATE}"),
    "jetstream": (
        "is a Jetstream, not a firehose",
        f"{_RELAY}; with jetstream+ before the URL, a Jetstream is mirrored",
    ),
    "text": ("sends text, which no firehose does", _RELAY),
    "unreadable": ("sends messages that are none of a firehose", _RELAY),
    "error": ("says that it has an error", "an --upstream-cursor may be wrong; else ask its operator"),
    "closed": ("closed the connection before a message", f"is this the URL of a firehose? {_RELAY}"),
}


def judge(seen: Seen) -> Finding:
    """Say what an upstream is, and what to do if it is of no use.

    A PDS that is no relay is well: an operator of one may want its accounts only. An upstream that is
    silent is a warning, since a relay is never silent for seconds.
    """
    if seen.is_mirrored and seen.answer in {"jetstream", "silent", "frame", "unreadable"}:
        return _mirrored(seen)
    if seen.answer == "status":
        return _no_socket(seen)
    if seen.answer in _NO_ANSWER:
        text, hint = _NO_ANSWER[seen.answer]
        detail = f" ({without_secrets(seen.detail)})" if seen.detail else ""
        return _finding(seen, "fail", f"{text}{detail}", hint)
    if seen.is_pds:
        return _pds(seen)
    if seen.answer == "silent":
        return _finding(
            seen,
            "warn",
            f"accepts connections, and sent nothing in {seen.after_s:.0f} s",
            "a relay sends at once: is this a quiet network, or another service?",
        )
    return _finding(seen, "ok", f"is a firehose: its first message came after {seen.after_s:.1f} s")


def _mirrored(seen: Seen) -> Finding:
    """Judge what is to be a Jetstream, and accepts connections. A silent one is well."""
    if seen.answer == "jetstream":
        return _finding(seen, "ok", "is a Jetstream, whose events are taken")
    if seen.answer == "silent":
        return _finding(seen, "ok", f"accepts connections, and sent nothing in {seen.after_s:.0f} s")
    hint = "leave jetstream+ out of --upstream to read a relay or a PDS"
    return _finding(seen, "fail", "is no Jetstream: it sends binary messages", hint)


def _no_socket(seen: Seen) -> Finding:
    """Judge what answers with an HTTP response instead of a WebSocket.

    The hint is the same that a server logs for this status.
    """
    if seen.is_page:
        return _finding(seen, "fail", f"is a web page (HTTP {seen.status}), not a firehose", _RELAY)
    hint = response_fields(seen.status).get("hint")
    what = "is a PDS, but answers" if seen.is_pds else "answers"
    return _finding(seen, "fail", f"{what} with HTTP {seen.status}", str(hint or _RELAY))


def _pds(seen: Seen) -> Finding:
    """Judge the firehose of a PDS. One that no relay crawls is a warning: others do not see its accounts."""
    came = f"sent nothing in {seen.after_s:.0f} s" if seen.answer == "silent" else "sends its firehose"
    text = f"is a PDS: it has the events of its own accounts only; it {came}"
    if seen.is_crawled is False:
        host = urlsplit(seen.url).hostname
        return _finding(
            seen,
            "warn",
            f"{text}; no public relay crawls it",
            f"for others to see its accounts: POST com.atproto.sync.requestCrawl with {host} to a relay",
        )
    return _finding(seen, "ok", text)


def _finding(seen: Seen, level: Level, text: str, hint: str = "") -> Finding:
    """Return a finding about an upstream, which names it, and its URL without secrets."""
    name = "" if seen.name == origin(seen.url) else f"{seen.name} "
    return Finding("upstream", level, f"{name}{shown(seen.url)} {text}", hint)


def judge_clock(all_seen: Sequence[Seen]) -> Finding:
    """Compare the clock with those of the upstreams: by their `Date`, else by the times of messages.

    Of several, the median counts, so one upstream with a wrong clock changes little. Times of messages
    can only show that our clock is behind: a message may be late for other reasons.
    """
    dates = [each.date_offset_s for each in all_seen if each.date_offset_s is not None]
    times = [each.time_offset_s for each in all_seen if each.time_offset_s is not None]
    if not dates and not times:
        text = "cannot be compared: no upstream has told its time"
        return Finding("clock", "warn", text, "`timedatectl` says whether it is synchronised")
    offset_s = median(dates or times)
    if abs(offset_s) < CLOCK_WARN_S:
        return Finding("clock", "ok", f"within {CLOCK_WARN_S:.0f} s of upstream's")
    side = "behind" if offset_s > 0 else "ahead of"
    level: Level = "warn" if abs(offset_s) < CLOCK_FAIL_S else "fail"
    doubt = "" if dates or offset_s > 0 else "; or upstream's messages are late"
    hint = "set it right (`timedatectl set-ntp true`) before the server runs: its positions are times"
    return Finding("clock", level, f"{abs(offset_s):,.0f} s {side} upstream's{doubt}", hint)
