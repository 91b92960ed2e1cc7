from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path

from jetstream.simulator import relays, verdicts
from jetstream.simulator.faults import Faults
from jetstream.simulator.simulated_network import SimulatedNetwork

PAGE = (Path(__file__).parents[3] / "docs" / "simulator.md").read_text()
FAULTS = PAGE.split("## Faults")[1].split("A line of the ledger")[0]
RELAYS = PAGE.split("## Several relays")[1].split("## PDSes")[0]


def test_every_fault_is_in_the_table_and_no_other() -> None:
    rows = re.findall(r"^\| (`[^|]+`) \|", FAULTS, re.MULTILINE)
    named = {name for row in rows for name in re.findall(r"`([^`]+)`", row)}
    assert named == {field.name.replace("_", "-") for field in fields(Faults)}


def test_what_tests_can_call_is_described() -> None:
    called = set(re.findall(r"network\.([a-z_]+)", PAGE))
    public = {name for name in vars(SimulatedNetwork) if not name.startswith("_")}
    assert called - {"world"} <= public | {"truth", "ledger", "verdicts"}
    assert {"emit", "publish", "resume", "pause", "run", "serving", "missing", "take_down"} <= called


def test_every_key_of_a_relay_is_in_its_table() -> None:
    rows = re.findall(r"^\| `([a-z]+)` \|", RELAYS, re.MULTILINE)
    assert rows == list(relays._FIELDS)


def test_the_verdict_of_each_fault_is_in_the_table() -> None:
    rows = re.findall(
        r"^\| (`[^|]+`) \|.*\| ([^|]+) \|$",
        FAULTS,
        re.MULTILINE,
    )
    said = {name: verdict for names, verdict in rows for name in re.findall(r"`([^`]+)`", names)}
    for name, (verdict, reason) in {**verdicts._REJECTED, **verdicts._ACCEPTED}.items():
        assert said[name.replace("_", "-")] == (f"{verdict} ({reason})" if reason else verdict)
