from __future__ import annotations

from hashlib import sha256
from typing import Any

import libipld
import orjson
import pytest

from jetstream.atproto import cid
from jetstream.errors import SettingError
from jetstream.model import syntax
from jetstream.simulator import check, faults, truth
from jetstream.simulator.faults import Effect, Faults
from jetstream.simulator.stream import Item, Stream
from jetstream.simulator.world import Population, SteadyClock, World

MESSAGES = 400
LEVELS = ("frame", "cid", "full")
SEEDS = (1, 2)


class Script:
    """A stream with one fault: its frames, its truth and its ledger."""

    def __init__(self, rates: Faults, seed: int = 1) -> None:
        self.truth: list[dict[str, Any]] = []
        self.ledger: list[dict[str, Any]] = []
        self.world = World(Population(repos=20, records=20), seed, SteadyClock(1_767_225_600_000_000, 2500))
        self.stream = Stream(
            self.world,
            rates,
            seed,
            truth=lambda line: self.truth.append(orjson.loads(line)),
            ledger=lambda line: self.ledger.append(orjson.loads(line)),
        )
        for _ in range(MESSAGES):
            self.stream.advance()

    def items(self) -> list[Item]:
        items: list[Item] = []
        position = 0
        while position < self.stream.end:
            some, position = self.stream.take(position, MESSAGES)
            items += some
        return items

    def expected(self, level: str) -> list[dict[str, Any]]:
        """Give the truth without what the ledger says is lost to a reader that checks up to `level`."""
        checked = LEVELS[: LEVELS.index(level) + 1]
        lost = {
            event["index"] for line in self.ledger if line["level"] in checked for event in line["events"]
        }
        return [event for index, event in enumerate(self.truth) if index not in lost]


class Reader:
    """A consumer that is correct and simple: it skips what repeats and what is wrong."""

    def __init__(self, level: str, world: World) -> None:
        self.level = level
        self.world = world
        self.last = 0
        self.events: list[dict[str, Any]] = []

    def read(self, frame: bytes) -> None:
        try:
            header, body = libipld.decode_dag_cbor_multi(frame)
        except (ValueError, RecursionError):
            return
        if not isinstance(header, dict) or header.get("op") != 1 or not isinstance(body, dict):
            return
        seq = body.get("seq")
        if not isinstance(seq, int) or seq <= self.last or len(frame) > faults.FRAME_BYTES_MAX:
            return
        self.last = seq
        kind = str(header.get("t")).removeprefix("#")
        if kind == "commit" and syntax.is_did(body["repo"]):
            self.events += self._commit(body)
        elif kind in ("identity", "account") and syntax.is_did(body["did"]):
            self.events.append({"did": body["did"], "kind": kind, kind: body})

    def _commit(self, body: dict[str, Any]) -> list[dict[str, Any]]:
        if self.level == "full" and not self._verified(body):
            return []
        try:
            _, blocks = check.read_car(body["blocks"])
        except (ValueError, IndexError, check.BadCommitError):
            blocks = {}
        return [event for op in body["ops"] if (event := self._op(body, op, blocks))]

    def _verified(self, body: dict[str, Any]) -> bool:
        document: Any = self.world.document(body["repo"], "")
        try:
            check.check_commit(body, document["verificationMethod"][0]["publicKeyMultibase"])
        except check.BadCommitError:
            return False
        return True

    def _op(
        self, body: dict[str, Any], op: dict[str, Any], blocks: dict[bytes, bytes]
    ) -> dict[str, Any] | None:
        collection, _, rkey = op["path"].partition("/")
        if not syntax.is_nsid(collection) or not syntax.is_record_key(rkey):
            return None
        commit = {"rev": body["rev"], "operation": op["action"], "collection": collection, "rkey": rkey}
        if op["action"] != "delete":
            record = blocks.get(op["cid"])
            if record is None or record.startswith(b"\xa1\x61a" * 200):
                return None
            if self.level != "frame" and op["cid"][4:] != sha256(record).digest():
                return None
            commit["cid"] = libipld.encode_cid(op["cid"])
        return {"did": body["repo"], "kind": "commit", "commit": commit}


