"""The states of repositories in a term: at hand are those that have changed, and those that were loaded."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jetstream.errors import LogError
from jetstream.eventlog.postgresql.repo_states import RepoStates

DIDS = [number.to_bytes(15, "big") for number in range(12)]
STATE = b"s" * 24


class Table:
    """The table of states, and what a term has of it."""

    def __init__(self, loaded_max: int = 100) -> None:
        self.rows: dict[bytes, bytes] = {}
        self.asked: list[list[bytes]] = []
        # What is done before an answer is returned.
        self.meanwhile: Any = None
        self.states = RepoStates("a log", self.fetch, {}, 0, 0, loaded_max=loaded_max)

    async def fetch(self, _statement: str, dids: list[bytes]) -> list[Any]:
        self.asked.append(dids)
        found = [(did, self.rows[did]) for did in dids if did in self.rows]
        await asyncio.sleep(0)
        if self.meanwhile is not None:
            self.meanwhile()
        return found

    def end_fold(self) -> None:
        """Write what is folded, and note that."""
        for did, state in self.states.folding.items():
            if state is None:
                self.rows.pop(did, None)
            else:
                self.rows[did] = state
        self.states.end_fold()

    def fold(self) -> None:
        self.states.begin_fold(1)
        self.end_fold()


async def test_what_is_not_at_hand_must_be_loaded() -> None:
    table = Table()
    table.rows[DIDS[0]] = STATE
    states = table.states
    assert DIDS[0] not in states
    with pytest.raises(LogError, match=r"a log: the state of the repository 0{30} was not loaded"):
        states.get(DIDS[0])
    await states.load(DIDS[:2])
    assert [states.get(did) for did in DIDS[:2]] == [STATE, None]
    await states.load(DIDS[:2])
    assert table.asked == [DIDS[:2]]


async def test_what_changes_while_it_is_loaded_is_the_newest() -> None:
    for folds in True, False:
        table = Table()
        table.rows[DIDS[0]] = STATE

        def change(table: Table = table, folds: bool = folds) -> None:
            table.states.note({DIDS[0]: b"new"})
            if folds:
                table.fold()

        table.meanwhile = change
        await table.states.load(DIDS[:1])
        assert table.states.get(DIDS[0]) == b"new"
        table.fold()
        assert table.states.get(DIDS[0]) == b"new"


async def test_what_was_loaded_stays_until_the_next_call_and_what_is_old_goes() -> None:
    table = Table(loaded_max=8)
    table.rows |= dict.fromkeys(DIDS, STATE)
    for start in range(0, 12, 2):
        mine = DIDS[start : start + 2]
        await table.states.load(mine)
        table.states.note({DIDS[11]: b"folded"})
        table.fold()
        assert all(table.states.get(did) is not None for did in mine)
    assert DIDS[0] not in table.states


some_did = st.sampled_from(DIDS)
some_state = st.one_of(st.none(), st.binary(min_size=1, max_size=2))
some_step = st.one_of(
    st.tuples(st.just("load"), st.lists(some_did, max_size=4)),
    st.tuples(st.just("change"), st.dictionaries(some_did, some_state)),
    st.tuples(st.just("begin"), st.none()),
    st.tuples(st.just("end"), st.none()),
)


@settings(max_examples=60)
@given(st.lists(some_step, max_size=40), st.integers(2, 30))
def test_what_is_at_hand_is_the_newest_and_what_was_loaded_last_is_at_hand(
    steps: list[tuple[str, Any]], loaded_max: int
) -> None:
    table, newest, loaded = Table(loaded_max), dict[bytes, bytes | None](), list[bytes]()

    async def run() -> None:
        nonlocal loaded
        for kind, what in steps:
            if kind == "load":
                await table.states.load(what)
                loaded = what
            elif kind == "change":
                table.states.note(what)
                newest.update(what)
            elif kind == "begin":
                table.states.begin_fold(1)
            else:
                table.end_fold()
            assert all(did in table.states for did in loaded)
            for did in DIDS:
                if did in table.states:
                    assert table.states.get(did) == newest.get(did)

    asyncio.run(run())
