from __future__ import annotations

from collections import Counter
from itertools import islice
from typing import cast

import libipld
import pytest

from jetstream.atproto.tid import tid_us
from jetstream.model import syntax
from jetstream.simulator import check, frames
from jetstream.simulator.frames import Account, Commit, Identity, Message, Sync
from jetstream.simulator.repo import OPS_MAX
from jetstream.simulator.world import Population, SteadyClock, World

START_US = 1_767_225_600_000_000
SEEDS = [1, 2, 3]


def make(seed: int = 1, **population: object) -> World:
    return World(
        Population(**({"repos": 30, "records": 10} | population)),  # type: ignore[arg-type]
        seed,
        SteadyClock(START_US, 2500),
    )


def key_of(someone: World, did: str) -> str:
    document = someone.document(did, "http://pds.test")
    assert document is not None
    (method,) = cast("list[dict[str, str]]", document["verificationMethod"])
    return method["publicKeyMultibase"]


def encoded(messages: list[Message]) -> list[bytes]:
    return [frames.encode(message, seq) for seq, message in enumerate(messages, 1)]


def test_the_same_seed_gives_the_same_bytes() -> None:
    first, again, other = (encoded(list(islice(make(seed).messages(), 600))) for seed in (1, 1, 2))
    assert first == again
    assert not set(first) & set(other)


@pytest.mark.parametrize("seed", SEEDS)
def test_every_commit_passes_the_check_of_a_strict_consumer(seed: int) -> None:
    check_commits(seed, 1_000)  # 7,000 in tests/load


def check_commits(seed: int, count: int) -> None:
    """Criterion: block hashes, commit CID, signature, valid tree, every op in it, inversion to prevData."""
    somewhere, checked = make(seed, repos=100, records=40), 0
    revs: dict[str, str] = {}
    trees: dict[str, object] = {}
    for message in somewhere.messages():
        if isinstance(message, Commit):
            _, body = libipld.decode_dag_cbor_multi(frames.encode(message, 1))
            check.check_commit(body, key_of(somewhere, message.did))
            if message.did in revs:
                assert (body["since"], body["prevData"]) == (revs[message.did], trees[message.did])
                assert body["rev"] > body["since"]
            revs[message.did] = body["rev"]
            trees[message.did] = somewhere.all_accounts[message.did].repo.tree.cid
            checked += 1
        elif isinstance(message, Sync):
            revs[message.did] = message.rev
            trees[message.did] = somewhere.all_accounts[message.did].repo.tree.cid
        if checked == count:
            break


def test_messages_have_the_proportions_of_a_relay() -> None:
    messages = list(islice(make().messages(), 10_000))
    kinds = Counter(type(message) for message in messages)
    assert 0.98 < kinds[Commit] / len(messages) < 0.995
    ops = Counter(
        op.action for message in messages if isinstance(message, Commit) for op in message.revision.ops
    )
    assert 0.94 < ops["create"] / ops.total() < 0.98
    assert 0.02 < ops["delete"] / ops.total() < 0.04
    assert 0.003 < ops["update"] / ops.total() < 0.02
    assert 1.01 < ops.total() / kinds[Commit] < 1.15


def test_commits_have_no_operation_one_or_as_many_as_are_allowed() -> None:
    messages = islice(make(multiple=0.3).messages(), 2000)
    sizes = {len(message.revision.ops) for message in messages if isinstance(message, Commit)}
    assert {0, 1, 2, 3, 4, 5} <= sizes
    assert 100 < max(sizes) <= OPS_MAX


def test_accounts_come_change_and_go() -> None:
    messages = list(islice(make(lifecycle=0.5).messages(), 2000))
    statuses = {message.status for message in messages if isinstance(message, Account)}
    assert statuses == {
        None,
        "takendown",
        "suspended",
        "deactivated",
        "deleted",
        "desynchronized",
        "throttled",
    }
    identities = [message for message in messages if isinstance(message, Identity)]
    assert {message.handle is None for message in identities} == {True, False}
    assert any(isinstance(message, Sync) for message in messages)


def test_an_inactive_account_does_not_write() -> None:
    active: dict[str, bool] = {}
    for message in islice(make(lifecycle=0.5).messages(), 3000):
        if isinstance(message, Account):
            active[message.did] = message.active
        elif isinstance(message, Commit):
            assert active.get(message.did, True)


def test_a_few_write_much() -> None:
    writers = Counter(
        message.did for message in islice(make(repos=100).messages(), 5000) if isinstance(message, Commit)
    )
    top = [count for _, count in writers.most_common(10)]
    assert sum(top) > 0.35 * writers.total()
    assert len(writers) > 80


