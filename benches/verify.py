"""The CPU time of verifying commits, in each mode, in a process that does nothing else.

python -m benches.verify [RECORDING]

The recording has its DID documents beside it, as `jetstream record` writes them; by default, it is that of
`signed`. Its first 5,000 frames count, and are decoded before. `cid_us` is what every mode does: records to
events. `…_more_us` is what the other modes do besides. Every commit is judged once per round; the fastest
round counts.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, Final

from benches.frames import START_US
from benches.limits import Limit
from benches.signed import recorded

from jetstream.atproto.keys import K256PublicKey, PublicKey, public_key
from jetstream.identity.documents import document_key
from jetstream.runtime import tune_gc
from jetstream.simulator import recording
from jetstream.upstream.envelope import read_envelope
from jetstream.upstream.extract import extract
from jetstream.verify.chain import latest_rev
from jetstream.verify.commit import examine_commit
from jetstream.verify.verifier import Verifier

TITLE: Final = "Verification of commits of 5 kB, CPU time"
LIMITS: Final = (Limit("full_more_us", 110),)
COUNT: Final = 5_000
ROUNDS: Final = 7
_LATEST: Final = latest_rev(START_US + (1 << 48))

Fields = Mapping[str, Any]


def main(file: Path | None = None) -> dict[str, float]:
    """Measure, print and return the figures: microseconds a commit."""
    file = file or recorded()
    some = islice(recording.read(file), COUNT)
    commits = [message for each in some if (message := read_envelope(each)).type == "commit"]
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