def without_records(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what the simple reader does not render."""
    return [
        event | {"commit": {name: value for name, value in event["commit"].items() if name != "record"}}
        if event["kind"] == "commit"
        else event
        for event in events
    ]


def read(script: Script, level: str) -> list[dict[str, Any]]:
    reader = Reader(level, script.world)
    for item in script.items():
        reader.read(item.frame)
    return reader.events


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", [*faults.ADDED, *faults.ADDED_MESSAGES])
def test_added_faults_lose_and_repeat_nothing(name: str, seed: int) -> None:
    script = Script(Faults(**{name: 0.1}), seed)
    assert len([line for line in script.ledger if line["fault"] == name]) > MESSAGES * 0.05
    assert all(line["level"] is None and line["events"] == [] for line in script.ledger)
    assert read(script, "cid") == without_records(script.truth)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", faults.FORGED)
def test_only_a_full_check_detects_forged_commits(name: str, seed: int) -> None:
    script = Script(Faults(**{name: 0.1}), seed)
    assert len(script.ledger) > MESSAGES * 0.05
    assert {line["fault"] for line in script.ledger} == {name}
    assert read(script, "cid") == without_records(script.truth)


@pytest.mark.parametrize("name", ["bad_signature", "high_s"])
def test_a_wrong_signature_loses_exactly_the_commits_named(name: str) -> None:
    script = Script(Faults(**{name: 0.1}))
    assert {line["level"] for line in script.ledger} == {"full"}
    assert read(script, "full") == without_records(script.expected("full"))
    assert len(script.expected("full")) < len(script.truth)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", faults.CORRUPTED)
def test_corrupted_frames_lose_exactly_the_events_named(name: str, seed: int) -> None:
    script = Script(Faults(**{name: 0.1}), seed)
    assert {line["fault"] for line in script.ledger} == {name}
    assert {line["level"] for line in script.ledger} <= {"frame", "cid"}
    assert read(script, "cid") == without_records(script.expected("cid"))
    assert len(script.expected("cid")) < len(script.truth)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_ledger_is_exact_with_all_faults_at_once(seed: int) -> None:
    script = Script(Faults(**dict.fromkeys(faults.STREAM_FAULTS, 0.03)), seed)
    assert {line["fault"] for line in script.ledger} == set(faults.STREAM_FAULTS)
    assert read(script, "cid") == without_records(script.expected("cid"))


def test_a_broken_chain_and_an_older_revision_have_the_fields_that_say_so() -> None:
    script = Script(Faults(broken_chain=0.2, rev_back=0.2))
    by_seq = {line["seq"]: line["fault"] for line in script.ledger}
    last: dict[str, str] = {}
    found = {"broken_chain": 0, "rev_back": 0}
    for item in script.items():
        header, body = libipld.decode_dag_cbor_multi(item.frame)
        if header["t"] != "#commit":
            continue
        fault = by_seq.get(item.seq)
        previous = last.get(body["repo"])
        if fault is None:
            last[body["repo"]] = body["rev"]
        elif previous is not None:
            found[fault] += 1
            if fault == "broken_chain":
                assert body["since"] != previous
                last[body["repo"]] = body["rev"]
            else:
                assert body["rev"] < previous
    assert min(found.values()) > 20


def test_a_record_of_ten_thousand_levels_is_complete_and_has_its_cid() -> None:
    script = Script(Faults(deep_record=0.05))
    deep = faults.deep_record()
    assert deep.count(b"\xa1") == 10_000
    carrying = 0
    for item in script.items():
        _, body = libipld.decode_dag_cbor_multi(item.frame)
        if deep in body.get("blocks", b""):
            carrying += 1
            assert body["ops"][0]["cid"] == cid.cid_of(deep)
            document: Any = script.world.document(body["repo"], "")
            check.check_commit(body, document["verificationMethod"][0]["publicKeyMultibase"])
    assert carrying == len(script.ledger)


def test_oversized_frames_are_above_the_limit() -> None:
    script = Script(Faults(oversized=0.01))
    sizes = [len(item.frame) for item in script.items() if item.effect is Effect.ONCE]
    assert sizes
    assert min(sizes) > 5_000_000


def test_a_message_without_events_is_not_in_the_truth() -> None:
    script = Script(Faults(malformed_did=0.1))
    bodies = [libipld.decode_dag_cbor_multi(item.frame)[1] for item in script.items()]
    malformed = [body for body in bodies if not syntax.is_did(body.get("repo") or body["did"])]
    assert len(malformed) == len(script.ledger)
    assert all(truth.to_json(event) for event in script.truth)


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_rate_is_a_share(rate: float) -> None:
    with pytest.raises(SettingError, match=r"fault.drop: .* is not a share from 0 to 1"):
        Faults(drop=rate)
