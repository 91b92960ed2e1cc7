"""The CPU time of verifying commits, in each mode, in a process that does nothing else.

python -m benches.verify [RECORDING]

The recording has its DID documents beside it, as `jetstream record` writes them. By default, it is a
simulated network of a few accounts with many records each, so that commits are as long (5 kB) as real ones.
Frames are decoded before. `cid_us` is what every mode does: records to events. `…_more_us` is what the other
modes do besides. Every commit is judged once per round; the fastest round counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from benches.frames import DIRECTORY, POPULATION, START_US
from benches.limits import Limit

from jetstream.atproto.keys import K256PublicKey, PublicKey, public_key
from jetstream.identity.documents import document_key
from jetstream.runtime import tune_gc
from jetstream.simulator import frames, recording
from jetstream.simulator.world import SteadyClock, World
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract
from jetstream.verify.chain import latest_rev
from jetstream.verify.commit import examine_commit
from jetstream.verify.verifier import Verifier

TITLE: Final = "Verification of commits of 5 kB, CPU time"
LIMITS: Final = (Limit("full_more_us", 110),)
FILE: Final = DIRECTORY / "signed.bin.zst"
COUNT: Final = 5_000
ROUNDS: Final = 7
_LATEST: Final = latest_rev(START_US + (1 << 48))

Fields = Mapping[str, Any]


def main(file: Path | None = None) -> dict[str, float]:
    """Measure, print and return the figures: microseconds a commit."""
    file = file or recorded()
    commits = [message for each in recording.read(file) if (message := read_envelope(each)).type == "commit"]
    keys = _keys(file)
    tune_gc()
    fields = [message.fields for message in commits]
    figures = {
        "cid_us": _microseconds(lambda: [extract(message) for message in commits], len(commits)),
        "signature_more_us": _verified_us(fields, keys, full=False),
        "full_more_us": _verified_us(fields, keys, full=True),
        "hashes_and_trees_us": _microseconds(lambda: [examine_commit(each) for each in fields], len(fields)),
        "k256_signature_us": _signature_us(fields, keys),
        "commit_bytes": sum(len(each["blocks"]) for each in fields) / len(fields),
    }
    for name, value in figures.items():
        print(f"{name:32} {value:8.1f}")
    return figures


def recorded() -> Path:
    """Return the recording. Make it first if there is none, in ten seconds."""
    if not FILE.exists() or not recording.documents_path(FILE).exists():
        print(f"benches: simulating into {FILE}", flush=True)
        FILE.parent.mkdir(parents=True, exist_ok=True)
        # Without rotations, so that one document tells each key.
        world = World(replace(POPULATION, lifecycle=0), 1, SteadyClock(START_US, 500))
        documents = {account.did: world.document(account.did, "") for account in world.accounts}
        with recording.writing(FILE) as add:
            for seq, message in zip(range(1, COUNT + 1), world.messages(), strict=False):
                add(frames.encode(message, seq))
        recording.write_documents(FILE, documents)
    return FILE


def _keys(file: Path) -> dict[str, PublicKey]:
    documents = recording.read_documents(file)
    return {did: public_key(document_key(did, document)) for did, document in documents.items()}


def _verified_us(fields: Sequence[Fields], keys: Mapping[str, PublicKey], *, full: bool) -> float:
    def run() -> None:
        verifier = Verifier(lambda did, _: (keys[did],), full=full)
        for each in fields:
            verdict = verifier.verify_commit(each, _LATEST).verdict
            assert verdict.name in {"ok", "gap"}, verdict

    return _microseconds(run, len(fields))


def _signature_us(fields: Sequence[Fields], keys: Mapping[str, PublicKey]) -> float:
    signed = [
        (examine_commit(each), keys[each["repo"]])
        for each in fields
        if isinstance(keys[each["repo"]], K256PublicKey)
    ]
    return _microseconds(lambda: [evidence.is_signed_by((key,)) for evidence, key in signed], len(signed))


def _microseconds(run: Callable[[], object], count: int) -> float:
    """Return the CPU time of the fastest round, for each of `count`."""
    rounds = []
    for _ in range(ROUNDS):
        start = time.process_time()
        run()
        rounds.append(time.process_time() - start)
    return min(rounds) / count * 1e6


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else None)
