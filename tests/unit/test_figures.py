"""Samples of a server's counters, and the lines of its log."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from jetstream.figures import Figures, log_ends, span_s
from jetstream.metrics import Metrics
from jetstream.model.batch import Batch
from jetstream.model.event import CREATE, Event
from jetstream.status import LogStatistics, Status, UpstreamStatus

RELAY = UpstreamStatus("relay.example:443", "wss://relay.example", "connected", 7, 9, 0.25, 1.0, 50)
STATUS = Status(
    version="1",
    now_us=5_000_000,
    tip=4_000_000,
    log=LogStatistics(3, 3 << 20, 1_000_000, 4_000_000, writable=True),
    upstreams=(RELAY,),
    reasons={},
    subscribers=2,
)


class Server:
    """Figures whose clock and status a test sets."""

    def __init__(self) -> None:
        self.now, self.status, self.metrics = 0.0, STATUS, Metrics(("classic",))
        self.figures = Figures(
            self.metrics, lambda: self.status, clock=lambda: self.now, cpu_s=lambda: self.now / 2
        )

    def store(self, count: int) -> None:
        events = [Event(CREATE, b"did:plc:a", b"x.y.z", b"1", b"rev", b"", b"")] * count
        self.metrics.count_events(Batch.of(events, range(1, count + 1)))

    def run(self, seconds: int, per_s: int = 0) -> None:
        for _ in range(seconds):
            self.now += 1
            self.store(per_s)
            self.metrics.count_sent("classic", 3, 500)
            relay = replace(RELAY, lag_s=self.status.upstreams[0].lag_s, frames=int(50 * self.now))
            self.status = replace(self.status, upstreams=(relay,))
            self.figures.take()


def test_samples_have_what_the_metrics_hold() -> None:
    server = Server()
    server.run(20, per_s=4)
    interval = server.figures.statistics.over(10)
    assert interval is not None
    assert interval.seconds == 10
    assert interval.per_s(lambda sample: sample.events["create"]) == 4
    assert interval.per_s(lambda sample: sample.messages) == 3
    assert interval.per_s(lambda sample: sample.bytes) == 500
    assert interval.per_s(lambda sample: sample.frames["relay.example:443"]) == 50
    assert interval.per_s(lambda sample: sample.cpu_s) == 0.5
    assert server.metrics.collections.rates(5) == [("x.y.z", 4.0)]


def test_quantiles_are_of_the_histograms() -> None:
    server = Server()
    server.run(1)
    for _ in range(100):
        server.metrics.loop_delay.observe(0.004)
        server.metrics.delivery.observe(0.2)
    server.run(1)
    interval = server.figures.statistics.over(10)
    assert interval is not None
    assert interval.quantile(lambda sample: sample.loop_delay, 0.5) == pytest.approx(0.00375)
    assert interval.quantile(lambda sample: sample.delivery, 0.5) == pytest.approx(0.175)


def test_one_line_a_minute_has_the_figures() -> None:
    server = Server()
    with capture_logs() as lines:
        server.run(59)
        assert lines == []
        server.run(90, per_s=2)
    assert [line["event"] for line in lines] == ["figures", "figures"]
    assert lines[1] == {
        "event": "figures",
        "log_level": "info",
        "events_per_s": 2.0,
        "messages_per_s": 3.0,
        "lag_s": 0.2,
        "subscribers": 2,
        "log_mib": 3.0,
        "log_span": "3s",
        "upstreams": "1 of 1 connected",
    }


def test_lines_say_how_far_behind_the_server_is() -> None:
    server = Server()
    server.status = replace(STATUS, upstreams=(replace(RELAY, lag_s=500.0),))
    with capture_logs() as lines:
        server.run(5)
        server.status = replace(STATUS, upstreams=(replace(RELAY, lag_s=0.5),))
        server.run(1)
    assert [line["event"] for line in lines] == ["catching up with upstream", "caught up with upstream"]


@pytest.mark.parametrize("age_s", [None, 60.0])
def test_an_old_lag_says_nothing(age_s: float | None) -> None:
    server = Server()
    server.status = replace(STATUS, upstreams=(replace(RELAY, lag_s=500.0, last_frame_age_s=age_s),))
    with capture_logs() as lines:
        server.figures.take()
    assert lines == []


def test_a_server_says_at_its_start_when_its_log_ends() -> None:
    assert log_ends(None, 5_000_000) == {}
    assert log_ends(4_000_000, 5_000_000) == {}
    assert log_ends(0, 7_500_000_000) == {"log_ends": "2h05m ago"}


def test_a_disk_that_does_not_answer_ends_nothing() -> None:
    def fail() -> Status:
        raise OSError(5, "Input/output error")

    figures = Figures(Metrics(), fail)
    figures.take()
    assert figures.statistics.history()["events_per_s"] == []


def test_the_span_of_the_log() -> None:
    assert span_s(STATUS) == 3.0
    assert span_s(replace(STATUS, log=replace(STATUS.log, oldest_us=None))) is None
