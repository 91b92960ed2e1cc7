"""All steps of verification in one call, for a caller that never waits: offline, or with all keys at hand.

`jetstream verify` reads a stream with it. A server takes the steps one by one instead (`admission`): it waits
for keys, examines messages in other processes, and holds some until others have come. Both come to the same
verdicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any

from jetstream.atproto.keys import PublicKey
from jetstream.verify.chain import Judgement, State, judge, screen
from jetstream.verify.commit import examine_commit, examine_sync
from jetstream.verify.verdict import Refused, refused

# Return the keys that may have signed a DID's commit of a rev, the likeliest first; none if none is known.
FindKeys = Callable[[str, str], Sequence[PublicKey]]


class Verifier:
    """Verifies the messages of one stream in order, and keeps the states of their repositories.

    Without `full`, it checks hashes, envelopes, signatures and that ops are found in the tree, and keeps no
    states. Messages that are `unverified` are taken as passed on if `pass_unverified`.
    """

    def __init__(
        self,
        find_keys: FindKeys,
        *,
        full: bool = True,
        pass_unverified: bool = True,
        states: MutableMapping[str, State] | None = None,
    ) -> None:
        # The state of each repository, by DID. Changes with each message that is passed on.
        self.states: MutableMapping[str, State] = {} if states is None else states
        # Returns the keys of a DID at a rev. Called once for each message that is examined.
        self._find_keys = find_keys
        self._full = full
        self._pass_unverified = pass_unverified

    def verify_commit(self, fields: Mapping[str, Any], latest: str) -> Judgement:
        """Judge a #commit, given its fields (`upstream.envelope`) and what `chain.latest_rev` returns.

        Never raises for what it holds. The state of its repository is moved by it, if it is passed on.
        """
        return self._verify(fields, fields["repo"], latest, is_sync=False)

    def verify_sync(self, fields: Mapping[str, Any], latest: str) -> Judgement:
        """Judge a #sync, given its fields and what `chain.latest_rev` returns, as `verify_commit` does."""
        return self._verify(fields, fields["did"], latest, is_sync=True)

    def forget(self, did: str) -> None:
        """Forget a repository, whose account was deleted: it may begin again at any rev."""
        self.states.pop(did, None)

    def _verify(self, fields: Mapping[str, Any], did: str, latest: str, *, is_sync: bool) -> Judgement:
        """Take the steps in order: screen, examine, find keys, judge. The first that decides is the last."""
        state, rev = self.states.get(did), fields["rev"]
        if self._full:
            verdict = screen(state, rev, fields.get("blocks"), latest, is_sync=is_sync)
            if verdict is not None:
                return Judgement(verdict, state)
        try:
            evidence = examine_sync(fields) if is_sync else examine_commit(fields, full=self._full)
        except Refused as error:
            return Judgement(refused(error.reason, error.detail), state)
        keys = self._find_keys(did, rev)
        if keys and not evidence.is_signed_by(keys):
            return Judgement(
                refused("signature", f"it is by none of the account's known keys ({len(keys)} tried)"), state
            )
        judgement = judge(state, evidence, signed=bool(keys))
        self._keep(did, judgement)
        return judgement

    def _keep(self, did: str, judgement: Judgement) -> None:
        """Keep the state after a message, if it is passed on."""
        unverified = judgement.verdict.name == "unverified"
        if self._full and judgement.state is not None and (self._pass_unverified or not unverified):
            self.states[did] = judgement.state
