from __future__ import annotations

from tests.unit.delivery.encodings import CLASSIC

from jetstream.delivery.phrases import PhraseIndex, Search
from jetstream.delivery.subscriber import Group, SubscriberOptions
from jetstream.model.content import Content, Features
from jetstream.model.filter import EVERYTHING
from jetstream.steps import Budget, finish

PLENTY = 1_000_000


class Text(str):
    """Words of a record that count the phrases that are searched for."""

    __slots__ = ("searched",)

    def __contains__(self, phrase: object) -> bool:
        self.searched = getattr(self, "searched", 0) + 1
        return super().__contains__(phrase)  # type: ignore[operator]


class Counted(Features):
    """Features whose words count the searches."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self._words = self.text = Text(f" {text} ")


def group(n: int) -> Group:
    return Group(CLASSIC, SubscriberOptions(EVERYTHING, n))


def phrases(*asked: str) -> frozenset[str]:
    content = Content.parse(text=asked)
    assert content is not None
    return content.phrases


def found(index: PhraseIndex, features: Features) -> list[Group]:
    budget = Budget(PLENTY)
    return list(finish(index.find(Search(features, budget), budget)))


def test_phrases_with_a_common_word_stand_under_their_rare_ones() -> None:
    index = PhraseIndex()
    for n in range(100):
        index.add(phrases(f"the x{n} of"), group(n))
    record = Counted("the best of the rest")
    assert found(index, record) == []
    assert getattr(record.text, "searched", 0) <= 2


def test_a_word_that_a_phrase_repeats_is_one_of_its_words() -> None:
    index = PhraseIndex()
    for n in range(100):
        index.add(phrases(f"{'a ' * 100}x{n}"), group(n))
    record = Counted("a " * 200)
    assert found(index, record) == []
    assert getattr(record.text, "searched", 0) <= 2


def test_a_phrase_is_searched_for_once_however_many_groups_want_it() -> None:
    index, groups = PhraseIndex(), [group(n) for n in range(100)]
    for each in groups:
        index.add(phrases("good morning", "good night", "猫"), each)
    record = Counted("good morning , good good morning")
    assert found(index, record) == groups
    assert record.text.searched <= 3


def test_the_steps_of_a_search_grow_with_the_lengths() -> None:
    sought = frozenset(f" {'a ' * n}b " for n in range(100))
    for length in (100, 1_000):
        search = Search(Counted("a " * length), Budget(1_000))
        steps = search.of(sought)
        assert len(list(steps)) >= length // 100
        assert finish(search.of(sought)) == []


def test_groups_may_leave_between_two_steps() -> None:
    index, groups, sought = PhraseIndex(), [group(n) for n in range(3)], phrases("a b", "a c", "b c")
    for each in groups:
        index.add(sought, each)
    budget = Budget(1)
    steps = index.find(Search(Counted("a b c a c"), budget), budget)
    next(steps)
    for each in groups:
        index.remove(sought, each)
    assert not index
    assert not index._by_word
    finish(steps)
