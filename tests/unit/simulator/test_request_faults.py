from __future__ import annotations

import pytest

from jetstream.simulator.faults import Faults
from jetstream.simulator.request_faults import RequestFaults


def test_no_fault_occurs_by_default() -> None:
    faults = RequestFaults(Faults(), 1, lambda *_, **__: None)
    assert not any(faults.occurs("directory_500", did="did:plc:a") for _ in range(100))


def test_an_injected_fault_occurs_as_often_as_asked_for_and_is_logged() -> None:
    logged: list[tuple[str, dict[str, object]]] = []
    faults = RequestFaults(Faults(), 1, lambda fault, **details: logged.append((fault, details)))
    faults.inject("directory_429", 2)
    assert [faults.occurs("directory_429", did="did:plc:a") for _ in range(4)] == [True, True, False, False]
    assert logged == [("directory_429", {"did": "did:plc:a"})] * 2
    assert not faults.occurs("repo_fails", did="did:plc:a")


def test_chance_is_the_same_for_the_same_seed() -> None:
    def outcomes(seed: int) -> list[bool]:
        faults = RequestFaults(Faults(repo_fails=0.5), seed, lambda *_, **__: None)
        return [faults.occurs("repo_fails") for _ in range(100)]

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert 30 < sum(outcomes(1)) < 70


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match="drop is not one of directory_404"):
        RequestFaults(Faults(), 1, lambda *_, **__: None).inject("drop")
