from __future__ import annotations

import pytest

from jetstream.simulator.faults import Faults
from jetstream.simulator.mishaps import Mishaps


def test_nothing_goes_wrong_unasked() -> None:
    mishaps = Mishaps(Faults(), 1, lambda *_, **__: None)
    assert not any(mishaps.happens("directory_500", did="did:plc:a") for _ in range(100))


def test_what_was_asked_for_happens_so_often_and_is_written_down() -> None:
    noted: list[tuple[str, dict[str, object]]] = []
    mishaps = Mishaps(Faults(), 1, lambda fault, **what: noted.append((fault, what)))
    mishaps.inject("directory_429", 2)
    assert [mishaps.happens("directory_429", did="did:plc:a") for _ in range(4)] == [True, True, False, False]
    assert noted == [("directory_429", {"did": "did:plc:a"})] * 2
    assert not mishaps.happens("repo_fails", did="did:plc:a")


def test_chance_is_the_same_for_the_same_seed() -> None:
    def outcomes(seed: int) -> list[bool]:
        mishaps = Mishaps(Faults(repo_fails=0.5), seed, lambda *_, **__: None)
        return [mishaps.happens("repo_fails") for _ in range(100)]

    assert outcomes(1) == outcomes(1) != outcomes(2)
    assert 30 < sum(outcomes(1)) < 70


def test_unknown_mishaps_are_refused() -> None:
    with pytest.raises(ValueError, match="drop is not one of directory_404"):
        Mishaps(Faults(), 1, lambda *_, **__: None).inject("drop")
