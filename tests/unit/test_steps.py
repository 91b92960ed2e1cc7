"""Work in steps, done at once."""

from __future__ import annotations

from jetstream.steps import Steps, finish


def test_finishing_gives_the_result() -> None:
    def steps() -> Steps[int]:
        yield
        yield
        return 7

    assert finish(steps()) == 7
