"""`jetstream doctor` as a user runs it, before a server and beside one."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from pathlib import Path

from tests.builders import commit
from tests.programs import program
from tests.relay import Relay, numbered
from tests.serving import Start, published

DOCTOR = [sys.executable, "-m", "jetstream", "doctor"]


async def examined(*arguments: str | Path) -> tuple[int, dict[str, list[str]], str]:
    """Return the exit code, the findings of each check as level and text, and what was said besides."""
    async with program(*DOCTOR, "--json", *map(str, arguments)) as doctor:
        code, out, err = await doctor.ended()
    found: dict[str, list[str]] = {}
    for each in json.loads(out) if out else []:
        found.setdefault(each["check"], []).append(f"{each['level']}: {each['text']}")
    return code, found, err


async def test_nothing_is_to_be_changed_for_a_good_relay(relay: Relay, tmp_path: Path) -> None:
    flags = ["--upstream", relay.url, "--listen", "127.0.0.1:0", "--data-dir", str(tmp_path / "data")]
    async with program(*DOCTOR, *flags, "--max-subscribers", "10", "--retention-bytes", "1MB") as doctor:
        await relay.wait_accepted(1)
        relay.publish(numbered([commit(1)]))
        code, out, err = await doctor.ended()
    lines = out.splitlines()
    checks = ["upstream", "clock", "disk", "speed", "log", "port", "files", "kernel"]
    assert [line.split()[1] for line in lines] == checks
    assert err == ""
    assert code == (0 if all(line.startswith("ok ") for line in lines) else 1)
    assert "ok    upstream  ws://" in lines[0]
    assert not (tmp_path / "data").exists()


async def test_a_server_that_runs_is_recognised(relay: Relay, start: Start, tmp_path: Path) -> None:
    relay.publish(numbered([commit(1)]))
    service = await start(upstream_cursor=0)
    await published(service, 1)
    flags = ("--upstream", relay.url, "--listen", f"127.0.0.1:{service.port}", "--data-dir", tmp_path)
    examining = asyncio.create_task(examined(*flags))
    await relay.wait_accepted(2)
    relay.publish(numbered([commit(2)]))
    _, found, _ = await examining
    assert found["port"] == [f"ok: 127.0.0.1:{service.port} is served by a Jetstream that runs now"]
    assert re.match(r"ok: [12] events, .+, undamaged", found["log"][0])


async def test_our_own_server_as_upstream_is_named_a_jetstream(
    relay: Relay, start: Start, tmp_path: Path
) -> None:
    relay.publish(numbered([commit(1)]))
    service = await start(upstream_cursor=0)
    await published(service, 1)
    base = f"ws://127.0.0.1:{service.port}"
    code, found, _ = await examined(
        *("--upstream", f"a={base}/subscribe?cursor=0", "--upstream", f"b={base}"),
        *("--listen", "127.0.0.1:0", "--data-dir", tmp_path / "other"),
    )
    assert code == 1
    assert found["upstream"][0].startswith("fail: a ws://")
    assert "is a Jetstream" in found["upstream"][0]
    assert found["upstream"][1].startswith("fail: b ws://")
    assert "is a Jetstream" in found["upstream"][1]


async def test_settings_that_cannot_be_used_are_refused_as_by_serve(tmp_path: Path) -> None:
    code, found, err = await examined("--retention", "soon")
    assert (code, found) == (2, {})
    assert "--retention" in err
    (tmp_path / "file").touch()
    code, _, err = await examined("--data-dir", tmp_path / "file")
    assert (code, err.count("\n")) == (2, 1)
