from __future__ import annotations

from pathlib import Path

import libipld
import pytest

from jetstream.atproto import mst, mst_load
from jetstream.atproto.car import Block, write_car
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import Cid, cid_of
from jetstream.simulator import check, faults, frames, recording
from jetstream.simulator.frames import Account, Commit, Message
from jetstream.simulator.replayed import RecordedRepos
from jetstream.simulator.stream import Stream
from jetstream.simulator.world import Population, SteadyClock, World

START_US = 1_767_225_600_000_000
TIME = "2026-01-01T00:00:00.000Z"
DID = "did:plc:" + "a" * 24


def world() -> World:
    return World(Population(repos=6, records=5), 1, SteadyClock(START_US, 2500))


def recorded(path: Path, made: list[bytes]) -> RecordedRepos:
    with recording.writing(path) as add:
        for frame in made:
            add(frame)
    return RecordedRepos(path, {})


def encoded(*messages: Message) -> list[bytes]:
    return [frames.encode(message, seq) for seq, message in enumerate(messages, 1)]


async def test_the_newest_commit_and_all_that_frames_carried_are_exported(tmp_path: Path) -> None:
    somewhere = world()
    did = somewhere.accounts[0].did
    commits = [
        somewhere.write(did, [("create", "app.test.note", str(n), {"text": str(n)})]) for n in range(20)
    ]
    gone = somewhere.write(did, [("delete", "app.test.note", "7", None)])
    repos = recorded(tmp_path / "r", encoded(*commits, gone))
    found = await repos.find(did)
    assert found is not None
    assert (found.rev, found.head) == (gone.revision.rev, str(gone.revision.commit.cid))
    (root,), blocks = check.read_car(await repos.export(did))
    assert root == gone.revision.commit.cid
    assert next(iter(blocks)) == root
    records = {record.cid for commit in commits for record in commit.revision.records}
    deleted = commits[7].revision.records[0].cid
    assert {cid for cid in records if cid in blocks} == records - {deleted}


async def test_a_repository_is_complete_if_the_recording_has_it_from_its_beginning(tmp_path: Path) -> None:
    somewhere = world()
    messages = somewhere.replace(somewhere.accounts[0].did)
    did = somewhere.accounts[0].did
    messages += [somewhere.create_record(did, "app.test.note", {"text": str(n)}) for n in range(30)]
    repos = recorded(tmp_path / "r", encoded(*messages))
    expected = somewhere.all_accounts[did].repo
    (root,), blocks = check.read_car(await repos.export(did))
    assert expected.head is not None
    assert root == expected.head.cid
    tree = mst_load.load(blocks, Cid(libipld.decode_dag_cbor(blocks[root])["data"]))
    assert {key.decode(): blocks[cid] for key, cid in mst.items(tree)} == expected.records


async def test_a_status_is_that_of_the_last_message_about_it(tmp_path: Path) -> None:
    messages = [
        Account(DID, TIME, active=False, status="suspended"),
        Account(DID, TIME, active=True, status=None),
        Account(DID, TIME, active=False, status="takendown"),
    ]
    for count, expected in ((1, (False, "suspended")), (2, (True, None)), (3, (False, "takendown"))):
        repos = recorded(tmp_path / str(count), encoded(*messages[:count]))
        found = await repos.find(DID)
        assert found is not None
        assert (found.active, found.status, found.head) == (*expected, None)
    assert await repos.find("did:plc:nobody") is None


async def test_an_older_commit_does_not_replace_a_newer_one(tmp_path: Path) -> None:
    somewhere = world()
    did = somewhere.accounts[0].did
    first, second = (somewhere.create_record(did, "app.test.note", {"n": n}) for n in range(2))
    repos = recorded(tmp_path / "r", encoded(second, first))
    found = await repos.find(did)
    assert found is not None
    assert found.rev == second.revision.rev


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"\xa0",
        encode_cbor("text"),
        encode_cbor({"did": DID, "rev": 7, "data": b""}),
        encode_cbor({"did": DID, "rev": "3kwemukb22222", "data": "text"}),
        encode_cbor({"did": "did:plc:other", "rev": "3kwemukb22222", "data": b""}),
        b"\x81" * 5000 + b"\xa0",
    ],
)
async def test_blocks_that_are_no_commit_of_the_account_are_ignored(tmp_path: Path, block: bytes) -> None:
    body = {"seq": 1, "did": DID, "rev": "3kwemukb22222", "time": TIME}
    car = write_car(cid_of(block), [Block(cid_of(block), block)])
    repos = recorded(tmp_path / "r", [frames.header("#sync") + encode_cbor(body | {"blocks": car})])
    found = await repos.find(DID)
    assert found is not None
    assert found.head is None


@pytest.mark.parametrize(
    "node", [b"\xa0", encode_cbor({"e": [{}], "l": None}), encode_cbor({"e": 7, "l": 7})]
)
async def test_a_tree_that_is_none_is_left_out(tmp_path: Path, node: bytes) -> None:
    commit = encode_cbor({"did": DID, "rev": "3kwemukb22222", "data": cid_of(node)})
    root = cid_of(commit)
    car = write_car(root, [Block(root, commit), Block(cid_of(node), node)])
    body = {"seq": 1, "did": DID, "rev": "3kwemukb22222", "time": TIME, "blocks": car}
    repos = recorded(tmp_path / "r", [frames.header("#sync") + encode_cbor(body)])
    assert check.read_car(await repos.export(DID)) == ([root], {root: commit})


async def test_under_all_faults_every_repository_is_exported_with_intact_blocks(tmp_path: Path) -> None:
    rates = faults.Faults(**dict.fromkeys(faults.STREAM_FAULTS, 0.05) | {"oversized": 0})
    stream = Stream(world(), rates, 1)
    for _ in range(300):
        stream.advance()
    items, position = stream.take(0, 10_000)
    while position < stream.end:
        more, position = stream.take(position, 10_000)
        items += more
    repos = recorded(tmp_path / "r", [item.frame for item in items])
    exported = 0
    for repo in await repos.all():
        if repo.head is not None:
            (root,), blocks = check.read_car(await repos.export(repo.did))
            assert str(root) == repo.head
            assert all(cid == cid_of(block) for cid, block in blocks.items())
            exported += 1
    assert exported >= 6


async def test_without_documents_the_host_is_the_only_one(tmp_path: Path) -> None:
    somewhere = world()
    made = [message for message in somewhere.step() if isinstance(message, Commit)]
    repos = recorded(tmp_path / "r", encoded(*made))
    (host,) = await repos.hosts("relay.test:7777")
    assert (host["hostname"], host["accountCount"], host["seq"]) == ("relay.test:7777", 1, 1)
    (host,) = await recorded(tmp_path / "empty", []).hosts("relay.test")
    assert host["accountCount"] == 0
    assert list(await repos.with_collection("app.bsky.feed.post")) == []
