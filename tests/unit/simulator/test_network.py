from __future__ import annotations

from collections import Counter
from typing import Any

import libipld
import pytest

from jetstream.errors import SettingError
from jetstream.simulator import check
from jetstream.simulator.frames import Account
from jetstream.simulator.stream import Stream
from jetstream.testing import Faults, Relay, SimulatedNetwork, simulated_network

SEEDS = (1, 2)
Event = dict[str, Any]


def stream_of(network: SimulatedNetwork, host: str) -> Stream:
    return network._network.feeds[host].stream


def bodies(network: SimulatedNetwork, host: str) -> list[Event]:
    """Return what a host has sent: the body of each frame, with its type under `t`."""
    stream = stream_of(network, host)
    items, _ = stream.take(stream.first, 10**6)
    decoded = (libipld.decode_dag_cbor_multi(item.frame) for item in items)
    return [{"t": header["t"]} | body for header, body in decoded]


def commits(sent: list[Event]) -> list[tuple[str, str]]:
    return [(body["repo"], body["rev"]) for body in sent if body["t"] == "#commit"]


def pair(**options: Any) -> tuple[Relay, Relay]:
    return Relay(name="a", seq=1000, **options), Relay(name="b", seq=77, **options)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("options", [{"loss": 0.05}, {"loss": 0.05, "outage_s": 1.5, "every_s": 2}])
def test_disjoint_losses_leave_every_event_to_one_relay_or_the_other(
    seed: int, options: dict[str, float]
) -> None:
    network = simulated_network(seed=seed, relays=pair(**options), disjoint=True)
    network.emit(1500)
    first, second = (commits(bodies(network, name)) for name in "ab")
    everything = {
        (event["did"], event["commit"]["rev"]) for event in network.truth if event["kind"] == "commit"
    }
    assert everything <= {*first, *second}
    assert network.missing() == set()
    for sent in (first, second):
        assert len(sent) == len(set(sent))
        assert 0.4 * len(everything) < len(set(sent) & everything) < 0.98 * len(everything)


def test_each_relay_has_numbers_of_its_own_that_rise_without_gaps() -> None:
    network = simulated_network(relays=pair(loss=0.1))
    network.emit(400)
    for name, start in (("a", 1000), ("b", 77)):
        sent = [body["seq"] for body in bodies(network, name)]
        assert sent == list(range(start + 1, start + 1 + len(sent)))
        assert 300 < len(sent) < 400
    assert network.seq == bodies(network, "a")[-1]["seq"]


def test_the_ledger_tells_what_each_relay_has_lost() -> None:
    network = simulated_network(relays=pair(loss=0.1))
    network.emit(1000)
    for name in "ab":
        lost = {
            event["index"] for line in network.ledger if line["relay"] == name for event in line["events"]
        }
        sent = set(commits(bodies(network, name)))
        for index, event in enumerate(network.truth):
            if event["kind"] == "commit":
                assert ((event["did"], event["commit"]["rev"]) in sent) is (index not in lost)
        assert network.missing(name) == lost
    both = network.missing("a", "b")
    assert both == network.missing("a") & network.missing("b") == network.missing()
    assert 0 < len(both) < 30


def test_a_relay_that_loses_nothing_is_the_same_with_and_without_others() -> None:
    alone = simulated_network(seed=4, faults=Faults(skip=0.05, wrong_cid=0.05))
    among = simulated_network(
        seed=4, relays=(Relay(), Relay(name="b", loss=0.3)), faults=Faults(skip=0.05, wrong_cid=0.05)
    )
    alone.emit(300)
    among.emit(300)
    assert bodies(alone, "relay") == bodies(among, "relay")
    assert bodies(among, "b") != bodies(among, "relay")


def test_the_truth_of_several_relays_has_no_numbers() -> None:
    one, two = simulated_network(seed=1), simulated_network(seed=1, relays=pair())
    one.emit(800)
    two.emit(800)
    numbered = [event for event in one.truth if event["kind"] != "commit"]
    assert len(numbered) > 5
    for event in numbered:
        del event[event["kind"]]["seq"]
    assert one.truth == two.truth


@pytest.mark.parametrize(
    "relays", [pair(loss=0.1, takedowns=0.02), (Relay(loss=0.1, outage_s=0.5, every_s=1),)]
)
def test_the_same_seed_makes_the_same_network(relays: tuple[Relay, ...]) -> None:
    made = [simulated_network(seed=seed, relays=relays, pds=2, rotations=0.02) for seed in (5, 5, 6)]
    for network in made:
        network.emit(300)
    first, again, other = (
        [bodies(network, host) for host in network.urls] + [network.truth, network.ledger] for network in made
    )
    assert first == again
    assert all(one != another for one, another in zip(first, other, strict=True))


def test_an_account_is_taken_down_at_one_relay_only() -> None:
    network = simulated_network(relays=pair())
    did = network.world.accounts[0].did
    network.take_down(did, "b")
    truth = network.publish(network.world.create_record(did, "app.test.note", {"text": "hidden"}))
    network.restore(did, "b")
    network.publish(network.world.create_record(did, "app.test.note", {"text": "seen"}))
    sent = {
        name: [body for body in bodies(network, name) if did in (body.get("did"), body.get("repo"))]
        for name in "ab"
    }
    assert [body["t"] for body in sent["a"]] == ["#commit", "#commit"]
    assert [(body["t"], body.get("active"), body.get("status")) for body in sent["b"]] == [
        ("#account", False, "takendown"),
        ("#account", True, None),
        ("#commit", None, None),
    ]
    down, lost, back = network.ledger
    assert [line["fault"] for line in (down, lost, back)] == ["takedown", "taken_down", "restore"]
    assert down["added"][0]["account"]["status"] == "takendown"
    assert [event["index"] for event in lost["events"]] == [network.truth.index(truth[0])]


