"""Processes of a benchmark that take orders and answer: readers, relays and floods."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

ARRIVES_S: Final = 30.0  # by then a reader must have received everything
_LOOK_S: Final = 0.1


class Helper:
    """A process that takes orders on its standard input and answers on its output, as lines of JSON."""

    def __init__(self, module: str, *arguments: object) -> None:
        command = [sys.executable, "-m", module, *map(str, arguments)]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def send(self, **order: object) -> None:
        """Send an order."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()

    def receive(self, key: str, timeout_s: float = 120.0) -> dict[str, Any]:
        """Return the next answer in which `key` is there, and not false. Raises TimeoutError."""
        end = time.monotonic() + timeout_s
        while True:
            try:
                facts = self._lines.get(timeout=max(end - time.monotonic(), 0.001))
            except queue.Empty:
                raise TimeoutError(f"no {key} in {timeout_s:.0f} s") from None
            if key in facts and facts[key] is not False:
                return facts

    def ask(self) -> dict[str, Any]:
        """Ask a reader what it has received since the last call."""
        self.send()
        return self.receive("good")

    def stop(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.communicate()


@contextmanager
def reading(module: str, *arguments: object) -> Iterator[Helper]:
    """Start a reader, and let it subscribe. At the end stop it."""
    reader = Helper(module, *arguments)
    try:
        reader.receive("subscribed")
        yield reader
    finally:
        reader.stop()


def arrived(reader: Helper, sent: int) -> dict[str, Any]:
    """Return what a reader has received, once it has everything or nothing more comes."""
    end = time.monotonic() + ARRIVES_S
    while True:
        seen = reader.ask()
        if seen["good"] >= sent or seen["closed"] or time.monotonic() > end:
            return seen
        time.sleep(_LOOK_S)
