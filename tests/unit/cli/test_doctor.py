from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from jetstream.cli.doctor import check_variables


def test_a_typo_in_a_variable_is_a_finding() -> None:
    environment = {"JETSTREAM_RETENTION": "1h", "JETSTREAM_PORT_6008_TCP": "x", "JETSTREAM_WIRE": "v1"}
    (finding,) = check_variables(environment)
    assert finding.line() == (
        "warn  settings  JETSTREAM_RETENTION is unknown, and ignored - did you mean JETSTREAM_EVENT_TTL?"
    )


def test_a_reader_that_has_seen_enough_is_no_error(tmp_path: Path) -> None:
    """A pipe whose other end is closed before the first line."""
    read, write = os.pipe()
    os.close(read)
    flags = ["--upstream", "ws://127.0.0.1:9", "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path)]
    command = [sys.executable, "-m", "jetstream", "doctor", *flags]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, timeout=60, check=False)
    os.close(write)
    assert ended.stderr == b""
