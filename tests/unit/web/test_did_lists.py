"""Lists of DIDs: what may be uploaded, for how long it is kept, and how much of it."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import orjson
import pytest

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
def lists(clock: Clock) -> Iterator[DidLists]:
    """Lists whose memory is freed by references alone, so that a test can see when."""
    gc.disable()
    yield DidLists(LIMITS, clock)
    gc.enable()


def added(lists: DidLists, *dids: str) -> DidList:
    return finish(lists.add("\n".join(dids).encode()))


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
        (b"[" * 100_000, "is not JSON"),
        (b"\n" * (2 * DIDS_MAX + 1), "more than"),
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
    list_id = added(lists, "did:plc:a").id
    clock.now = KEPT_S - 1
    assert is_known(lists, list_id)
    clock.now = KEPT_S
    assert not is_known(lists, list_id)


def test_a_list_in_use_stays_and_is_kept_after_its_last_use(lists: DidLists, clock: Clock) -> None:
    used = added(lists, "did:plc:a")
    clock.now = 10 * KEPT_S
    assert is_known(lists, used.id)
    lists.keep(used)
    list_id = used.id
    del used
    clock.now += KEPT_S - 1
    assert is_known(lists, list_id)
    clock.now += 1
    assert not is_known(lists, list_id)


def test_a_new_list_takes_the_room_of_the_oldest_that_nobody_uses(lists: DidLists) -> None:
    oldest, second = added(lists, "did:plc:a").id, added(lists, "did:plc:b").id
    third = added(lists, "did:plc:c").id
    assert [is_known(lists, each) for each in (oldest, second, third)] == [False, True, True]


def test_lists_in_use_are_not_dropped(lists: DidLists) -> None:
    used = [added(lists, "did:plc:a"), added(lists, "did:plc:b")]
    with pytest.raises(NoRoom):
        added(lists, "did:plc:c")
    assert all(is_known(lists, each.id) for each in used)
    assert added(lists, "did:plc:a") is used[0]


def test_lists_with_the_same_dids_in_another_order_share_them(lists: DidLists) -> None:
    """Filters compare them: one object is compared at once, two of 100,000 DIDs in 5 ms."""
    one, other = added(lists, "did:plc:a", "did:plc:b"), added(lists, "did:plc:b", "did:plc:a")
    assert one.id != other.id
    assert one.dids is other.dids


def test_the_memory_of_all_lists_is_bounded(clock: Clock) -> None:
    lists = DidLists(WebLimits(did_lists_bytes_max=400), clock)
    first = added(lists, "did:plc:a").id
    second = added(lists, "did:plc:b", "did:plc:c").id
    assert is_known(lists, first)
    added(lists, "did:plc:d")
    assert [is_known(lists, each) for each in (first, second)] == [False, True]
    with pytest.raises(NoRoom):
        added(lists, *(f"did:plc:{n}" for n in range(9)))


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
    used = [added(lists, "did:plc:a"), added(lists, "did:plc:b")]
    answer = finish(lists.handle(request(b"did:plc:c"), None))
    assert (answer.status, answer.headers) == (503, {"Retry-After": "10"})
    assert used
