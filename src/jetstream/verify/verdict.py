"""What verification says of a message: the verdicts and the reasons to refuse, as metrics label them.

A verdict says what a message is, and a reason why it is refused; `docs/verification.md` explains both to
operators. The keys are values of a metric's label and stay as they are. To add a reason, name it here and
raise `Refused` where it applies.
"""

from __future__ import annotations

from traceback import format_exception
from typing import Final, NamedTuple

# What is kept of an error: characters of its text, the innermost frames, and characters of these.
_DETAIL_CHARS_MAX: Final = 200
_FRAMES_MAX: Final = 10
_TRACEBACK_CHARS_MAX: Final = 4_000

# Which messages are passed on: all but `replay` and `refused`; `unverified` by a setting.
VERDICTS: Final = {
    "ok": "it is signed, proven, and follows the commit before it, or is the first of its repository",
    "replay": "its rev is not above that of the repository: it was judged before",
    "refused": "it is not what the owner signed; see the reason",
    "gap": "it is signed and proven; the commit before it was not seen",
    "legacy": "it is signed; its producer does not say what the tree was before it",
    "incomplete": "it is signed and follows the commit before it; it lacks tree nodes that prove its ops",
    "unverified": "no key is known",
}

# In the order in which a message is checked.
REFUSALS: Final = {
    "future_rev": "the rev is more than five minutes ahead of the clock",
    "limits": "over 2,000,000 bytes of blocks, or over 200 ops",
    "car": "the blocks are no readable CAR, or over 10,000",
    "hash": "a block does not hash to its CID",
    "root": "the CAR's root is not the message's commit, or its block is missing",
    "commit": "the commit block is no commit of version 3, or not canonical",
    "envelope": "the commit names another DID or rev than the message",
    "op": "an op is malformed, or two ops have one path",
    "record": "the record of an op is missing",
    "proof": "the tree does not hold what the ops say, or was not `prevData` before them",
    "signature": "the signature is not by the account's key, or not low-S",
    "equivocation": "the owner signed two trees under one rev; the first one counts",
    "unproven": "it is signed, would be `legacy` or `incomplete`, and `--unproven drop` is set",
    "crash": "this server made an error on it, or it took more than 5 s of CPU time, again and again",
}


class Refused(Exception):
    """A message is not what the owner signed. `reason` is one of `REFUSALS`, `detail` is for people.

    Raised by the checks of `commit` only. `detail` may have text of the message: it is to be cut off
    before it is logged.
    """

    def __init__(self, reason: str, detail: str) -> None:
        self.reason = reason
        self.detail = detail
        super().__init__(f"{reason}: {detail}")


class Verdict(NamedTuple):
    """One of `VERDICTS`. A refusal has a reason out of `REFUSALS`, and a detail for people."""

    # A key of `VERDICTS`, one of `REFUSALS` or empty, and text for people or nothing.
    name: str
    reason: str = ""
    detail: str = ""
    # The traceback of an error of our own that the message has caused, for the log; empty: there was none.
    traceback: str = ""

    @property
    def label(self) -> str:
        """The verdict with its reason, as tables have it."""
        return f"{self.name}: {self.reason}" if self.reason else self.name


# The verdicts without a reason.
OK: Final = Verdict("ok")
REPLAY: Final = Verdict("replay")
GAP: Final = Verdict("gap")
LEGACY: Final = Verdict("legacy")
INCOMPLETE: Final = Verdict("incomplete")
UNVERIFIED: Final = Verdict("unverified")


def refused(reason: str, detail: str) -> Verdict:
    """Return a refusal for one of `REFUSALS`."""
    return Verdict("refused", reason, detail)


def crashed(error: Exception) -> Verdict:
    """Return the refusal of a message on which our own code has raised an error."""
    detail = f"{type(error).__name__}: {error}"[:_DETAIL_CHARS_MAX]
    traceback = "".join(format_exception(error, limit=-_FRAMES_MAX)).rstrip()
    return Verdict("refused", "crash", detail, traceback[-_TRACEBACK_CHARS_MAX:])
