from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from jetstream.identity.generations import Generations


def test_what_is_used_stays_and_the_rest_is_forgotten() -> None:
    held: Generations[int, str] = Generations(10)
    held.put(-1, "used")
    for number in range(100):
        held.put(number, str(number))
        assert held.get(-1) == "used"
        assert len(held) <= 10
    assert held.get(0) is None
    assert [number for number in range(100) if number in held] == list(range(96, 100))[-len(held) + 1 :]


def test_removal() -> None:
    held: Generations[int, str] = Generations(4)
    for number in range(3):
        held.put(number, "x")
    for number in range(3):
        held.pop(number)
        held.pop(number)
    assert len(held) == 0
    held.put(1, "x")
    held.clear()
    assert held.get(1) is None


@given(st.lists(st.tuples(st.sampled_from(["get", "put", "pop"]), st.integers(0, 12))), st.integers(1, 12))
def test_it_is_a_dictionary_that_forgets(steps: list[tuple[str, int]], size: int) -> None:
    held: Generations[int, int] = Generations(size)
    model: dict[int, int] = {}
    used: list[int] = []  # the last one last
    for count, (step, key) in enumerate(steps):
        if step == "pop":
            held.pop(key)
            model.pop(key, None)
        elif step == "put":
            held.put(key, count)
            model[key] = count
        else:
            assert held.get(key) in {None, model.get(key)}
        if key in model and step != "pop":
            used = [each for each in used if each != key] + [key]
        assert len(held) <= max(size, 2)
        recent = [each for each in used if each in model][-max(1, size // 2) + 1 :] if size > 3 else []
        assert all(each in held for each in recent)
