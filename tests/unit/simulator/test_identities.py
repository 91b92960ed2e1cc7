from __future__ import annotations

import base64
from typing import Any

import libipld
import pytest

from jetstream.atproto import keys
from jetstream.atproto.cbor_encoder import encode_cbor
from jetstream.atproto.cid import cid_of
from jetstream.atproto.tid import tid_us
from jetstream.simulator import check, frames
from jetstream.simulator.frames import Commit, Message, Sync
from jetstream.simulator.identities import OperationLog, document_in, host_number, parse_time_us
from jetstream.simulator.world import Population, SteadyClock, World

START_US = 1_767_225_600_000_000
HOST = "http://pds.test"


def rotating(messages: int = 400, step_us: int = 2500, **population: Any) -> tuple[World, list[Message]]:
    """Return a world in which keys are often replaced, and what has happened in it."""
    world = World(
        Population(repos=10, records=5, rotations=0.1, **population), 1, SteadyClock(START_US, step_us)
    )
    made = world.messages()
    return world, [next(made) for _ in range(messages)]


def log_of(world: World) -> OperationLog:
    return OperationLog(world.changes, lambda _: HOST)


def operations(log: OperationLog, did: str) -> list[Any]:
    return log.audit(did)


def key_at(log: OperationLog, did: str, time_us: int) -> str:
    """Return the key that the audit log of a DID has at a time."""
    valid = [each for each in operations(log, did) if parse_time_us(each["createdAt"]) <= time_us]
    return str(valid[-1]["operation"]["verificationMethods"]["atproto"]).removeprefix("did:key:")


@pytest.mark.parametrize("step_us", [2500, 7])
def test_each_commit_is_signed_by_the_key_that_the_log_has_at_its_revision(step_us: int) -> None:
    world, messages = rotating(step_us=step_us)
    log = log_of(world)
    rotated = 0
    for message in messages:
        if isinstance(message, Commit):
            _, body = libipld.decode_dag_cbor_multi(frames.encode(message, 1))
            check.check_commit(body, key_at(log, message.did, tid_us(message.revision.rev)))
        elif isinstance(message, Sync):
            block = message.commit.data
            signature = libipld.decode_dag_cbor(block)["sig"]
            at = block.index(signature) - 6
            unsigned = b"\xa5" + block[1:at] + block[at + 6 + 64 :]
            assert keys.verify(key_at(log, message.did, tid_us(message.rev)), unsigned, signature)
            rotated += 1
    assert rotated > 20


def test_an_operation_is_signed_and_names_the_one_before_it() -> None:
    world, _ = rotating()
    log = log_of(world)
    longest = max((operations(log, account.did) for account in world.accounts), key=len)
    assert len(longest) > 3
    before = None
    for entry in longest:
        operation = entry["operation"]
        unsigned = {name: value for name, value in operation.items() if name != "sig"}
        signature = base64.urlsafe_b64decode(operation["sig"] + "==")
        (rotation_key,) = operation["rotationKeys"]
        assert keys.verify(rotation_key.removeprefix("did:key:"), encode_cbor(unsigned), signature)
        assert operation["prev"] == before
        assert (entry["cid"], entry["nullified"]) == (str(cid_of(encode_cbor(operation))), False)
        before = entry["cid"]


def test_the_newest_operation_says_what_the_document_says() -> None:
    world, _ = rotating(lifecycle=0.2)
    log = log_of(world)
    for did in world.all_accounts:
        document: Any = world.document(did, HOST)
        newest = operations(log, did)[-1]["operation"]
        (method,), (service,) = document["verificationMethod"], document["service"]
        assert newest["verificationMethods"] == {"atproto": f"did:key:{method['publicKeyMultibase']}"}
        assert newest["services"]["atproto_pds"]["endpoint"] == service["serviceEndpoint"]
        assert newest["alsoKnownAs"] == document["alsoKnownAs"]
        assert document_in(did, operations(log, did)) == document == document_in(did, document)


@pytest.mark.parametrize("numbered", [True, False])
def test_the_pages_of_an_export_are_all_audit_logs_in_order(numbered: bool) -> None:
    world, _ = rotating()
    log = log_of(world)
    exported: list[Any] = []
    page = log.after_seq(0, 7)
    while page:
        exported += page
        last = page[-1]
        after_us = parse_time_us(str(last.json["createdAt"]))
        page = log.after_seq(last.seq, 7) if numbered else log.after_time(after_us, 7)
    assert [entry.seq for entry in exported] == list(range(1, len(exported) + 1))
    times = [entry.json["createdAt"] for entry in exported]
    assert times == sorted(times)
    for did in world.all_accounts:
        assert [entry.json for entry in exported if entry.json["did"] == did] == operations(log, did)
    assert len(exported) == len(world.changes)


def test_the_log_grows_with_the_world_and_is_signed_again_where_hosts_move() -> None:
    world, _ = rotating(0)
    hosts = ["http://before.test"]
    log = OperationLog(world.changes, lambda _: hosts[-1])
    did = world.accounts[0].did
    (genesis,) = operations(log, did)
    world.rotate_key(did)
    assert operations(log, did)[0] == genesis
    assert len(operations(log, did)) == 2
    hosts.append("http://after.test")
    log.forget_signed()
    assert operations(log, did)[0]["operation"]["services"]["atproto_pds"]["endpoint"] == "http://after.test"


@pytest.mark.parametrize("found", [None, [], [1], [{"operation": {"type": "plc_tombstone"}}], "text"])
def test_what_is_no_document_and_no_log_has_no_document(found: object) -> None:
    assert document_in("did:plc:a", found) is None


def test_a_did_web_and_an_unknown_did_have_no_log() -> None:
    world, _ = rotating(0, did_web=1)
    log = log_of(world)
    assert log.audit(world.accounts[0].did) == log.audit("did:plc:nobody") == []
    assert log.after_seq(0, 10) == []


def test_a_handle_that_stays_is_no_operation() -> None:
    world, _ = rotating(0)
    account = world.accounts[0]
    world.identify(account.did, account.handle)
    world.identify(account.did)
    assert len(log_of(world).audit(account.did)) == 1
    world.identify(account.did, "new.social.test")
    assert len(log_of(world).audit(account.did)) == 2


def test_an_account_lives_on_one_host_and_the_share_is_kept() -> None:
    numbers = [host_number(f"did:plc:{n}", 3, 0.6) for n in range(3000)]
    assert set(numbers) == {0, 1, 2, 3}
    assert 0.36 < numbers.count(0) / len(numbers) < 0.44
    assert {host_number(f"did:plc:{n}", 0, 0.6) for n in range(10)} == {0}


def test_times_are_exact() -> None:
    assert parse_time_us("2026-01-01T00:00:00.123Z") == START_US + 123_000
    assert parse_time_us("2026-01-01") == START_US
    with pytest.raises(ValueError, match="Invalid isoformat"):
        parse_time_us("yesterday")
