from __future__ import annotations

import base64
import json

import pytest

from jetstream.atproto import cid
from jetstream.atproto.car import Block
from jetstream.simulator import truth
from jetstream.simulator.frames import Account, Identity, Sync
from jetstream.simulator.world import Population, SteadyClock, World

DID = "did:plc:" + "a" * 24
TIME = "2026-01-01T00:00:00.000Z"


def as_json(event: truth.Event) -> dict[str, object]:
    return dict(json.loads(truth.to_json(event)))


def test_each_write_of_a_commit_is_an_event_in_order() -> None:
    world = World(Population(repos=1, records=1), 0, SteadyClock(1_767_225_600_000_000, 2500))
    (did,) = world.all_accounts
    world.create_record(did, "app.test.note", {"n": 1}, "old")
    commit = world.write(
        did,
        [("create", "app.test.note", "new", {"n": 2**60}), ("delete", "app.test.note", "old", None)],
    )
    rev = commit.revision.rev
    assert [as_json(event) for event in truth.events_of(commit, 9)] == [
        {
            "did": did,
            "kind": "commit",
            "commit": {
                "rev": rev,
                "operation": "create",
                "collection": "app.test.note",
                "rkey": "new",
                "record": {"n": 2**60},
                "cid": str(commit.revision.ops[0].cid),
            },
        },
        {
            "did": did,
            "kind": "commit",
            "commit": {"rev": rev, "operation": "delete", "collection": "app.test.note", "rkey": "old"},
        },
    ]


def test_links_and_bytes_of_a_record_are_tagged() -> None:
    link = cid.cid_of(b"\xa0")
    record: truth.Event = {"link": link, "same": bytes(link), "none": b"", "nested": [{"b": b"\x01"}]}
    assert as_json(record) == {
        "link": {"$link": str(link)},
        "same": {"$bytes": base64.b64encode(link).decode()},
        "none": {"$bytes": ""},
        "nested": [{"b": {"$bytes": "AQ"}}],
    }


@pytest.mark.parametrize(
    ("message", "event"),
    [
        (
            Identity(DID, TIME, "a.test"),
            {"kind": "identity", "identity": {"did": DID, "handle": "a.test", "seq": 9, "time": TIME}},
        ),
        (Identity(DID, TIME, None), {"kind": "identity", "identity": {"did": DID, "seq": 9, "time": TIME}}),
        (
            Account(DID, TIME, active=True, status="throttled"),
            {
                "kind": "account",
                "account": {"active": True, "did": DID, "seq": 9, "status": "throttled", "time": TIME},
            },
        ),
        (
            Account(DID, TIME, active=False, status=None),
            {"kind": "account", "account": {"active": False, "did": DID, "seq": 9, "time": TIME}},
        ),
    ],
)
def test_identities_and_accounts_say_what_is_known(
    message: Identity | Account, event: dict[str, object]
) -> None:
    assert [as_json(made) for made in truth.events_of(message, 9)] == [{"did": DID} | event]


def test_a_sync_is_no_event() -> None:
    sync = Sync(DID, TIME, "3kwemukb2222b", Block(cid.cid_of(b"\xa0"), b"\xa0"))
    assert truth.events_of(sync, 9) == []


def test_what_json_lacks_is_refused() -> None:
    with pytest.raises(TypeError):
        truth.to_json({"what": {1, 2}})
