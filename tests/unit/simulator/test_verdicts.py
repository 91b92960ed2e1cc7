from __future__ import annotations

from typing import Any

import libipld
import orjson
import pytest

from jetstream.atproto import mst
from jetstream.atproto.tid import tid_us
from jetstream.model import syntax
from jetstream.simulator import check, faults
from jetstream.simulator.faults import Effect, Faults
from jetstream.simulator.stream import Stream
from jetstream.simulator.world import Population, SteadyClock, World

START_US = 1_767_225_600_000_000
YEAR_US = 366 * 86_400_000_000


class Verifier:
    """A consumer that verifies all of it, written from the specification and not from `verdicts`."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.states: dict[str, tuple[str, bytes]] = {}  # revision and tree by DID

    def read(self, frame: bytes) -> tuple[str, str, str] | None:
        """Return the DID, the revision and the verdict of a commit or a sync; None for anything else."""
        try:
            header, body = libipld.decode_dag_cbor_multi(frame)
            kind = header["t"] if header["op"] == 1 and "seq" in body else None
        except (ValueError, TypeError, KeyError):
            return None
        if kind == "#account" and body.get("status") == "deleted":
            self.states.pop(body["did"], None)
        if kind == "#sync":
            return body["did"], body["rev"], self._sync(body)
        return (body["repo"], body["rev"], self._commit(body)) if kind == "#commit" else None

    def _commit(self, body: dict[str, Any]) -> str:
        did, rev = body["repo"], body["rev"]
        before = self.states.get(did)
        if before is not None and rev <= before[0]:
            return "replay"
        verdict = "refused" if tid_us(rev) > START_US + YEAR_US else self._checked(body)
        if verdict == "refused":
            return verdict
        _, blocks = check.read_car(body["blocks"])
        self.states[did] = rev, libipld.decode_dag_cbor(blocks[body["commit"]])["data"]
        if verdict == "ok" and before is not None and before != (body["since"], body.get("prevData")):
            return "gap"
        return verdict

    def _checked(self, body: dict[str, Any]) -> str:
        """Return the verdict on a commit in itself. One without `prevData` has it added for the check."""
        legacy = "prevData" not in body and body["since"] is not None
        if not all(_is_path(op["path"]) for op in body["ops"]):
            return "refused"
        try:
            check.check_commit(body, self._key(body["repo"], body["rev"]))
        except check.BadCommitError as error:
            if isinstance(error.__cause__, mst.PartialTreeError):
                return "incomplete"
            return "legacy" if legacy else "refused"
        except (ValueError, IndexError, KeyError):
            return "refused"
        return "ok"

    def _sync(self, body: dict[str, Any]) -> str:
        (root,), blocks = check.read_car(body["blocks"])
        commit = libipld.decode_dag_cbor(blocks[root])
        before = self.states.get(body["did"])
        if before is not None and commit["rev"] <= before[0]:
            return "replay"
        self.states[body["did"]] = commit["rev"], commit["data"]
        return "ok" if before is None or before[1] == commit["data"] else "gap"

    def _key(self, did: str, rev: str) -> str:
        return [each.key for each in self.world.changes if each.did == did and each.time_us <= tid_us(rev)][
            -1
        ]


def _is_path(path: str) -> bool:
    collection, _, rkey = path.partition("/")
    return syntax.is_nsid(collection) and syntax.is_record_key(rkey)


class Run:
    """A stream with faults: its frames, its ledger, and the verdicts that it expects."""

    def __init__(self, rates: Faults, messages: int, seed: int = 1) -> None:
        self.ledger: list[Any] = []
        self.verdicts: list[Any] = []
        population = Population(repos=12, records=30, lifecycle=0.1, rotations=0.02)
        self.world = World(population, seed, SteadyClock(START_US, 2500))
        self.stream = Stream(
            self.world,
            rates,
            seed,
            ledger=lambda line: self.ledger.append(orjson.loads(line)),
            verdicts=lambda line: self.verdicts.append(orjson.loads(line)),
        )
        for _ in range(messages):
            self.stream.advance()

    def found(self) -> list[tuple[int, str, str, str]]:
        """Return what a verifier says of every frame with a number of its own."""
        verifier = Verifier(self.world)
        found = []
        position = 0
        while position < self.stream.end:
            items, position = self.stream.take(position, 1000)
            for item in items:
                said = verifier.read(item.frame) if item.effect is Effect.SEND else None
                if said is not None:
                    found.append((item.seq, *said))
        return found

    def expected(self) -> list[tuple[int, str, str, str]]:
        return [(line["seq"], line["did"], line["rev"], line["verdict"]) for line in self.verdicts]


NAMES = (*faults.FORGED, *faults.CORRUPTED, *faults.ADDED_MESSAGES)


@pytest.mark.parametrize("seed", [1, 2])
def test_a_verifier_says_of_each_commit_what_is_expected_under_all_faults(seed: int) -> None:
    run = Run(Faults(**dict.fromkeys(faults.STREAM_FAULTS, 0.015) | {"oversized": 0}), 1200, seed)
    assert run.found() == run.expected()
    assert {line["fault"] for line in run.ledger} >= set(NAMES)


def test_without_faults_all_is_well() -> None:
    run = Run(Faults(), 600)
    assert run.found() == run.expected()
    assert {line["verdict"] for line in run.verdicts} == {"ok", "replay"}
    commits = {line["seq"] for line in run.verdicts if line["verdict"] == "ok"}
    assert len(commits) > 450


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("too_big", "ok", None),
        ("bad_signature", "refused", "signature"),
        ("high_s", "refused", "signature"),
        ("broken_chain", "refused", "proof"),
        ("rev_back", "replay", None),
        ("future_rev", "refused", "future_rev"),
        ("no_prev_data", "legacy", None),
        ("missing_node", "incomplete", None),
        ("deep_record", "ok", None),
        ("skip", None, None),
        ("garbage_instead", None, None),
        ("truncated_instead", None, None),
        ("truncated_car", "refused", "car"),
        ("missing_record", "refused", "record"),
        ("wrong_cid", "refused", "hash"),
        ("malformed_path", "refused", "proof"),
    ],
)
def test_the_ledger_names_the_verdict_and_what_is_lost_leaves_a_gap(
    name: str, verdict: str | None, reason: str | None
) -> None:
    run = Run(Faults(), 60)
    did = run.world.accounts[0].did

    def write(text: str) -> None:
        run.stream.append(run.world.create_record(did, "app.test.note", {"text": text}))

    write("before")
    run.stream.inject(name)
    while not run.ledger:
        if name == "missing_node":  # it applies to a few commits in the middle of a tree
            run.stream.advance()
        else:
            write("with the fault")
    (line,) = run.ledger
    assert (line["fault"], line["verdict"], line.get("reason")) == (name, verdict, reason)
    if verdict == "refused" and line["level"] != "full":
        assert len(line["refused"]) >= len(line["events"]) > 0
    did = line.get("did", did)
    write("after")
    assert run.verdicts[-1]["verdict"] == ("gap" if line["events"] else "ok")


def test_a_deleted_account_is_forgotten() -> None:
    run = Run(Faults(), 30)
    did = run.world.accounts[0].did
    for message in run.world.replace(did):
        run.stream.append(message)
    assert did not in run.stream._consumer._states


def test_a_delete_under_a_malformed_path_can_be_refuted() -> None:
    run = Run(Faults(), 30)
    for account in run.world.accounts:
        if account.active:
            collection, _, rkey = account.paths[len(account.paths) // 2].partition("/")
            run.stream.inject("malformed_path")
            run.stream.append(run.world.write(account.did, [("delete", collection, rkey, None)]))
    refused = [line for line in run.ledger if line["fault"] == "malformed_path"]
    assert len(refused) > 8
    for item in run.stream.take(0, 1000)[0]:
        if item.seq in {line["seq"] for line in refused}:
            _, body = libipld.decode_dag_cbor_multi(item.frame)
            key = run.world.all_accounts[body["repo"]].repo.key.multibase
            with pytest.raises(check.BadCommitError) as caught:
                check.check_commit(body, key)
            assert not isinstance(caught.value.__cause__, mst.PartialTreeError)
