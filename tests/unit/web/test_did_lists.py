"""Lists of DIDs: what may be uploaded, for how long it is kept, and how much of it."""

from __future__ import annotations

import tracemalloc

import orjson
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from jetstream.delivery.did_index import ListIndex
from jetstream.errors import InvalidParameter
from jetstream.limits import WebLimits
from jetstream.steps import finish
from jetstream.token_bucket import Rate
from jetstream.web.did_lists import DIDS_MAX, DidList, DidLists, NoRoom
from jetstream.web.http import Request

KEPT_S = 60.0
LIMITS = WebLimits(did_lists_max=2, did_lists_kept_s=KEPT_S)


class Clock:
    """A clock that a test moves."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lists(clock: Clock) -> DidLists:
    return DidLists(LIMITS, clock)


def added(lists: DidLists, *dids: str) -> DidList:
    return finish(lists.add("\n".join(dids).encode()))


def used(lists: DidLists, *dids: str) -> DidList:
    """Add a list, and use it."""
    made = added(lists, *dids)
    lists.use(made)
    return made


def is_known(lists: DidLists, list_id: str) -> bool:
    try:
        lists.find(list_id)
    except InvalidParameter:
        return False
    return True


@pytest.mark.parametrize(
    "body",
    [
        b"did:plc:a\ndid:web:b.example\n",
        b"did:plc:a\r\n\r\n  did:web:b.example",
        b'["did:plc:a","did:web:b.example"]',
        b'\n {"dids": ["did:plc:a", "did:web:b.example"], "name": "friends"}',
    ],
)
def test_an_upload_is_text_or_json(body: bytes, lists: DidLists) -> None:
    found = finish(lists.add(body))
    assert found.dids == {b"did:plc:a", b"did:web:b.example"}
    assert lists.find(found.id) is found


def test_the_same_dids_have_the_same_id(lists: DidLists) -> None:
    text, json = added(lists, "did:plc:a", "did:plc:b"), finish(lists.add(b'["did:plc:a","did:plc:b"]'))
    assert text is json
    assert text.id != added(lists, "did:plc:a").id


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b"", "has 0 DIDs"),
        (b"\n \n", "has 0 DIDs"),
        (b"[]", "has 0 DIDs"),
        (b"did:plc:a\nbob", "'bob' is not a DID"),
        (b"did:plc:\xff", "is not a DID"),
        (b"[1]", "'1' is not a DID"),
        (b'["did:plc:a"', "is not JSON"),
        (b'{"dids":"did:plc:a"}', "neither a list"),
        (b"{}", "neither a list"),
        (b"[" * 100, "is not JSON"),
        (b"[" + b"[[[]]]," * 100_000 + b"[]]", "neither a list"),
        (b"a\n" * (2 * DIDS_MAX + 1), "more than"),
        (b"a " * (2 * DIDS_MAX + 1), "more than"),
        (b"[" + b"1," * (2 * DIDS_MAX), "more than"),
        (b'[["did:plc:a"]]', "'…' is not a DID"),
    ],
)
def test_a_bad_upload_is_refused(body: bytes, problem: str, lists: DidLists) -> None:
    with pytest.raises(InvalidParameter, match=problem):
        finish(lists.add(body))


def test_a_list_may_have_so_many_dids(lists: DidLists) -> None:
    most = [f"did:plc:{n}" for n in range(DIDS_MAX)]
    assert len(added(lists, *most).dids) == DIDS_MAX
    with pytest.raises(InvalidParameter, match=f"has {DIDS_MAX + 1} DIDs"):
        added(lists, *most, "did:plc:more")


def test_a_list_that_nobody_uses_is_kept_for_a_while(lists: DidLists, clock: Clock) -> None:
    made = added(lists, "did:plc:a")
    clock.now = KEPT_S - 1
    lists.expire()
    assert is_known(lists, made.id)
    clock.now = KEPT_S
    lists.expire()
    assert (is_known(lists, made.id), len(lists)) == (False, 0)


def test_lists_whose_time_is_over_are_dropped_one_in_each_call(lists: DidLists, clock: Clock) -> None:
    for did in ("did:plc:a", "did:plc:b"):
        added(lists, did)
    clock.now = KEPT_S
    left = []
    for _ in range(3):
        lists.expire()
        left.append(len(lists))
    assert left == [1, 0, 0]


def test_an_upload_of_a_list_that_is_there_keeps_it_longer(lists: DidLists, clock: Clock) -> None:
    made = added(lists, "did:plc:a")
    clock.now = KEPT_S - 1
    assert added(lists, "did:plc:a") is made
    clock.now = 2 * KEPT_S - 2
    lists.expire()
    assert is_known(lists, made.id)


def test_a_list_in_use_stays_and_is_kept_after_its_last_use(lists: DidLists, clock: Clock) -> None:
    made = used(lists, "did:plc:a")
    lists.use(made)
    clock.now = 10 * KEPT_S
    lists.release(made)
    clock.now = 20 * KEPT_S
    lists.expire()
    assert is_known(lists, made.id)
    added(lists, "did:plc:a")
    lists.release(made)
    clock.now += KEPT_S - 1
    lists.expire()
    assert is_known(lists, made.id)
    clock.now += 1
    lists.expire()
    assert not is_known(lists, made.id)


def test_a_list_that_is_dropped_before_its_first_use_comes_back(lists: DidLists, clock: Clock) -> None:
    made = added(lists, "did:plc:a")
    clock.now = KEPT_S
    lists.expire()
    lists.use(made)
    assert lists.find(made.id) is made


def test_a_new_list_takes_the_room_of_the_oldest_that_nobody_uses(lists: DidLists) -> None:
    oldest, second = added(lists, "did:plc:a").id, added(lists, "did:plc:b").id
    third = added(lists, "did:plc:c").id
    assert [is_known(lists, each) for each in (oldest, second, third)] == [False, True, True]


def test_lists_in_use_are_not_dropped(lists: DidLists) -> None:
    first, second = used(lists, "did:plc:a"), used(lists, "did:plc:b")
    with pytest.raises(NoRoom):
        added(lists, "did:plc:c")
    assert all(is_known(lists, each.id) for each in (first, second))
    assert added(lists, "did:plc:a") is first


@pytest.mark.parametrize("count", [21_846, 40_000, 43_692])  # a dict has just grown at the first and last
def test_the_size_is_what_a_list_and_its_place_in_the_index_take(count: int, lists: DidLists) -> None:
    body = "\n".join([f"did:plc:{n:024}" for n in range(count)]).encode()
    finish(lists.add(b"did:plc:warm"))
    tracemalloc.start()
    made = finish(lists.add(body))
    index = ListIndex(finish)
    finish(index.fill(index.hold(made.dids)))
    taken = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert taken <= made.size <= 1.6 * taken


def test_lists_with_the_same_dids_in_another_order_share_them(lists: DidLists) -> None:
    """Filters compare them: one object is compared at once, two of 100,000 DIDs in 5 ms."""
    one, other = added(lists, "did:plc:a", "did:plc:b"), added(lists, "did:plc:b", "did:plc:a")
    assert one.id != other.id
    assert one.dids is other.dids


def test_the_memory_of_all_lists_is_bounded(clock: Clock) -> None:
    lists = DidLists(WebLimits(did_lists_bytes_max=600), clock)
    first = added(lists, "did:plc:a").id
    second = added(lists, "did:plc:b", "did:plc:c").id
    assert is_known(lists, first)
    added(lists, "did:plc:d")
    assert [is_known(lists, each) for each in (first, second)] == [False, True]
    with pytest.raises(NoRoom):
        added(lists, *(f"did:plc:{n}" for n in range(9)))
    assert is_known(lists, second)


def request(body: bytes) -> Request:
    return Request("POST", "/filters", "", 1, {}, body=body)


def test_the_answer_has_the_id(lists: DidLists) -> None:
    answer = finish(lists.handle(request(b"did:plc:a\ndid:plc:a\n"), None))
    body = orjson.loads(answer.body)
    assert (answer.status, answer.content_type) == (200, "application/json")
    assert body == {"id": added(lists, "did:plc:a", "did:plc:a").id, "dids": 1, "kept_s": 60}


def test_the_answer_says_what_is_wrong(lists: DidLists) -> None:
    answer = finish(lists.handle(request(b"bob"), None))
    assert (answer.status, answer.body) == (400, b"body: 'bob' is not a DID, such as did:plc:\xe2\x80\xa6\n")


def test_uploads_have_a_budget(clock: Clock) -> None:
    lists = DidLists(WebLimits(did_lists_read=Rate(1, 2)), clock)
    answers = [finish(lists.handle(request(b"did:plc:a"), None)).status for _ in range(3)]
    assert answers == [200, 200, 429]
    clock.now = 1.0
    assert finish(lists.handle(request(b"did:plc:a"), None)).status == 200


def test_without_room_the_client_is_told_when_to_try_again(lists: DidLists) -> None:
    used(lists, "did:plc:a")
    used(lists, "did:plc:b")
    answer = finish(lists.handle(request(b"did:plc:c"), None))
    assert (answer.status, answer.headers) == (503, {"Retry-After": "10"})


class Model(RuleBasedStateMachine):
    """Lists against a model that looks at all of them each time."""

    ids = st.sampled_from(["did:plc:a", "did:plc:bb", "did:plc:ccc", "did:web:dddd.example"])

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.limits = WebLimits(did_lists_max=3, did_lists_bytes_max=300, did_lists_kept_s=KEPT_S)
        self.lists = DidLists(self.limits, self.clock)
        # Every list that was made, how many use it, and when it was uploaded or used last.
        self.made: dict[str, DidList] = {}
        self.users: dict[str, int] = {}
        self.last: dict[str, float] = {}

    def known(self) -> list[DidList]:
        return [each for each in self.made.values() if is_known(self.lists, each.id)]

    @rule(did=ids)
    def add(self, did: str) -> None:
        try:
            made = added(self.lists, did)
        except NoRoom:
            assert any(self.users.values())
            return
        self.made[did] = made
        self.users.setdefault(made.id, 0)
        self.last[made.id] = self.clock.now

    @precondition(lambda self: self.known())
    @rule(data=st.data())
    def use(self, data: st.DataObject) -> None:
        made = data.draw(st.sampled_from(self.known()))
        self.lists.use(made)
        self.users[made.id] += 1

    @precondition(lambda self: any(self.users.values()))
    @rule(data=st.data())
    def release(self, data: st.DataObject) -> None:
        made = data.draw(st.sampled_from([each for each in self.made.values() if self.users[each.id]]))
        self.lists.release(made)
        self.users[made.id] -= 1
        self.last[made.id] = self.clock.now

    @rule(seconds=st.sampled_from([1.0, KEPT_S / 2, KEPT_S]))
    def wait(self, seconds: float) -> None:
        self.clock.now += seconds
        for _ in range(self.limits.did_lists_max):
            self.lists.expire()

    @invariant()
    def those_in_use_are_there_and_the_rest_for_no_longer_than_promised(self) -> None:
        known = {each.id for each in self.known()}
        for list_id, users in self.users.items():
            if users:
                assert list_id in known
            elif self.clock.now >= self.last[list_id] + KEPT_S:
                assert list_id not in known

    @invariant()
    def the_totals_are_right(self) -> None:
        known = self.known()
        assert (len(self.lists), self.lists.bytes) == (len(known), sum(each.size for each in known))
        assert self.lists.bytes_in_use == sum(each.size for each in known if self.users[each.id])
        assert len(known) <= self.limits.did_lists_max
        assert self.lists.bytes <= self.limits.did_lists_bytes_max


TestModel = Model.TestCase
TestModel.settings = settings(max_examples=60, stateful_step_count=30)


def test_lists_that_another_process_uses_are_kept(lists: DidLists, clock: Clock) -> None:
    first, second = added(lists, "did:plc:" + "a" * 24), added(lists, "did:plc:" + "b" * 24)
    clock.now = KEPT_S - 1
    lists.keep([first.id, "not known"])
    clock.now = KEPT_S
    lists.expire()
    assert (is_known(lists, first.id), is_known(lists, second.id)) == (True, False)
    clock.now = 2 * KEPT_S
    lists.expire()
    assert not is_known(lists, first.id)


def test_a_list_in_use_is_told_to_other_processes_and_outlives_what_they_say(
    lists: DidLists, clock: Clock
) -> None:
    made = used(lists, "did:plc:" + "a" * 24)
    assert lists.in_use == [made.id]
    lists.keep([made.id])
    clock.now = 2 * KEPT_S
    lists.expire()
    assert is_known(lists, made.id)
    lists.release(made)
    assert lists.in_use == []
