from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from jetstream.simulator.faults import Faults
from jetstream.simulator.simulated_network import SimulatedNetwork

PAGE = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text()


def test_every_fault_is_in_the_table_and_no_other() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", PAGE.split("## Faults")[1].split("## In tests")[0], re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named == {field.name.replace("_", "-") for field in fields(Faults)}


def test_what_tests_can_call_is_described() -> None:
    called = set(re.findall(r"network\.([a-z_]+)", PAGE))
    public = {name for name in vars(SimulatedNetwork) if not name.startswith("_")}
    assert called - {"world"} <= public | {"truth", "ledger"}
    assert {"emit", "publish", "resume", "pause", "run", "serving"} <= called
