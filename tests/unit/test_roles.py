"""What a role has, and what has no effect in it."""

from __future__ import annotations

from dataclasses import fields
from typing import get_args

from jetstream.limits import Limits, UpstreamLimits
from jetstream.roles import UNUSED, Role, reads_upstream, serves_subscribers
from jetstream.settings import Settings


def test_each_role_does_something_and_only_one_does_both() -> None:
    does = {role: (reads_upstream(role), serves_subscribers(role)) for role in get_args(Role)}
    assert does == {"all": (True, True), "ingest": (True, False), "edge": (False, True)}


def test_settings_without_effect_are_settings() -> None:
    assert UNUSED.keys() == set(get_args(Role))
    assert frozenset().union(*UNUSED.values()) <= {field.name for field in fields(Settings)}


def test_an_ingest_waits_a_little_for_more() -> None:
    limits = Limits().of_ingest()
    assert limits.upstream.unawaited_rest_s == limits.sources.pds.unawaited_rest_s == 0.006
    quick = Limits(upstream=UpstreamLimits(unawaited_rest_s=0.001)).of_ingest()
    assert quick.upstream.unawaited_rest_s == 0.001


def test_an_ingest_takes_larger_batches_where_many_frames_wait() -> None:
    before = Limits(upstream=UpstreamLimits(batch_frames_max=7, turn_s=0.001)).upstream
    after = Limits(upstream=before).of_ingest().upstream
    assert (after.batch_frames_max, after.turn_s) == (14, 0.004)
