from __future__ import annotations

from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st

from jetstream.cluster.members import Change, Member, Shape, members

HOME = Path("/somewhere")
WHOLE = Shape()
LOG = "postgresql://postgres@127.0.0.1:107,127.0.0.1:108/postgres"


def cluster(shape: Shape = WHOLE, **changes: Change) -> dict[str, Member]:
    by_name = {name.replace("_", "-"): change for name, change in changes.items()}
    return {each.name: each for each in members(shape, range(101, 101 + shape.size), HOME, by_name)}


def test_they_come_in_the_order_in_which_they_are_started() -> None:
    assert [(name, each.port) for name, each in cluster().items()] == [
        ("postgres-1", 107),
        ("postgres-2", 108),
        ("relay-1", 106),
        ("ingest-1", 104),
        ("ingest-2", 105),
        ("edge-1", 101),
        ("edge-2", 102),
        ("edge-3", 103),
    ]


def test_an_ingest_reads_the_relay_and_an_edge_the_log() -> None:
    found = cluster()
    assert found["ingest-2"].flags() == [
        "--role=ingest",
        f"--log={LOG}",
        "--listen=127.0.0.1:105",
        "--upstream=relay=ws://127.0.0.1:106",
        "--data-dir=/somewhere/ingest-2",
    ]
    assert found["edge-1"].flags() == [
        "--role=edge",
        f"--log={LOG}",
        "--listen=127.0.0.1:101",
        "--drain=1s",
        "--data-dir=/somewhere/edges",
    ]
    assert found["relay-1"].flags() == ["--port=106", "--rate=50"]


def test_with_upstreams_of_its_own_there_is_no_relay() -> None:
    found = cluster(Shape(upstreams=("a=ws://a", "b=ws://b")))
    assert "relay-1" not in found
    assert found["ingest-1"].settings["upstream"] == ("a=ws://a", "b=ws://b")
    assert [flag for flag in found["ingest-1"].flags() if "upstream" in flag] == [
        "--upstream=a=ws://a",
        "--upstream=b=ws://b",
    ]


def test_commits_of_two_servers_wait_for_either() -> None:
    assert cluster()["postgres-2"].settings == {
        "synchronous_standby_names": 'ANY 1 ("postgres-1", "postgres-2")'
    }
    assert cluster(Shape(servers=1))["postgres-1"].settings == {}


def test_a_change_is_of_a_kind_or_of_one_and_that_counts_more() -> None:
    found = cluster(
        edge=Change(
            settings={"drain": "", "wire": "v1"}, environment={"A": "1", "B": "1"}, arguments=("-x",)
        ),
        edge_2=Change(
            settings={"wire": "classic", "follow-plc": "yes"}, environment={"B": "2"}, program=("p",)
        ),
    )
    assert found["edge-1"].flags()[3:] == ["--data-dir=/somewhere/edges", "--wire=v1", "-x"]
    assert found["edge-1"].environment == {"A": "1", "B": "1"}
    assert found["edge-1"].program == ()
    assert found["edge-2"].flags()[4:] == ["--wire=classic", "--follow-plc", "-x"]
    assert found["edge-2"].environment == {"A": "1", "B": "2"}
    assert found["edge-2"].program == ("p",)
    assert found["ingest-1"] == cluster()["ingest-1"]


@given(
    st.builds(
        Shape,
        servers=st.sampled_from([1, 2]),
        ingests=st.integers(0, 5),
        edges=st.integers(0, 5),
        upstreams=st.sampled_from([(), ("ws://a",)]),
    )
)
def test_each_has_a_port_and_a_name_of_its_own(shape: Shape) -> None:
    found = members(shape, range(shape.size), HOME)
    assert sorted(each.port for each in found) == list(range(shape.size))
    assert len({each.name for each in found}) == shape.size
