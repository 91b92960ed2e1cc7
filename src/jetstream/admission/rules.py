"""How messages are judged, by the settings of a server. Pure.

    --verify      mode               what of a message is checked, and whether it must be signed
    --unresolved  pass_unverified    whether it passes if no key is known
    --unproven    pass_unproven      whether it passes if it does not prove its ops

`verify.chain` judges a message by the protocol alone. Here the operator's choice is applied to that.
"""

from __future__ import annotations

from dataclasses import dataclass

from jetstream.admission.examiners.examination import Finding
from jetstream.verify.chain import Judgement, State, judge
from jetstream.verify.verdict import GAP, OK, refused
from jetstream.verify_modes import SIGNED_MODES, Mode


@dataclass(frozen=True, slots=True)
class Rules:
    """How messages are judged. With `chained`, breaks in the chain of a repository are gaps."""

    # What is checked of a message: `verify_modes`.
    mode: Mode
    # Whether messages that are missing are told to readers, as gaps. True with `full`, and where upstreams
    # are merged.
    chained: bool
    # Whether messages pass of accounts whose key is not known.
    pass_unverified: bool
    # Whether messages pass that are `legacy` or `incomplete` (`verify.verdict`).
    pass_unproven: bool = True

    @property
    def needs_keys(self) -> bool:
        """Whether a message must be signed."""
        return self.mode in SIGNED_MODES

    def lacks_key(self, finding: Finding) -> bool:
        """Return whether a message could not be verified because no key was at hand."""
        return self.needs_keys and finding.refused is None and finding.signed is None

    def judge(self, state: State | None, finding: Finding) -> Judgement:
        """Judge a message that was screened. It is passed on if the verdict says so (see `passes`).

        `state` is what it is compared with; None: its repository has none. The judgement has that same
        state if the message would not move it. Without `chained`, a gap is `ok`, and no rev is named as
        missing.
        """
        if finding.refused is not None:
            return Judgement(finding.refused, state)
        assert finding.evidence is not None
        judgement = judge(state, finding.evidence, signed=not self.lacks_key(finding))
        if not self.pass_unproven and finding.evidence.is_unproven and judgement.state is not state:
            return Judgement(refused("unproven", finding.evidence.before.value), state)
        if self.chained or not judgement.missing_after:
            return judgement
        verdict = OK if judgement.verdict is GAP else judgement.verdict
        return Judgement(verdict, judgement.state)

    def passes(self, verdict_name: str) -> bool:
        """Return whether messages of a verdict are passed on."""
        if verdict_name == "unverified":
            return self.pass_unverified
        return verdict_name not in {"replay", "refused"}
