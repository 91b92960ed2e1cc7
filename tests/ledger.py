"""The simulator's faults, each with the verdict that it must get, over any number of messages."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import fields as fields_of
from typing import Any

import libipld
import orjson

from jetstream.atproto.keys import PublicKey, public_key
from jetstream.identity.documents import document_key
from jetstream.simulator import check, faults
from jetstream.simulator.faults import Effect, Faults
from jetstream.simulator.stream import Item, Stream
from jetstream.simulator.world import Population, SteadyClock, World
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.verify.chain import State, latest_rev, root_of
from jetstream.verify.verifier import Verifier

START_US = 1_767_225_600_000_000
# What each fault of a commit gets, if it has a verdict of its own. Those that are left out are authentic.
VERDICTS = {
    "bad_signature": "refused: signature",
    "high_s": "refused: signature",
    "broken_chain": "refused: proof",
    "future_rev": "refused: future_rev",
    "malformed_path": "refused: proof",
    "truncated_car": "refused: car",
    "missing_record": "refused: record",
    "wrong_cid": "refused: hash",
    "malformed_did": "dropped: did",
}
# What is damaged as bytes is dropped, or refused for what is left of it.
OWN = frozenset((*faults.FORGED, *faults.CORRUPTED, *faults.ADDED_MESSAGES))
DAMAGED = frozenset(("garbage_instead", "truncated_instead", "bit_flipped_instead"))


def rates(share: float) -> Faults:
    """Return one rate for every fault of the stream."""
    names = {field.name for field in fields_of(Faults)} & set(faults.STREAM_FAULTS)
    return Faults(**dict.fromkeys(names, share))


class Run:
    """A world with faults, whose messages are verified one by one with the keys of their time."""

    def __init__(self, seed: int, share: float, population: Population | None = None) -> None:
        population = population or Population(repos=40, records=30, lifecycle=0.05)
        self.world = World(population, seed, SteadyClock(START_US, 2_500))
        # The faults of each number, with the accounts that lose something; none if the ledger cannot tell.
        self.lines: dict[int, list[tuple[str, set[str]]]] = {}
        self.stream = Stream(self.world, rates(share), seed, ledger=self._note)
        states = {
            account.did: State(account.repo.rev or "", root_of(account.repo.tree.cid))
            for account in self.world.accounts
        }
        self.verifier = Verifier(self._keys, states=dict(states))
        # The rev and root that must be known of each repository, and those of which something was lost.
        self.known: dict[str, tuple[str, bytes]] = {
            account.did: (account.repo.rev or "", account.repo.tree.cid) for account in self.world.accounts
        }
        self.deleted: set[str] = set()
        self.lost: set[str] = set()
        self.seen: Counter[tuple[str, str]] = Counter()  # by fault and verdict

    def advance(self, messages: int) -> None:
        """Let messages come, and check the verdict of each."""
        position = self.stream.end
        for _ in range(messages):
            self.stream.advance()
            while position < self.stream.end:
                items, position = self.stream.take(position, 1_000)
                for item in items:
                    self._check(item)

    def _note(self, line: bytes) -> None:
        fault = orjson.loads(line)
        dids = {event["did"] for event in fault["events"]}
        if fault["fault"] == "skip":
            self._lose(dids)
        else:
            self.lines.setdefault(fault["seq"], []).append((fault["fault"], dids))

    def _lose(self, dids: set[str]) -> None:
        self.lost |= dids or set(self.known)

    def _keys(self, did: str, _rev: str) -> Sequence[PublicKey]:
        document = self.world.document(did, "")
        return () if document is None else (public_key(document_key(did, document)),)

    def _check(self, item: Item) -> None:
        message = read_envelope(item.frame)
        label = self._label(message)
        if item.effect is not Effect.SEND:
            self._check_added(message, label)
            return
        lines = self.lines.pop(item.seq, [])
        fault, dids = next((line for line in lines if line[0] in OWN), ("", set()))
        self.seen[fault, label] += 1
        if fault in DAMAGED and label != "legacy":
            assert label.startswith(("dropped", "refused", "none")), (fault, label)
            self._lose(dids)
        elif fault in VERDICTS:
            assert label == VERDICTS[fault], (fault, label, item.seq)
            self._lose(dids)
        else:
            # Of a damaged commit, only its last field may be missing. That is `prevData`.
            expected = self._expected(message, label, fault)
            assert label == expected, (fault, label, item.seq)
            if fault == "rev_back":
                self._lose(dids)

    def _label(self, message: Envelope) -> str:
        if message.drop:
            return f"dropped: {message.drop}"
        latest = latest_rev(START_US + (1 << 50))
        if message.type == "commit":
            return self.verifier.verify_commit(message.fields, latest).verdict.label
        if message.type == "sync":
            return self.verifier.verify_sync(message.fields, latest).verdict.label
        if message.type == "account" and message.fields.get("status") == "deleted":
            self.verifier.forget(message.fields["did"])
            self.known.pop(message.fields["did"], None)
            self.deleted.add(message.fields["did"])
        return "none"

    def _check_added(self, message: Envelope, label: str) -> None:
        """A copy of an earlier frame is not passed on, whole or damaged, unless its account is gone."""
        if message.fields.get("repo", message.fields.get("did")) in self.deleted:
            return
        self.seen["copy", label] += 1
        assert label.startswith(("dropped", "refused", "replay", "none")), label

    def _expected(self, message: Envelope, label: str, fault: str) -> str:
        """Return the verdict of an authentic message, by what was passed on before it."""
        if message.type not in {"commit", "sync"}:
            return "none"
        body: Any = message.fields
        did, rev = body.get("repo", body.get("did")), body["rev"]
        roots, blocks = check.read_car(body["blocks"])
        root = libipld.decode_dag_cbor(blocks[roots[0]])["data"]
        before = self.known.get(did)
        if before is not None and rev <= before[0]:
            return "replay"
        self.known[did] = rev, root
        if before is None:
            return "ok"
        follows = root == before[1]
        if message.type == "commit":
            follows = body["since"] == before[0] and body.get("prevData", before[1]) == before[1]
        assert follows or did in self.lost, "a gap where nothing was lost"
        self.lost.discard(did)
        if not follows:
            return "gap"
        if fault == "missing_node":
            return "incomplete"
        return "legacy" if label == "legacy" and "prevData" not in body else "ok"
