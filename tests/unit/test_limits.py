"""The bounds that `docs/api.md` and `docs/settings.md` promise: tests of each bound pass other values."""

from __future__ import annotations

import pytest

from jetstream.limits import SourceLimits, UpstreamLimits, WebLimits
from jetstream.retry import RETRY_AFTER_MAX_S
from jetstream.settings.log import LogSettings
from jetstream.web.head_reader import FIELD_BYTES_MAX, FIELDS_BYTES_MAX, REQUEST_LINE_BYTES_MAX
from jetstream.web.websocket import MESSAGE_BYTES_MAX

UPSTREAMS = [UpstreamLimits(), SourceLimits().pds]


def test_the_size_of_a_request_and_of_a_message() -> None:
    assert REQUEST_LINE_BYTES_MAX == 1 << 20
    assert FIELD_BYTES_MAX == 16 << 10
    assert FIELDS_BYTES_MAX == 64 << 10
    assert MESSAGE_BYTES_MAX == 1_000_000


def test_a_request_and_a_message_have_ten_seconds_and_memory_of_all_is_bounded() -> None:
    limits = WebLimits()
    assert (limits.request_timeout_s, limits.message_timeout_s) == (10.0, 10.0)
    assert limits.deadline_check_s <= 1.0
    assert limits.pending_bytes_max <= 64 << 20


@pytest.mark.parametrize("limits", UPSTREAMS)
def test_no_number_of_an_upstream_silences_it_for_more_than_ten_frames(limits: UpstreamLimits) -> None:
    assert limits.confirm_frames <= 10
    assert limits.restart_frames <= 10
    assert limits.none_accepted_s == 10.0


@pytest.mark.parametrize("limits", UPSTREAMS)
def test_what_an_upstream_sends_has_little_memory_and_short_turns(limits: UpstreamLimits) -> None:
    # An empty frame takes a list slot, a time and a bytes object.
    assert limits.buffer_bytes_max <= 8 << 20
    assert limits.frame_overhead_bytes >= 100
    assert limits.turn_s <= 0.005


def test_a_relay_that_asks_for_a_pause_is_asked_again_after_five_minutes() -> None:
    assert RETRY_AFTER_MAX_S == 300.0


def test_a_step_of_the_clock_must_last_for_five_minutes() -> None:
    assert LogSettings().clock_settle == 300.0
