"""The states of accounts that several sources tell: what passes, what is told when another source decides."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from jetstream.admission.accounts import Accounts, Difference

GRACE_S = 30.0
NOW_US = 1_800_000_000_000_000
DID = "did:plc:a"
Rows = Mapping[tuple[str, str], bytes]


def body(active: bool = True, status: str = "", seq: int = 1, did: str = DID) -> bytes:
    fields: dict[str, Any] = {"active": active, "did": did, "seq": seq}
    return orjson.dumps(fields | ({"status": status} if status else {}) | {"time": "2026-11-27T00:00:00Z"})


ACTIVE = body()
TAKEN_DOWN = body(False, "takendown", 2)
DEACTIVATED = body(False, "deactivated", 3)
DELETED = body(False, "deleted", 4)


class Setup:
    """Two relays, a and b, and a PDS, p; all are connected and steady."""

    def __init__(
        self, rows: Rows | None = None, rows_max: int = 100, hosts: tuple[str, ...] = ("p",)
    ) -> None:
        self.now = 0.0
        self.rows: dict[tuple[str, str], bytes] = dict(rows or {})
        self.accounts = Accounts(["a", "b"], hosts, self.rows, now=0.0, grace_s=GRACE_S, rows_max=rows_max)
        self.connect("a", "b", *hosts)

    def connect(self, *names: str, seconds: float = 0.0) -> None:
        """Connect exactly these sources, and let time pass."""
        self.accounts.update(names, self.now)
        self.now += seconds
        self.accounts.update(names, self.now)

    def offer(self, source: str, body: bytes, host: str | None = None) -> bool:
        return self.accounts.offer(source, orjson.loads(body)["did"], body, host)

    def set_sources(self, relays: list[str], hosts: list[str]) -> None:
        """Set the sources, and forget what others have said, one account after another."""
        self.accounts.set_sources(relays, hosts, self.now)
        while self.accounts.forget_some(1):
            pass

    def told(self) -> list[Difference]:
        found = []
        while not self.accounts.is_settled:
            found += self.accounts.differences(1, NOW_US)
        return found

    def store(self) -> dict[tuple[str, str], bytes]:
        """Do what an append does with the rows that have changed."""
        for key, row in self.accounts.changes().items():
            if row is None:
                self.rows.pop(key, None)
            else:
                self.rows[key] = row
        assert len(self.rows) == len(self.accounts)
        return self.rows


@pytest.fixture
def setup() -> Setup:
    return Setup()


def test_the_first_connected_relay_decides(setup: Setup) -> None:
    assert not setup.offer("b", TAKEN_DOWN)
    assert setup.offer("a", DEACTIVATED)
    assert not setup.offer("b", DEACTIVATED)
    assert setup.told() == []


def test_its_own_word_passes_again(setup: Setup) -> None:
    for event in (ACTIVE, ACTIVE, DELETED, DELETED, ACTIVE, ACTIVE):
        assert setup.offer("a", event)


def test_a_short_outage_changes_nothing(setup: Setup) -> None:
    setup.connect("b", seconds=GRACE_S - 1)
    assert not setup.offer("b", TAKEN_DOWN)
    assert setup.told() == []
    setup.connect("a", "b", seconds=GRACE_S)
    assert setup.told() == []
    assert setup.offer("a", TAKEN_DOWN)


def test_what_the_next_source_says_is_told_and_undone(setup: Setup) -> None:
    assert not setup.offer("b", TAKEN_DOWN)
    setup.connect("b", seconds=GRACE_S)
    assert setup.told() == [Difference("b", DID, TAKEN_DOWN)]
    setup.connect("b", seconds=GRACE_S)
    assert setup.told() == []
    setup.connect("a", "b", seconds=GRACE_S - 1)
    assert setup.told() == []
    setup.connect("a", "b", seconds=1)
    (told,) = setup.told()
    assert (told.source, told.did, told.status) == ("a", DID, "")
    assert orjson.loads(told.body) == {
        "active": True,
        "did": DID,
        "seq": 2,
        "time": "2027-01-15T08:00:00.000000Z",
    }
    setup.connect("b", seconds=GRACE_S)
    assert setup.told() == [Difference("b", DID, TAKEN_DOWN)]


def test_what_the_next_source_says_later_passes(setup: Setup) -> None:
    setup.connect("b", seconds=GRACE_S)
    assert setup.offer("b", TAKEN_DOWN)
    assert setup.offer("b", TAKEN_DOWN)


def test_nothing_is_told_twice_because_sources_change(setup: Setup) -> None:
    assert setup.offer("a", DEACTIVATED)
    setup.connect("b", seconds=GRACE_S)
    assert setup.told() == []
    assert not setup.offer("b", DEACTIVATED)  # it is late
    assert setup.offer("b", DEACTIVATED)
    setup.connect("a", "b", seconds=GRACE_S)
    assert setup.told() == []


def test_what_all_have_said_is_known_when_they_differ_later(setup: Setup) -> None:
    assert setup.offer("a", DEACTIVATED)
    assert not setup.offer("b", DEACTIVATED)
    assert setup.offer("a", TAKEN_DOWN)
    setup.connect("b", seconds=GRACE_S)
    assert setup.told() == [Difference("b", DID, DEACTIVATED)]
    setup.connect("a", "b", seconds=GRACE_S)
    assert setup.told() == [Difference("a", DID, TAKEN_DOWN)]


def test_a_source_that_has_said_nothing_changes_nothing(setup: Setup) -> None:
    assert setup.offer("a", TAKEN_DOWN)
    setup.connect("b", seconds=GRACE_S)
    assert setup.told() == []
    assert setup.offer("b", ACTIVE)


def test_the_silence_of_one_that_was_not_there_is_not_its_word(setup: Setup) -> None:
    setup.connect("b", seconds=GRACE_S - 1)
    assert not setup.offer("b", DEACTIVATED)
    setup.connect("b", seconds=1)
    assert setup.told() == [Difference("b", DID, DEACTIVATED)]
    setup.connect("a", "b", seconds=GRACE_S)
    assert setup.told() == []


def test_if_nobody_is_steady_the_first_that_is_connected_decides(setup: Setup) -> None:
    setup.connect(seconds=GRACE_S)
    setup.connect("b")
    assert setup.offer("b", DEACTIVATED)
    setup.connect("a", "b")
    assert not setup.offer("b", ACTIVE)
    assert setup.offer("a", DELETED)


def test_if_nobody_is_connected_the_one_that_speaks_decides(setup: Setup) -> None:
    setup.connect(seconds=GRACE_S)
    assert setup.offer("b", DEACTIVATED)
    assert setup.offer("a", ACTIVE)


def test_the_own_pds_decides_before_any_relay(setup: Setup) -> None:
    assert not setup.offer("a", TAKEN_DOWN, host="p")
    assert setup.offer("p", DEACTIVATED, host="p")
    assert not setup.offer("a", DEACTIVATED, host="p")
    setup.connect("a", "b", seconds=GRACE_S)
    assert setup.told() == []
    assert setup.offer("a", ACTIVE, host="p")
    setup.connect("a", "b", "p", seconds=GRACE_S)
    assert setup.told() == [Difference("p", DID, DEACTIVATED)]


def test_the_pds_is_remembered_for_what_a_relay_says(setup: Setup) -> None:
    setup.connect("a", "b")
    assert not setup.offer("a", TAKEN_DOWN, host="p")
    setup.connect("a", "b", "p")
    assert setup.told() == []


def test_an_account_that_moves_to_another_pds() -> None:
    setup = Setup(hosts=("p", "q"))
    assert setup.offer("p", DEACTIVATED, host="p")
    assert setup.offer("q", ACTIVE, host="q")
    assert not setup.offer("a", DEACTIVATED, host="q")
    setup.connect("a", "b", "p", "q", seconds=GRACE_S)
    assert setup.told() == []


def test_one_source_keeps_nothing() -> None:
    accounts = Accounts(["a"], [], {}, now=0.0, grace_s=GRACE_S, rows_max=10)
    for event in (DELETED, DELETED, ACTIVE):
        assert accounts.offer("a", DID, event)
    assert len(accounts) == 0
    assert accounts.changes() == {}


def test_rows_are_there_only_while_they_are_needed(setup: Setup) -> None:
    assert setup.offer("a", ACTIVE)
    assert not setup.offer("b", ACTIVE)
    assert setup.store() == {}
    assert setup.offer("a", DEACTIVATED)
    assert not setup.offer("b", DEACTIVATED)
    assert setup.store() == {("", DID): b"a\0b\0" + DEACTIVATED}
    assert setup.offer("a", ACTIVE)
    assert setup.store() == {("", DID): b"a\0" + ACTIVE, ("b", DID): DEACTIVATED}
    assert not setup.offer("b", ACTIVE)
    assert setup.store() == {}


def test_a_restart_changes_nothing(setup: Setup) -> None:
    assert not setup.offer("b", TAKEN_DOWN)
    setup.connect("b", seconds=GRACE_S)
    setup.told()
    again = Setup(setup.store())
    assert again.accounts.changes() == {}
    assert [told.source for told in again.told()] == ["a"]


def test_a_source_that_is_not_connected_yet_tells_nothing(setup: Setup) -> None:
    assert not setup.offer("b", TAKEN_DOWN)
    again = Accounts(["b", "a"], [], setup.store(), now=0.0, grace_s=GRACE_S, rows_max=10)
    assert again.differences(10, NOW_US) == []
    again.update(["b"], 1.0)
    assert again.differences(10, NOW_US) == [Difference("b", DID, TAKEN_DOWN)]


def test_sources_are_removed_and_added(setup: Setup) -> None:
    assert not setup.offer("b", TAKEN_DOWN)
    setup.set_sources(["c", "a"], [])
    assert setup.store() == {}
    setup.connect("a", "c")
    assert setup.offer("a", DEACTIVATED)
    assert not setup.offer("c", ACTIVE)
    setup.connect("a", "c", seconds=GRACE_S)
    assert setup.told() == [Difference("c", DID, ACTIVE)]
    setup.set_sources(["c"], [])
    assert setup.told() == []
    assert setup.store() == {}


def test_what_a_source_has_said_that_is_gone_is_forgotten_step_by_step_and_counts_no_more() -> None:
    setup = Setup()
    for number in range(5):
        assert not setup.offer("b", body(False, "takendown", did=f"did:plc:{number}"))
    setup.accounts.set_sources(["a"], ["p"], setup.now)
    assert setup.accounts.forget_some(2)
    assert {did for _, did in setup.store()} == {"did:plc:2", "did:plc:3", "did:plc:4"}
    setup.connect("a", "p", seconds=GRACE_S)
    assert setup.told() == []
    assert setup.offer("a", body(False, "deactivated", did="did:plc:4"))
    assert setup.accounts.forget_some(2)
    assert not setup.accounts.forget_some(2)
    assert setup.store() == {("", "did:plc:4"): b"a\0" + body(False, "deactivated", did="did:plc:4")}


def test_the_accounts_that_have_changed_longest_ago_are_forgotten() -> None:
    setup = Setup(rows_max=4)
    for number in range(3):
        assert not setup.offer("b", body(False, "takendown", did=f"did:plc:{number}"))
    assert {did for _, did in setup.store()} == {"did:plc:1", "did:plc:2"}
    setup.connect("b", seconds=GRACE_S)
    assert [told.did for told in setup.told()] == ["did:plc:1", "did:plc:2"]
    smaller = Setup(setup.store(), rows_max=3)
    assert {did for _, did in smaller.store()} == {"did:plc:2"}


SOURCES = st.sampled_from(["a", "b", "p"])
OFFER = st.tuples(SOURCES, st.integers(0, 3), st.sampled_from(["", "", "takendown", "deactivated"]))
CONNECT = st.tuples(st.frozensets(SOURCES), st.sampled_from([0.0, 5.0, 29.0, 30.0, 31.0]))
STEPS = st.lists(OFFER | CONNECT | st.integers(0, 3), max_size=60)


class _World:
    """What sources have said, what readers have heard, and whether it survives a crash at any time."""

    def __init__(self, rows_max: int) -> None:
        self.setup = Setup(rows_max=rows_max)
        self.heard: dict[str, tuple[bool, str]] = {}
        self.said: dict[tuple[str, str], tuple[bool, str]] = {}

    def hear(self, event: bytes) -> tuple[bool, str]:
        fields = orjson.loads(event)
        before = self.heard.get(fields["did"], (True, ""))
        self.heard[fields["did"]] = (fields["active"], fields.get("status", ""))
        return before

    def step(self, step: Any) -> None:
        if isinstance(step, int):
            self.tell(self.setup.accounts.differences(step, NOW_US))
        elif isinstance(step[0], frozenset):
            self.setup.connect(*step[0], seconds=step[1])
        else:
            source, number, status = step
            # The PDS hosts the even accounts.
            if source != "p" or number % 2 == 0:
                event = body(not status, status, did=f"did:plc:{number}")
                self.said[source, f"did:plc:{number}"] = (not status, status)
                if self.setup.offer(source, event, "p" if number % 2 == 0 else None):
                    self.hear(event)

    def tell(self, differences: list[Difference]) -> None:
        for each in differences:
            before = self.hear(each.body)
            assert before != self.heard[each.did]  # only differences are told


@given(STEPS, st.sampled_from([3, 1000]))
def test_readers_hear_what_is_stored_and_only_differences(steps: list[Any], rows_max: int) -> None:
    world = _World(rows_max)
    for step in steps:
        world.step(step)
        rows = world.setup.store()
        assert len(rows) <= rows_max
        again = Accounts(["a", "b"], ["p"], rows, now=0.0, grace_s=GRACE_S, rows_max=rows_max)
        assert again.changes() == {}
        if rows_max == 1000:
            for did, state in world.heard.items():
                row = rows.get(("", did), b"").rpartition(b"\0")[2] or ACTIVE
                fields = orjson.loads(row)
                assert (fields["active"], fields.get("status", "")) == state


@given(STEPS)
def test_in_the_end_readers_know_what_the_source_that_decides_has_said(steps: list[Any]) -> None:
    world = _World(1000)
    for step in steps:
        world.step(step)
    world.setup.connect("a", "b", "p", seconds=GRACE_S)
    world.tell(world.setup.told())
    for (source, did), state in world.said.items():
        # A state that is active is not kept once all agree, so a source may have to say it again.
        if source == "a" and did in ("did:plc:1", "did:plc:3") and state != (True, ""):
            assert world.heard[did] == state
