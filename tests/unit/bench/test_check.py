from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.streams import LIKE, POST, Sent, event, truth_of

from jetstream.bench.check import EXAMPLES_MAX, Amount, Findings, Truth
from jetstream.bench.mix import EVERYTHING, Wanted

FILTERS = (
    EVERYTHING,
    Wanted(frozenset({LIKE})),
    Wanted(frozenset({"app.bsky.*"})),
    Wanted(frozenset({"com.example.*", POST})),
    Wanted(dids=frozenset({"did:plc:a", "did:plc:c"})),
    Wanted(dids=frozenset({"did:plc:nobody"})),
)


@st.composite
def events(draw: st.DrawFn) -> list[Sent]:
    times = sorted(draw(st.sets(st.integers(1, 60), max_size=30)))
    dids = st.sampled_from(["did:plc:a", "did:plc:b", "did:plc:c"])
    collections = st.sampled_from([LIKE, POST, "com.example.move", ""])
    return [event(time, draw(dids), draw(collections), padding=draw(st.integers(0, 9))) for time in times]


@given(events(), st.sampled_from(FILTERS), st.integers(0, 61), st.integers(0, 61))
def test_the_truth_is_that_of_a_plain_list(
    sent: list[Sent], wanted: Wanted, first_us: int, stop_us: int
) -> None:
    truth = truth_of(sent)
    chosen = [one for one in sent if wanted.wants(one.did, one.collection)]
    within = [len(one.frame) for one in chosen if first_us <= one.time_us < stop_us]
    assert truth.amount(wanted, first_us, stop_us) == Amount(len(within), sum(within))
    assert truth.everything.first_us == min((one.time_us for one in sent), default=0)
    assert truth.everything.last_us == max((one.time_us for one in sent), default=0)
    assert truth.dids == list(dict.fromkeys(one.did for one in sent))


def test_a_filter_is_resolved_again_when_a_collection_appears() -> None:
    truth, wanted = Truth(), Wanted(frozenset({"app.bsky.*"}))
    truth.add(1, 10, "did:plc:a", LIKE)
    assert truth.amount(wanted, 0, 9).events == 1
    truth.add(2, 10, "did:plc:a", POST)
    assert truth.amount(wanted, 0, 9).events == 2


def test_findings_are_all_counted_and_the_first_ones_kept() -> None:
    findings = Findings()
    for number in range(10):
        findings.add("lost", f"number {number}")
    findings.add("late", "by a day")
    assert findings.counts == {"lost": 10, "late": 1}
    assert findings.examples == [*(f"lost: number {n}" for n in range(EXAMPLES_MAX)), "late: by a day"]
