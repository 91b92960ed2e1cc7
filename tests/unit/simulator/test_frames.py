from __future__ import annotations

from itertools import islice

import libipld
import pytest

from jetstream.atproto.car import Block
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import cid_of
from jetstream.simulator import frames
from jetstream.simulator.frames import Account, Commit, Identity, Sync
from jetstream.simulator.world import Population, SteadyClock, World

DID = "did:plc:" + "a" * 24
TIME = "2026-01-01T00:00:00.000Z"
# As a production relay writes them: the canonical order of their names.
COMMIT_FIELDS = ["ops", "rev", "seq", "repo", "time", "blobs", "since", "blocks", "commit"]
COMMIT_FIELDS += ["rebase", "tooBig", "prevData"]


def world(seed: int = 1) -> World:
    return World(
        Population(repos=10, records=5, deletes=0.3, updates=0.3),
        seed,
        SteadyClock(1_767_225_600_000_000, 2500),
    )


def test_commits_written_by_hand_are_what_the_encoder_writes() -> None:
    commits = [message for message in islice(world().messages(), 500) if isinstance(message, Commit)]
    assert len(commits) > 400
    for seq, commit in enumerate(commits, 1_000_000_000):
        body = encode_cbor(frames.commit_body(commit, seq))
        assert frames.encode(commit, seq) == frames.header("#commit") + body


def test_a_commit_has_the_fields_of_the_lexicon_in_the_networks_order() -> None:
    commit = world().create_record(next(iter(world().all_accounts)), "app.test.note", {"text": "hello"}, "1")
    header, body = libipld.decode_dag_cbor_multi(frames.encode(commit, 7))
    assert header == {"t": "#commit", "op": 1}
    assert list(body) == COMMIT_FIELDS
    assert (body["seq"], body["repo"], body["since"] < body["rev"]) == (7, commit.did, True)


@pytest.mark.parametrize(
    ("message", "kind", "fields"),
    [
        (
            Identity(DID, TIME, "a.test"),
            "#identity",
            {"did": DID, "seq": 5, "time": TIME, "handle": "a.test"},
        ),
        (Identity(DID, TIME, None), "#identity", {"did": DID, "seq": 5, "time": TIME}),
        (
            Account(DID, TIME, active=False, status="takendown"),
            "#account",
            {"did": DID, "seq": 5, "time": TIME, "active": False, "status": "takendown"},
        ),
        (
            Account(DID, TIME, active=True, status=None),
            "#account",
            {"did": DID, "seq": 5, "time": TIME, "active": True},
        ),
    ],
)
def test_what_is_not_known_is_left_out(
    message: Identity | Account, kind: str, fields: dict[str, object]
) -> None:
    header, body = libipld.decode_dag_cbor_multi(frames.encode(message, 5))
    assert (header["t"], body) == (kind, fields)


def test_a_sync_carries_the_commit_alone() -> None:
    commit = Block(cid_of(b"\xa0"), b"\xa0")
    header, body = libipld.decode_dag_cbor_multi(frames.encode(Sync(DID, TIME, "3kwemukb2222b", commit), 5))
    car_header, blocks = libipld.decode_car(body["blocks"])
    assert (header["t"], body["rev"], len(body["blocks"]) < 10_000) == ("#sync", "3kwemukb2222b", True)
    assert (car_header["roots"], blocks) == ([commit.cid], {commit.cid: {}})


def test_known_frames_have_their_known_bytes() -> None:
    assert frames.header("#commit").hex() == "a261746723636f6d6d6974626f7001"
    assert frames.encode_error("FutureCursor", "").hex().startswith("a1626f7020a2")
