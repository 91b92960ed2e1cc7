"""What an operator is told of judged messages: examples of refusals, and what most messages suffer from."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Final

import structlog

from jetstream.admission.message import Message
from jetstream.conditions import Conditions
from jetstream.limits import AdmissionLimits
from jetstream.logging_setup import Throttled
from jetstream.verify.verdict import Verdict

_ADVICE: Final = {
    "unverified": "is the directory of --plc-url the right one, and does it answer?",
    "refused": "is the upstream the right one? The log has examples",
}

logger = structlog.get_logger(__name__)


class Reports:
    """Logs refusals, one a minute for each reason, and keeps two conditions. `clock` gives seconds."""

    def __init__(
        self,
        conditions: Conditions,
        limits: AdmissionLimits = AdmissionLimits(),
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._conditions = conditions
        self._limits = limits
        self._clock = clock
        self._logger = Throttled(logger)
        # Messages by verdict since `_began`, without replays. Cleared after `report_s`.
        self._verdicts: Counter[str] = Counter()
        self._began = clock()

    def refused(self, message: Message, verdict: Verdict) -> None:
        """Log a refusal as an example. Everything in it is what somebody has sent: it is cut off."""
        event = f"refused: {verdict.reason}"
        fields = {
            "upstream": message.source,
            "seq": message.seq,
            "did": message.did[:200],
            "rev": message.rev,
        }
        self._logger.warning(event, **fields, type=message.envelope.type, detail=verdict.detail[:200])

    def count(self, verdicts: Mapping[tuple[str, str], int]) -> None:
        """Count judged messages. Every `report_s`, begin or end the conditions."""
        for (name, _), count in verdicts.items():
            if name != "replay":
                self._verdicts[name] += count
        if self._clock() - self._began >= self._limits.report_s:
            self._report()

    def _report(self) -> None:
        total = self._verdicts.total()
        limits = self._limits
        for name, advice in _ADVICE.items():
            count = self._verdicts[name]
            is_so = total >= limits.report_least and count > limits.report_share * total
            reason = f"{count} of {total} messages of the last {limits.report_s:g} s were {name}: {advice}"
            self._conditions.set(f"messages_{name}", reason if is_so else None)
        self._verdicts.clear()
        self._began = self._clock()
