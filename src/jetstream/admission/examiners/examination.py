"""One signed message to all that it says by itself: what it proves, whether it is signed, its events. Pure.

    Task ─ hashes, envelope, ops, tree ─▶ Evidence ─ signature ─▶ signed or not ─ extract ─▶ events

This is nearly all of the work, and it needs nothing but the message and the keys of its account. So it can be
done in any process, and in any order (`pool`). What came before the message is judged by the caller, in
order (`verify.chain`).

A message that is refused has no events: it is refused as a whole. An error of our own code, on what nobody
has foreseen, is a reason too (`crash`): each function here returns a finding, whatever the message holds. So
one message costs one message, and neither the server nor a process that examines.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import lru_cache, wraps
from typing import Any, Final, NamedTuple, ParamSpec

from jetstream.atproto.encoded_key import EncodedKey
from jetstream.atproto.keys import PublicKey, public_key
from jetstream.limits import UpstreamLimits
from jetstream.model.event import Event
from jetstream.upstream.envelope import Envelope
from jetstream.upstream.extract import Extracted, extract
from jetstream.verify.commit import Evidence, claimed, examine_commit, examine_sync
from jetstream.verify.verdict import Refused, Verdict, crashed, refused
from jetstream.verify_modes import SIGNED_MODES, Mode

# Parsed keys that are kept: 0.5 kB and 10 µs each.
_PARSED_KEYS_MAX: Final = 16_384


class Task(NamedTuple):
    """A #commit or #sync that the first stage did not drop (`upstream.envelope`)."""

    # "commit" or "sync".
    kind: str
    # The body of the message, by its own names (`Envelope.fields`).
    fields: Mapping[str, Any]
    # The keys that may have signed it, the likeliest first; none: none is known.
    keys: tuple[EncodedKey, ...] = ()

    @property
    def did(self) -> str:
        """The repository."""
        did: str = self.fields["repo" if self.kind == "commit" else "did"]
        return did

    @property
    def blocks_bytes(self) -> int:
        """Bytes of its blocks."""
        return blocks_bytes(self.fields)


def blocks_bytes(fields: Mapping[str, Any]) -> int:
    """Return the bytes of a message's blocks, which are nearly all of it; 0 if it has none.

    A peer may send anything in their place.
    """
    blocks = fields.get("blocks")
    return len(blocks) if type(blocks) is bytes else 0


class Finding(NamedTuple):
    """What one message says by itself."""

    # None: it is not refused, as far as it can be told without what came before.
    refused: Verdict | None
    # What its blocks prove; None: it was refused before there was any.
    evidence: Evidence | None
    # Whether one of the keys has signed it. None: no key was at hand, or signatures are not checked.
    signed: bool | None
    # Its events, in the order of its ops, and a reason for each part that was left out (`upstream.drops`).
    events: Sequence[Event] = ()
    drops: Sequence[str] = ()


_Arguments = ParamSpec("_Arguments")


def _guarded(step: Callable[_Arguments, Finding]) -> Callable[_Arguments, Finding]:
    """Let a function that examines return a refusal where it would raise an error."""

    @wraps(step)
    def run(*arguments: _Arguments.args, **named: _Arguments.kwargs) -> Finding:
        try:
            return step(*arguments, **named)
        except Exception as error:  # noqa: BLE001 - whatever a peer can bring about: it is logged and counted
            return Finding(crashed(error), None, None)

    return run


@_guarded
def examine(task: Task, mode: Mode, limits: UpstreamLimits = UpstreamLimits()) -> Finding:
    """Examine one message. Raises nothing for what it holds: an error of our own code refuses it (`crash`).

    With keys of which none has signed it, it is refused with `signature`, and may be examined once more with
    others.
    """
    try:
        evidence = _EXAMINERS[task.kind, mode](task.fields)
    except Refused as error:
        return Finding(refused(error.reason, error.detail), None, None)
    signed = None
    if task.keys and mode in SIGNED_MODES:
        signed = _is_signed(evidence, task.keys)
        if not signed:
            return Finding(_not_signed(len(task.keys)), evidence, signed=False)
    return Finding(None, evidence, signed, *_extracted(task, mode, limits))


@_guarded
def with_keys(task: Task, finding: Finding, mode: Mode, limits: UpstreamLimits = UpstreamLimits()) -> Finding:
    """Return the finding of a message that was examined before, with the keys of its task.

    Only its signature is checked again. `finding` has evidence: the message is not refused but for that.
    Its events are made if they were not yet, because it was refused. The result is the same as that of
    `examine`.
    """
    assert finding.evidence is not None, "it is not refused"
    if not _is_signed(finding.evidence, task.keys):
        return Finding(_not_signed(len(task.keys)), finding.evidence, signed=False)
    if finding.signed is None:
        return finding._replace(signed=True)
    return Finding(None, finding.evidence, True, *_extracted(task, mode, limits))


@_guarded
def without_keys(
    task: Task, finding: Finding, mode: Mode, limits: UpstreamLimits = UpstreamLimits()
) -> Finding:
    """Return the finding of a message that was refused for its signature, as if no key was known.

    It is then `unverified`, and `--unresolved` decides. The caller must know that a key may be missing
    (`admission.signatures`).
    """
    return Finding(None, finding.evidence, None, *_extracted(task, mode, limits))


def _is_signed(evidence: Evidence, keys: Iterable[EncodedKey]) -> bool:
    """Return whether one of some keys has signed what the evidence is of. Damaged keys are passed over."""
    return evidence.is_signed_by(key for each in keys if (key := _parsed(each)) is not None)


def _extracted(task: Task, mode: Mode, limits: UpstreamLimits) -> Extracted:
    """Return the events of a message, and what was left out. With `off`, no hash is checked."""
    return extract(Envelope(task.kind, None, task.fields), mode != "off", limits)


def _not_signed(keys: int) -> Verdict:
    """Return the refusal of a message that none of so many keys has signed."""
    return refused("signature", f"it is by none of the account's known keys ({keys} tried)")


def _in_tree(fields: Mapping[str, Any]) -> Evidence:
    """Examine a commit in the mode `signature`: its ops are looked up in the tree, and not undone."""
    return examine_commit(fields, full=False)


# What examines a message, by its type and the mode of the server. Each raises Refused.
_EXAMINERS: Final[Mapping[tuple[str, Mode], Callable[[Mapping[str, Any]], Evidence]]] = {
    ("commit", "off"): claimed,
    ("commit", "cid"): claimed,
    ("commit", "signature"): _in_tree,
    ("commit", "full"): examine_commit,
    # The blocks of a #sync are the commit block alone, so all of it is checked in any mode.
    ("sync", "off"): examine_sync,
    ("sync", "cid"): examine_sync,
    ("sync", "signature"): examine_sync,
    ("sync", "full"): examine_sync,
}


@lru_cache(maxsize=_PARSED_KEYS_MAX)
def _parsed(key: EncodedKey) -> PublicKey | None:
    """Return a key that verifies signatures; None for bytes that were damaged in the file of keys.

    A message with no better key is refused, and so the key is fetched again.
    """
    with suppress(ValueError):
        return public_key(key)
    return None