def test_a_deleted_account_is_deleted_also_where_it_was_taken_down() -> None:
    network = simulated_network(relays=pair())
    did = network.world.accounts[0].did
    network.take_down(did, "b")
    network.publish(*network.world.replace(did))
    last = [body for body in bodies(network, "b") if body.get("did") == did][-1]
    assert (last["active"], last["status"]) == (False, "deleted")


def test_takedowns_by_chance_come_and_go() -> None:
    network = simulated_network(relays=(Relay(name="a"), Relay(name="b", takedowns=0.1)))
    network.emit(800)
    found = Counter(line["fault"] for line in network.ledger)
    assert min(found[name] for name in ("takedown", "taken_down", "restore")) > 5
    assert {line["relay"] for line in network.ledger} == {"b"}
    assert network.missing() == set()


def test_a_pds_sends_exactly_what_its_accounts_do() -> None:
    network = simulated_network(repos=40, pds=3, relays=pair(loss=0.5))
    network.emit(1000)
    of_pdses = [bodies(network, f"pds{number}") for number in (1, 2, 3)]
    sent = [(body.get("repo") or body["did"]) for sent in of_pdses for body in sent]
    for number, frames in enumerate(of_pdses, 1):
        own = {account.did for account in network.world.all_accounts.values() if account.host == number}
        truth = [
            (event["did"], event["commit"]["rev"])
            for event in network.truth
            if event["kind"] == "commit" and event["did"] in own
        ]
        assert frames
        assert [body["seq"] for body in frames] == list(range(1, 1 + len(frames)))
        assert set(truth) <= set(commits(frames))
        assert {body.get("repo") or body["did"] for body in frames} <= own
    alone = {account.did for account in network.world.accounts if not account.host}
    assert alone
    assert not alone & set(sent)


def test_documents_and_the_log_name_the_pds_of_each_account() -> None:
    network = simulated_network(repos=40, pds=2)
    network._network.set_urls(["http://relay.test", "http://one.test", "http://two.test"])
    urls = ["http://relay.test", "http://one.test", "http://two.test"]
    for did, account in network.world.all_accounts.items():
        document: Any = network._network.document(did)
        assert document["service"][0]["serviceEndpoint"] == urls[account.host]
        (genesis, *_) = network._network._log.audit(did)
        operation: Any = genesis["operation"]
        assert operation["services"]["atproto_pds"]["endpoint"] == urls[account.host]


def test_a_record_that_one_relay_adds_is_sent_by_all() -> None:
    network = simulated_network(relays=pair(), pds=1, pds_share=1)
    network.emit(3, faults=["deep_record"])
    network.emit(30)
    for name in ("a", "b", "pds1"):
        assert any(b"com.example.deep" in str(body.get("ops")).encode() for body in bodies(network, name))
    assert {line["verdict"] for line in network.verdicts if line["verdict"] != "replay"} == {"ok"}


def test_a_message_may_be_given_to_some_relays_only_and_any_to_one_host() -> None:
    network = simulated_network(relays=pair(), pds=1)
    did = network.world.accounts[0].did
    commit = network.world.create_record(did, "app.test.note", {"text": "hello"})
    (event,) = network.publish(commit, only=["b"])
    assert commits(bodies(network, "a")) == []
    assert commits(bodies(network, "b")) == [(did, commit.revision.rev)]
    assert (network.missing("a"), network.missing()) == ({network.truth.index(event)}, set())
    network.send("pds1", Account("did:plc:" + "a" * 24, commit.time, active=False, status="deleted"))
    assert bodies(network, "pds1")[-1]["status"] == "deleted"
    assert len(network.truth) == 1
    with pytest.raises(ValueError, match=r"\['c'\] are not all relays: those are a, b"):
        network.publish(commit, only=["c"])
    with pytest.raises(ValueError, match="c is not one of a, b, pds1"):
        network.send("c", commit)


def test_relays_have_faults_of_their_own() -> None:
    relays = (Relay(name="a"), Relay(name="b", faults=Faults(bad_signature=0.2)))
    network = simulated_network(relays=relays)
    network.emit(200)
    assert {(line["relay"], line["fault"]) for line in network.ledger} == {("b", "bad_signature")}
    assert network.missing("b", level="full") != set()
    assert network.missing(level="full") == set()


def test_every_commit_of_two_relays_is_valid() -> None:
    network = simulated_network(relays=pair(loss=0.1))
    network.emit(60)
    for name in "ab":
        for body in bodies(network, name):
            if body["t"] == "#commit":
                document: Any = network.world.document(body["repo"], "")
                check.check_commit(body, document["verificationMethod"][0]["publicKeyMultibase"])


def test_hosts_take_the_ports_after_the_first() -> None:
    relays = (Relay(name="a"), Relay(name="b"), Relay(name="c", port=9000), Relay(name="d"))
    network = simulated_network(relays=relays, pds=2)._network
    assert network.ports(7777) == [7777, 7778, 9000, 9001, 9002, 9003]
    assert network.ports(0) == [0, 0, 9000, 9001, 9002, 9003]


def test_relays_of_one_name_are_refused() -> None:
    with pytest.raises(SettingError, match="is the name of two relays"):
        simulated_network(relays=(Relay(), Relay()))
    with pytest.raises(SettingError, match="'pds1' is the name of a PDS"):
        simulated_network(relays=(Relay(name="pds1"),), pds=1)
