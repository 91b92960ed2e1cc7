"""`jetstream verify`: verify the messages of a recording, and show a table of verdicts.

    recording ─▶ frames ─▶ envelopes ─▶ Verifier, with the keys of a file ─▶ verdicts ─▶ table

The same verifier as in a server, without a network: keys are those that were recorded beside the frames.
So the result of a recording is the same each time, but for revs that are ahead of the clock. Everything
runs in one thread, frame by frame.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final, Literal

import orjson

from jetstream.atproto.keys import PublicKey, public_key
from jetstream.atproto.tid import tid_us
from jetstream.clock import unix_us
from jetstream.errors import SettingError
from jetstream.identity.documents import NO_HISTORY, History, document_key, only_key, parse_history
from jetstream.identity.failures import NoKey
from jetstream.limits import KeyLimits
from jetstream.simulator import recording
from jetstream.upstream.drops import DROP_REASONS
from jetstream.upstream.envelope import Envelope, read_envelope
from jetstream.verify.chain import Judgement, latest_rev
from jetstream.verify.verdict import REFUSALS, VERDICTS
from jetstream.verify.verifier import Verifier

# Also for messages that cannot be read.
EXIT_REFUSED: Final = 1
# What the table calls messages that have no signature: identity and account messages, and `#info`.
_UNSIGNED: Final = "not signed"
# Microseconds around the time of a commit in which a key must have been valid, as in a server.
_SLACK_US: Final = KeyLimits().history_slack_us
# Of an example: fields come from the network, and may be long.
_EXAMPLE_CHARS_MAX: Final = 300
# All labels, in the order of the table's lines: verdicts first, then refusals by reason, then what was
# dropped by reason.
_LABELS: Final = (
    *(name for name in VERDICTS if name != "refused"),
    _UNSIGNED,
    *(f"refused: {reason}" for reason in REFUSALS),
    *(f"dropped: {reason}" for reason in DROP_REASONS),
)


def verify(
    frames: Path,
    /,
    *,
    documents: Path | None = None,
    mode: Literal["signature", "full"] = "full",
) -> None:
    """Verify a recording, and show how many messages have which verdict, with examples.

    The exit code is 1 if messages were refused or could not be read, or if the recording is empty or damaged.
    Of a damaged recording, the table shows what is before the damage.

    Parameters
    ----------
    frames
        The recording.
    documents
        A JSON file with the DID document, or the PLC audit log, of each DID. Default: FRAMES.dids.json, which
        `jetstream record` and `jetstream simulate --record` write. Messages of other DIDs are unverified: all
        is checked but the signature.
    mode
        signature: hashes, signatures, and that ops are found in the tree. full: also that no op was left out,
        and that each commit follows the one before it.
    """
    if not frames.is_file():
        raise SettingError("FRAMES", str(frames), "is no file")
    keys = _Keys(_read_documents(frames, documents))
    table = _Table()
    try:
        for message, judgement in _judged(frames, keys, full=mode == "full"):
            table.add(message, judgement)
    # The table is shown also when the recording is damaged: it has what is before the damage.
    finally:
        table.show()
    if table.is_empty:
        problem = "has no frames" if frames.stat().st_size else "is not a recording: it is empty"
        raise recording.RecordingError(f"{frames} {problem}")
    if documents is None and not recording.documents_path(frames).exists():
        _warn(f"no DID documents ({recording.documents_path(frames)} is missing): no signature was checked")
    if table.has_bad:
        sys.exit(EXIT_REFUSED)


def _warn(text: str) -> None:
    """Print a line on standard error, which is not part of the table."""
    print(f"jetstream: {text}", file=sys.stderr)  # noqa: T201 - beside the output of a command


def _judged(frames: Path, keys: _Keys, *, full: bool) -> Iterator[tuple[Envelope, Judgement | None]]:
    """Yield the messages of a recording in order, with what is said of those that are signed.

    None for others, and for those that were dropped before. Raises RecordingError at the first damage.
    """
    verifier = Verifier(keys.find, full=full)
    latest = latest_rev(unix_us())
    for frame in recording.read(frames):
        message = read_envelope(frame)
        yield message, None if message.drop else _judge(verifier, message, latest)


def _judge(verifier: Verifier, message: Envelope, latest: str) -> Judgement | None:
    """Return the judgement of a commit or a sync; None for other messages.

    As in a server, a deleted account is forgotten: it may begin again with any rev.
    """
    fields = message.fields
    if message.type == "commit":
        return verifier.verify_commit(fields, latest)
    if message.type == "sync":
        return verifier.verify_sync(fields, latest)
    if message.type == "account" and fields.get("status") == "deleted":
        verifier.forget(fields["did"])
    return None


class _Keys:
    """The keys of the accounts, by what a file says of them."""

    def __init__(self, found: Mapping[str, object]) -> None:
        # By DID: a DID document, or a PLC audit log, as JSON values.
        self._found = found
        # The history of each account, and each key, once they are asked for.
        self._history = cache(self._read)
        self._public_key = cache(public_key)

    def find(self, did: str, rev: str) -> Sequence[PublicKey]:
        """Return the keys that may have signed a commit; none if they are not known."""
        # Which key is valid depends on when the commit was made, which its rev says
        # (https://atproto.com/specs/tid).
        history, time_us = self._history(did), tid_us(rev)
        keys = history.keys_at(time_us, _SLACK_US) if history.is_whole_at(time_us, _SLACK_US) else []
        return [self._public_key(key) for key in keys]

    def _read(self, did: str) -> History:
        """Return the keys of an account with their times, or the one key of its DID document.

        A DID that the file does not have, or whose entry cannot be read, has no history: its messages
        are unverified.
        """
        found = self._found.get(did)
        try:
            # A list is an audit log, with all keys of the account; an object is a document, with the
            # present one.
            if isinstance(found, list):
                return parse_history(did, found)
            return only_key(document_key(did, found))
        except NoKey:
            return NO_HISTORY


def _read_documents(frames: Path, documents: Path | None) -> Mapping[str, object]:
    """Return what a file says of each DID; nothing without a file. Raises SettingError."""
    path = documents or recording.documents_path(frames)
    if documents is None and not path.exists():
        return {}
    try:
        found = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError) as error:
        raise SettingError("--documents", str(path), f"cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise SettingError("--documents", str(path), "is no JSON object with a DID document for each DID")
    return found


class _Table:
    """How many messages have which verdict, and an example of each."""

    def __init__(self) -> None:
        # Messages by label, and the first one of each as text. Both change with every message.
        self._counts: Counter[str] = Counter()
        self._examples: dict[str, str] = {}

    @property
    def is_empty(self) -> bool:
        """Whether there was no message."""
        return not self._counts

    @property
    def has_bad(self) -> bool:
        """Whether a message was refused or dropped."""
        return any(label.startswith(("refused", "dropped")) for label in self._counts)

    def add(self, message: Envelope, judgement: Judgement | None) -> None:
        """Count a message, and keep it as an example if it is the first one with its label."""
        label = _label(message, judgement)
        self._counts[label] += 1
        if label not in self._examples:
            self._examples[label] = _example(message, judgement)[:_EXAMPLE_CHARS_MAX]

    def show(self) -> None:
        """Print the table, unless it is empty."""
        shown = [label for label in _LABELS if label in self._counts]
        if not shown:
            return
        width = max(map(len, (*shown, "verdict")))
        lines = [f"{'verdict':{width}}  messages  first example"]
        lines += [f"{label:{width}}  {self._counts[label]:8,}  {self._examples[label]}" for label in shown]
        print("\n".join(lines))  # noqa: T201 - the output of a command


def _label(message: Envelope, judgement: Judgement | None) -> str:
    """Return what a message is counted under: its verdict, why it was dropped, or that it is not signed."""
    if judgement is not None:
        return judgement.verdict.label
    return f"dropped: {message.drop}" if message.drop else _UNSIGNED


def _example(message: Envelope, judgement: Judgement | None) -> str:
    """Return where a message is, and why it was judged as it was."""
    fields: Mapping[str, Any] = message.fields
    place = [f"#{message.type}", f"seq {message.seq}"]
    place += [str(fields[name])[:100] for name in ("repo", "did", "rev") if name in fields]
    why = DROP_REASONS.get(message.drop, "")
    if judgement is not None:
        why = judgement.verdict.detail
        if judgement.missing_after:
            why = f"the last rev before it is {judgement.missing_after}"
    return " ".join(place) + (f": {why}" if why else "")
