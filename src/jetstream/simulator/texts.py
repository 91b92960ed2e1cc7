"""Random texts in seven languages, with the ends that break careless parsers."""

from __future__ import annotations

from itertools import accumulate
from random import Random
from typing import Final, NamedTuple


class _Language(NamedTuple):
    code: str
    words: list[str]
    gap: str


def _words(syllables: str, count: int, longest: int) -> list[str]:
    rng = Random(syllables)  # noqa: S311 - a vocabulary, the same in every world
    parts = syllables.split()
    return ["".join(rng.choices(parts, k=rng.randrange(1, longest + 1))) for _ in range(count)]


_LATIN: Final = "ba ne ti ro lu ka me si do vu an er it on um st qu ch ing ly th e a o pre con"
_LANGUAGES: Final = (
    _Language("en", _words(_LATIN, 4000, 4), " "),
    _Language("pt", _words(_LATIN + " ção ã é í õe lh nh ô", 3000, 4), " "),
    _Language("de", _words(_LATIN + " ü ö ä ß sch ung", 3000, 5), " "),
    _Language(
        "ja",
        _words(
            " ".join("あいうえおかきくけこさしすせそたちつてとなにのはまやらりるれをん日本人今大会年"),
            3000,
            3,
        ),
        "",
    ),
    _Language("ko", _words(" ".join("가나다라마바사아자차이그고는을에서한국어요니까지만도"), 3000, 3), " "),
    _Language("ar", _words(" ".join("ابتثجحخدرزسشصضطظعغفقكلمنهوي"), 2000, 6), " "),
    _Language("he", _words(" ".join("אבגדהוזחטיכלמנסעפצקרשת"), 2000, 6), " "),
)
_LANGUAGE_SHARES: Final = list(accumulate((45, 12, 7, 24, 6, 4, 2)))
_SPECIAL_ENDS: Final = (
    *("😂", "🥹", "👨‍👩‍👧‍👧", "🏳️‍🌈", "💦", "❤️", "!!", "…", "\n\n", "\n", '"', "'", "\\"),
    *(" <b>&amp;</b> ", " a < b && c > d ", "\u2028", "\t", "\u200f", "\u0001", "\x7f", "e\u0301", "\ufeff"),
)


def text(rng: Random) -> tuple[str, str]:
    """Return a language and a text of 1 to 60 words, mostly few; half of them end in special characters."""
    (language,) = rng.choices(_LANGUAGES, cum_weights=_LANGUAGE_SHARES)
    count = 1 + int(60 * rng.random() ** 2.2)
    words = language.gap.join(rng.choices(language.words, k=count))
    if rng.random() < 0.5:
        words += rng.choice(_SPECIAL_ENDS)
    return language.code, words
