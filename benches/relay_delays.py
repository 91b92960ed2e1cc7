"""Delays since a frame was due to be sent by the relay, which writes that time as the `rev` of commits."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Final

from jetstream.atproto.tid import tid_us
from jetstream.bench.delays import Delays
from jetstream.bench.subscription import Readings

# Several checked connections receive the same event at about the same time.
cached_tid_us: Final = lru_cache(maxsize=4096)(tid_us)


@dataclass(slots=True)
class RelayReadings(Readings):
    """Readings with the delay from the relay as well, of commits."""

    relay_delays: Delays = field(default_factory=Delays)

    def reset_delays(self) -> None:
        """Discard the delays so far."""
        self.delays, self.relay_delays = Delays(), Delays()

    def time(self, event: dict[str, Any], now_us: int) -> None:
        """Add the delays of an event that was received at `now_us`."""
        self.delays.add(now_us - event["time_us"])
        commit = event.get("commit")
        if commit:
            self.relay_delays.add(now_us - cached_tid_us(commit["rev"]))
