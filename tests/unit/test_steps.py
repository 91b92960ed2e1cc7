"""Work in steps, done at once."""

from __future__ import annotations

from jetstream.steps import Budget, Steps, finish


def test_finishing_gives_the_result() -> None:
    def steps() -> Steps[int]:
        yield
        yield
        return 7

    assert finish(steps()) == 7


def test_a_step_ends_when_its_budget_is_spent_and_the_next_has_a_whole_one() -> None:
    budget = Budget(10)
    assert [budget.spend(cost) for cost in (4, 4, 4, 9, 1, 100, 9)] == [
        False,
        False,
        True,
        False,
        True,
        True,
        False,
    ]
