from __future__ import annotations

from benches.relay_delays import RelayReadings, cached_tid_us

SENT_US = cached_tid_us("3l3f6nzhvkl2g")
COMMIT = {"time_us": SENT_US + 5_000, "commit": {"rev": "3l3f6nzhvkl2g"}}
IDENTITY = {"time_us": SENT_US + 5_000, "identity": {}}


def test_the_delay_from_the_relay_is_that_of_the_rev() -> None:
    readings = RelayReadings()
    readings.time(COMMIT, SENT_US + 7_000)
    readings.time(IDENTITY, SENT_US + 7_000)
    assert (readings.delays.count, readings.delays.max_us) == (2, 2_000)
    assert (readings.relay_delays.count, readings.relay_delays.max_us) == (1, 7_000)


def test_both_kinds_of_delays_are_discarded_together() -> None:
    readings = RelayReadings()
    readings.time(COMMIT, SENT_US + 7_000)
    readings.reset_delays()
    assert (readings.delays.count, readings.relay_delays.count) == (0, 0)
