"""What an operator is told of judged messages: examples of refusals, and what most messages suffer from.

The metric `jetstream_verify` has the exact counts. One refused message is an account's mistake. If most are
refused, or cannot be verified, the server is at fault, its settings, or its upstream: that is a condition.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from jetstream.admission.message import IN_REPOSITORIES, Message
from jetstream.conditions import Conditions
from jetstream.limits import AdmissionLimits
from jetstream.logging_setup import Throttled
from jetstream.verify.verdict import Verdict

# What an operator can do about either condition.
_UNVERIFIED: Final = "Is the directory of --plc-url the right one, and does it answer?"
_REFUSED: Final = "is the upstream the right one? The log has examples"

logger = structlog.get_logger(__name__)


class Reports:
    """Logs refusals, one a minute for each reason, and keeps two conditions. `clock` gives seconds.

    `pass_unverified` is whether messages of accounts without a key are passed on.
    """

    def __init__(
        self,
        conditions: Conditions,
        limits: AdmissionLimits = AdmissionLimits(),
        clock: Callable[[], float] = time.monotonic,
        *,
        pass_unverified: bool = True,
    ) -> None:
        self._conditions = conditions
        fate = (
            "they are passed on (--unresolved pass)"
            if pass_unverified
            else "they are dropped (--unresolved drop)"
        )
        # What most messages may suffer from, with what becomes of them, and what the operator can do.
        self._advice = {"unverified": f"{fate}. {_UNVERIFIED}", "refused": _REFUSED}
        # How long is counted, and which share is too many: `report_s`, `report_least`, `report_share`.
        self._limits = limits
        self._clock = clock
        # Writes a line a minute for each reason, whatever a peer sends.
        self._logger = Throttled(logger)
        # Messages by verdict since `_began`, without replays. Cleared after `report_s`.
        self._verdicts: Counter[str] = Counter()
        self._began = clock()

    def refused(self, message: Message, verdict: Verdict) -> None:
        """Log a refusal as an example. Everything in it is what somebody has sent: it is cut off.

        One for an error of our own has the traceback of that.
        """
        event = f"refused: {verdict.reason}"
        fields: dict[str, object] = {
            "upstream": message.source,
            "seq": message.seq,
            "did": message.did[:200],
            "rev": message.rev if message.envelope.type in IN_REPOSITORIES else "",
        }
        if verdict.traceback:
            fields["exception"] = verdict.traceback
        self._logger.warning(event, **fields, type=message.envelope.type, detail=verdict.detail[:200])

    def count(self, verdicts: Mapping[tuple[str, str], int]) -> None:
        """Count judged messages by verdict and reason. Every `report_s`, begin or end the conditions.

        Repeats are left out: with several upstreams, most messages are repeats.
        """
        for (name, _), count in verdicts.items():
            if name != "replay":
                self._verdicts[name] += count
        if self._clock() - self._began >= self._limits.report_s:
            self._report()

    def _report(self) -> None:
        """Begin or end `messages_unverified` and `messages_refused` by what was counted, and count from zero.

        With fewer than `report_least` messages, both end: the last verdicts say nothing of now.
        """
        total = self._verdicts.total()
        limits = self._limits
        for name, advice in self._advice.items():
            count = self._verdicts[name]
            is_so = total >= limits.report_least and count > limits.report_share * total
            reason = f"{count} of {total} messages of the last {limits.report_s:g} s were {name}: {advice}"
            self._conditions.set(f"messages_{name}", reason if is_so else None)
        self._verdicts.clear()
        self._began = self._clock()
