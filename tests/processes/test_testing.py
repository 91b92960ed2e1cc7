"""The example of a test that users write, run by pytest as they run it."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

EXAMPLE = Path(__file__).parents[2] / "examples" / "test_my_consumer.py"


async def test_the_example_passes() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(EXAMPLE)),
        *("-o", "asyncio_mode=strict"),
        stdout=asyncio.subprocess.PIPE,
        env=os.environ | {"NO_COLOR": "1"},
    )
    output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    assert b"3 passed" in output
