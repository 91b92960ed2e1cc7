"""`PhraseIndex`: groups under the phrases that they want. `Search`: which phrases a record has. Pure.

A phrase stands under one of its words, and is searched for only in texts that have this word: the word that
the fewest phrases stand under, and the longest of these. So a hundred phrases `the … of` stand under a
hundred words. A phrase is searched for once in a record, however many groups want it.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from typing import Final

from jetstream.delivery.subscriber import Group
from jetstream.model.content import Features, whole_words
from jetstream.steps import Budget, Steps

# At worst, a search costs the product of the lengths of text and phrase: so much of it takes as long as to
# judge a group. And the rest of a search:
_SEARCHED_PER_GROUP: Final = 1_000
_SEARCH: Final = 2
# Characters of text that are split into words as fast as a group is judged.
_SPLIT_PER_GROUP: Final = 8
# Different words of a phrase that it may stand under, the first: it may have 128, and a filter 100 phrases.
_WORDS_MAX: Final = 16
# Where phrases stand that have no whole word. No word is empty.
_NO_WORD: Final = ""


class Search:
    """Searches for phrases in the words of one record, for each once. `budget` counts what that costs.

    It is made for one record, and used in one pass over the groups.
    """

    __slots__ = ("_budget", "_features", "_found")

    def __init__(self, features: Features, budget: Budget) -> None:
        self._features = features
        self._budget = budget
        # What was searched for, and whether the words have it.
        self._found: dict[str, bool] = {}

    def words(self) -> Steps[dict[str, None]]:
        """Return what the phrases of the record may stand under, each once: its words, and `_NO_WORD`."""
        words = self._features.words
        if self._budget.spend(len(words) // _SPLIT_PER_GROUP):
            yield
        return dict.fromkeys((_NO_WORD, *words.split()))

    def of(self, phrases: Iterable[str]) -> Steps[list[str]]:
        """Return those of `phrases` that the text has, in steps. `phrases` must not change meanwhile."""
        words, found = self._features.words, self._found
        for phrase in phrases:
            if phrase not in found:
                found[phrase] = phrase in words
                if self._budget.spend(_SEARCH + len(phrase) * len(words) // _SEARCHED_PER_GROUP):
                    yield
        return [phrase for phrase in phrases if found[phrase]]


class PhraseIndex:
    """Groups under the phrases that they want.

    A phrase keeps its word for as long as a group wants it, even if another word becomes rarer meanwhile.
    """

    __slots__ = ("_by_word", "_word_of")

    def __init__(self) -> None:
        # The word that each phrase stands under.
        self._word_of: dict[str, str] = {}
        # By word: the phrases, and the groups that want each. Nothing in it is empty.
        self._by_word: dict[str, dict[str, dict[Group, None]]] = {}

    def __len__(self) -> int:
        """Return the number of phrases."""
        return len(self._word_of)

    def add(self, phrases: Iterable[str], group: Group) -> None:
        """Put a group under phrases, which are as `Content.phrases` has them."""
        for phrase in phrases:
            word = self._word_of.get(phrase)
            if word is None:
                word = self._word_of[phrase] = self._rarest(phrase)
            self._by_word.setdefault(word, {}).setdefault(phrase, {})[group] = None

    def remove(self, phrases: Iterable[str], group: Group) -> None:
        """Take a group out from under phrases that it stands under."""
        for phrase in phrases:
            word = self._word_of[phrase]
            standing = self._by_word[word]
            del standing[phrase][group]
            if not standing[phrase]:
                del standing[phrase], self._word_of[phrase]
            if not standing:
                del self._by_word[word]

    def _rarest(self, phrase: str) -> str:
        """Return the word that a new phrase stands under; `_NO_WORD` for a phrase without a whole word."""
        by_word = self._by_word
        return min(
            islice(dict.fromkeys(whole_words(phrase)), _WORDS_MAX),
            key=lambda word: (len(by_word.get(word, ())), -len(word)),
            default=_NO_WORD,
        )

    def find(self, search: Search, budget: Budget) -> Steps[dict[Group, None]]:
        """Return the groups that want any phrase that a record has, in steps.

        Each is there once, as a key without a value. Groups that come between two steps may be missing.
        """
        groups: dict[Group, None] = {}
        for word in (yield from search.words()):
            phrases = self._by_word.get(word)
            if phrases is not None:
                for phrase in (yield from search.of(tuple(phrases))):
                    wanting = phrases.get(phrase, {})  # none if they left between two steps
                    groups |= wanting
                    if budget.spend(len(wanting)):
                        yield
        return groups
