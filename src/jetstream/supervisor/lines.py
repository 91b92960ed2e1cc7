"""What a child writes to its standard error: passed on line by line, and the last line that is no log line.

A child writes log lines as the supervisor does, with a field that names it. What comes otherwise is a
traceback, or a last word of Python or of the C library: it says why the process has ended.

    child's standard error ─▶ `Lines.read` ─▶ whole lines ─▶ standard error of the supervisor
                                                └── no log line ─▶ `last_raw`: why the process has ended

Only whole lines are passed on, so those of several processes do not run into each other.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final

# Bytes of one read, and of what the reader holds: a child that writes faster waits in `write`.
_CHUNK_BYTES: Final = 64 << 10
# Characters of the last line in an error: it is shown in one line of the log.
_LAST_CHARS: Final = 500
# How the first bytes of a log line look: JSON, or a time, which may have a colour before it.
_LOG_LINES: Final = (b"{", b"\x1b[")


class Lines:
    """Passes lines on to `write`; a line of more than `bytes_max` is cut.

    There is one for each place: the processes of a place write to it one after another.
    """

    def __init__(self, write: Callable[[bytes], object], bytes_max: int) -> None:
        # Takes whole lines. An OSError of it is ignored: without a terminal or a pipe to write to,
        # nothing is logged.
        self._write = write
        self._bytes_max = bytes_max
        # The last line that is no log line; cleared with each process.
        self.last_raw = ""
        # The beginning of a line whose end has not come; at most `bytes_max`. Empty after a process.
        self._line = b""
        # Whether that line was cut and passed on: the rest of it is dropped.
        self._is_cut = False

    async def read(self, process: subprocess.Popen[bytes]) -> None:
        """Pass on the lines of a process, to its end.

        It returns when the process and everything that it has started have closed their standard error,
        which may be later than its end: the caller must bound the wait.
        """
        reader = asyncio.StreamReader(limit=_CHUNK_BYTES)
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(reader), process.stderr
        )
        try:
            while data := await reader.read(_CHUNK_BYTES):
                self.add(data)
        finally:
            self.end()
            transport.close()

    def add(self, data: bytes) -> None:
        """Take what comes next. Of a line that is longer than `bytes_max`, only that much is passed on."""
        if self._is_cut:
            _, newline, data = data.partition(b"\n")
            if not newline:
                return
            self._is_cut = False
        *whole, rest = (self._line + data).split(b"\n")
        if len(rest) > self._bytes_max:
            whole, rest, self._is_cut = [*whole, rest], b"", True
        self._line = rest
        self._pass_on(whole)

    def end(self) -> None:
        """Pass on a last line without an end: nothing more comes of this process."""
        rest, self._line, self._is_cut = self._line, b"", False
        if rest:
            self._pass_on([rest])

    def _pass_on(self, lines: Sequence[bytes]) -> None:
        cut = [line[: self._bytes_max] for line in lines]
        for line in cut:
            self._note(line)
        if cut:
            with suppress(OSError):
                self._write(b"\n".join([*cut, b""]))

    def _note(self, line: bytes) -> None:
        """Keep a line as the last one if it is no log line and not empty."""
        if line.strip() and not is_log_line(line):
            self.last_raw = line.decode(errors="replace").strip()[:_LAST_CHARS]


def is_log_line(line: bytes) -> bool:
    """Tell whether a line is one of the log: JSON, or a text that begins with a time.

    A traceback and the last word of a C library look like neither. A line of a library that logs by
    itself may.
    """
    return line.startswith(_LOG_LINES) or (line[2:3] == b":" and line[5:6] == b":" and line[:2].isdigit())


def to_standard_error(data: bytes) -> None:
    """Write lines to the standard error of this process.

    Raises OSError. It is flushed at once, so that the lines of children and of the supervisor stay in
    order.
    """
    sys.stderr.buffer.write(data)
    sys.stderr.buffer.flush()
