from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.supervisor.shared_limits import SharedLimits, packed, unpacked
from jetstream.token_bucket import Rate
from jetstream.web.address_changes import Change, Changes
from jetstream.web.address_limits import Addresses, AddressLimits, OverLimit, Visit

ADDRESS = "203.0.113.7"
LIMITS = AddressLimits(connections=6, replays=3)


class Edge:
    """The addresses of one edge."""

    def __init__(self, limits: AddressLimits = LIMITS) -> None:
        self.addresses = Addresses(limits, lambda: 100.0)
        self.addresses.changes = Changes(lambda: None)
        self.visits: list[Visit] = []

    def visit(self) -> bool:
        """Begin a visit; return whether it is not refused."""
        visit = self.addresses.visit(ADDRESS)
        assert visit is not None
        if visit.refusal is not None:
            visit.leave()
            return False
        self.visits.append(visit)
        return True

    def tell(self, shared: SharedLimits, number: int) -> None:
        assert self.addresses.changes is not None
        shared.add(number, unpacked(packed(self.addresses.changes.take())))

    def hear(self, shared: SharedLimits, number: int) -> None:
        changes, _ = shared.take(number)
        for key, change in unpacked(packed(changes)):
            self.addresses.add_elsewhere(key, change)


class Server:
    """Edges that always know of each other."""

    def __init__(self, edges: int, limits: AddressLimits = LIMITS) -> None:
        self.shared = SharedLimits(0)
        self.limits = limits
        self.edges = {number: Edge(limits) for number in range(1, edges + 1)}
        for number in self.edges:
            self.shared.begin(number)

    def share(self) -> None:
        for number, edge in self.edges.items():
            edge.tell(self.shared, number)
        for number, edge in self.edges.items():
            edge.hear(self.shared, number)

    def replace(self, number: int) -> None:
        """End an edge, and begin another one in its place."""
        self.shared.end(number)
        self.edges[number] = Edge(self.limits)
        self.shared.begin(number)
        self.share()


@given(
    st.lists(
        st.tuples(st.sampled_from(["visit", "visit", "leave", "replace"]), st.integers(1, 3)), max_size=60
    )
)
def test_an_address_has_no_more_connections_than_it_may_at_all_edges_together(
    steps: list[tuple[str, int]],
) -> None:
    server = Server(3)
    for what, number in steps:
        edge = server.edges[number]
        total = sum(len(each.visits) for each in server.edges.values())
        if what == "visit":
            assert edge.visit() == (total < 6)
        elif what == "leave" and edge.visits:
            edge.visits.pop().leave()
        elif what == "replace":
            server.replace(number)
        server.share()


def test_the_same_holds_for_replays() -> None:
    server = Server(2)
    first, second = server.edges[1], server.edges[2]
    assert first.visit()
    assert second.visit()
    server.share()
    replays = [first.visits[0].replay() for _ in range(3)]
    server.share()
    refused = second.visits[0].replay()
    assert isinstance(refused, OverLimit)
    assert refused.reason == "address_replays"
    assert not isinstance(replays[0], OverLimit)
    replays[0].end()
    server.share()
    assert not isinstance(second.visits[0].replay(), OverLimit)


def test_what_is_taken_from_a_bucket_at_one_edge_is_gone_at_the_others() -> None:
    server = Server(2, AddressLimits(connection_rate=Rate(1.0, 5), replay_bytes=Rate(100.0, 100)))
    first, second = server.edges[1], server.edges[2]
    assert [first.visit() for _ in range(4)] == [True] * 4
    server.share()
    assert second.visit()
    assert not second.visit()
    replay = first.visits[0].replay()
    assert not isinstance(replay, OverLimit)
    replay.charge(150)
    server.share()
    other = second.visits[0].replay()
    assert not isinstance(other, OverLimit)
    assert other.charge(50) == 1.0  # 100 too many, of 100 a second


def test_an_address_without_connections_anywhere_is_forgotten() -> None:
    server = Server(2)
    server.edges[1].visit()
    server.share()
    assert len(server.edges[2].addresses) == 1
    server.edges[1].visits.pop().leave()
    server.share()
    assert [len(edge.addresses) for edge in server.edges.values()] == [0, 0]


def test_each_edge_is_told_how_many_subscribers_the_others_have_once() -> None:
    shared = SharedLimits(0)
    for number in (1, 2, 3):
        shared.begin(number)
    shared.count_subscribers(1, 5)
    shared.count_subscribers(2, 7)
    assert [shared.take(number)[1] for number in (1, 2, 3)] == [7, 5, 12]
    assert [shared.take(number)[1] for number in (1, 2, 3)] == [None, None, None]
    shared.end(2)
    assert [shared.take(number)[1] for number in (1, 3)] == [0, 5]


def test_while_subscribers_are_few_edges_are_not_told_of_each_change() -> None:
    shared = SharedLimits(20)
    for number in (1, 2):
        shared.begin(number)
    shared.count_subscribers(1, 9)
    assert shared.take(2) == ([], None)
    shared.count_subscribers(1, 10)
    assert shared.take(2) == ([], 10)
    shared.count_subscribers(1, 9)
    assert shared.take(2) == ([], 0)


def test_what_comes_of_an_edge_that_has_ended_does_not_matter() -> None:
    shared = SharedLimits(0)
    shared.begin(1)
    shared.add(2, [((4, 1), Change(connections=1))])
    shared.count_subscribers(2, 1)
    assert shared.take(1) == ([], None)