def test_dids_handles_and_paths_have_valid_syntax() -> None:
    somewhere = make(repos=300, did_web=0.02)
    assert all(syntax.is_did(did) for did in somewhere.all_accounts)
    methods = Counter(did.split(":")[1] for did in somewhere.all_accounts)
    assert methods["plc"] > 280
    assert methods["web"] > 0
    keys = [key_of(somewhere, did) for did in somewhere.all_accounts]
    assert {key[:4] for key in keys} == {"zQ3s", "zDna"}
    assert all(len(did) == 32 for did in somewhere.all_accounts if did.startswith("did:plc:"))


def test_a_did_web_is_made_only_where_it_is_asked_for() -> None:
    assert all(did.startswith("did:plc:") for did in make(repos=300).all_accounts)
    assert all(did.startswith("did:web:") for did in make(did_web=1).all_accounts)


def test_keys_are_rotated_as_often_as_asked_for() -> None:
    somewhere = make(rotations=0.1, lifecycle=0)
    before = len(somewhere.changes)
    for _ in range(1000):
        somewhere.step()
    assert 70 < len(somewhere.changes) - before < 130


def test_a_new_key_signs_what_follows() -> None:
    somewhere = make()
    did = next(iter(somewhere.all_accounts))
    before = key_of(somewhere, did)
    identity, sync = somewhere.rotate_key(did)
    after = key_of(somewhere, did)
    assert isinstance(identity, Identity)
    assert isinstance(sync, Sync)
    assert (identity.handle, before == after) == (None, False)
    commit = somewhere.create_record(did, "app.test.note", {"text": "hello"})
    _, body = libipld.decode_dag_cbor_multi(frames.encode(commit, 1))
    check.check_commit(body, after)
    assert (body["since"], body["prevData"]) == (
        sync.rev,
        libipld.decode_dag_cbor(sync.commit.data)["data"],
    )


def test_a_deleted_account_is_replaced_by_a_new_one() -> None:
    somewhere = make()
    leaving = somewhere.accounts[3].did
    deleted, identity, account, commit, sync = somewhere.replace(leaving)
    assert isinstance(deleted, Account)
    assert (deleted.did, deleted.active, deleted.status) == (leaving, False, "deleted")
    coming = somewhere.accounts[3].did
    assert {identity.did, account.did, commit.did, sync.did} == {coming}
    assert isinstance(commit, Commit)
    assert (commit.revision.since, commit.revision.prev_data) == (None, None)
    assert somewhere.document(leaving, "") is not None
    with pytest.raises(ValueError, match="is not an account"):
        somewhere.sync(leaving)


def test_an_account_that_becomes_active_again_is_announced_again() -> None:
    somewhere = make()
    did = somewhere.accounts[0].did
    (gone,) = somewhere.set_status(did, active=False, status="deactivated")
    assert gone == Account(did, gone.time, active=False, status="deactivated")
    back = somewhere.set_status(did, active=True, status=None)
    assert [type(message) for message in back] == [Account, Identity, Sync]


def test_a_world_that_grows_too_large_loses_its_largest_account() -> None:
    somewhere = make(lifecycle=0, records_max=700)
    held = [
        sum(len(account.paths) for account in somewhere.accounts) for _ in islice(somewhere.messages(), 5000)
    ]
    assert max(held) < 700 + 2 * OPS_MAX
    assert min(held[1000:]) > 300


@pytest.mark.parametrize(
    "writes",
    [
        [("update", "app.test.note", "absent", {})],
        [("delete", "app.test.note", "absent", None)],
        [("create", "app.bsky.actor.profile", "self", {})],
        [("create", "app.test.note", "1", {}), ("create", "app.test.note", "1", {})],
        [("create", "app.test.note", str(n), {}) for n in range(201)],
    ],
)
def test_writes_that_do_not_fit_the_repository_are_refused(
    writes: list[tuple[str, str, str, dict[str, object] | None]],
) -> None:
    somewhere = make()
    did = somewhere.accounts[0].did
    before = somewhere.all_accounts[did].repo.head
    with pytest.raises(ValueError, match=r"does not fit|at most 200"):
        somewhere.write(did, writes)
    assert somewhere.all_accounts[did].repo.head == before


def test_a_world_without_accounts_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one account, not 0"):
        make(repos=0)


def test_the_rev_of_a_new_repository_is_that_of_its_newest_record() -> None:
    revs = [account.repo.rev or "" for account in make(repos=100, records=3).accounts]
    ages_us = [START_US - tid_us(rev) for rev in revs]
    assert min(ages_us) > 0
    assert sum(age > 86_400_000_000 for age in ages_us) > 90
