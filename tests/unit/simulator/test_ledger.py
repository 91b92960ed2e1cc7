from __future__ import annotations

from typing import Any

import orjson

from jetstream.simulator.ledger import Ledger, missing, named
from jetstream.simulator.verdicts import Verdict


def line(relay: str, level: str | None, *lost: int, **more: Any) -> dict[str, Any]:
    return {"relay": relay, "level": level, "events": [{"index": index} for index in lost]} | more


def test_an_event_is_missing_where_every_relay_has_lost_it() -> None:
    lines = [
        line("a", "frame", 1, 2),
        line("b", "frame", 2, 3),
        line("a", None, 3),
        line("c", "frame", 1, 2, 3),
    ]
    assert missing(lines, ["a", "b"]) == {2}
    assert missing(lines, ["a"]) == {1, 2}
    assert missing(lines, ["a", "b", "d"]) == set()


def test_a_level_includes_those_below_it_and_a_refusal_loses_the_whole_commit() -> None:
    lines = [line("a", "frame", 1), line("a", "cid", 2, refused=[2, 3]), line("a", "full", 4)]
    assert missing(lines, ["a"], "frame") == {1}
    assert missing(lines, ["a"], "cid") == {1, 2}
    assert missing(lines, ["a"], "full") == {1, 2, 3, 4}


def test_a_line_names_the_host_the_events_and_the_verdict() -> None:
    written: list[bytes] = []
    events: list[dict[str, object]] = [{"did": "did:plc:a", "kind": "commit"}] * 3
    Ledger(written.append, "b").add(
        "wrong_cid",
        7,
        level="cid",
        events=named(events, 10, [2, 5]),
        verdict=Verdict("refused", "hash"),
        did="did:plc:a",
    )
    assert orjson.loads(written[0]) == {
        "relay": "b",
        "seq": 7,
        "fault": "wrong_cid",
        "did": "did:plc:a",
        "level": "cid",
        "events": [{"index": 12, "did": "did:plc:a", "kind": "commit"}],
        "verdict": "refused",
        "reason": "hash",
    }
    Ledger(None, "b").add("skip", 1)
