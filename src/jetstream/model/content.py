"""`Content`: which records a reader wants, by what is in them. Pure.

A record is parsed once, into `Features`: what any content filter may ask of it.

    record ──▶ terms   mention:<did>   reply:<did>   subject:<did or at-uri>   has:text   has:media   lang:en
           └─▶ words   its text, case-folded: " one word after another "

A `Content` is a conjunction. It has *clauses*, each a set of terms of which a record must have one, and
*phrases*, of which its words must have one. Deletes carry no record, so they never match.

Fields are read by the names that Bluesky's lexicons give them, in records of every collection.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final
from unicodedata import normalize

import orjson

from jetstream.errors import InvalidParameter
from jetstream.model.lists import NAMES_MAX, refuse_many
from jetstream.model.syntax import is_did, is_nsid, is_record_key
from jetstream.steps import Steps, finish

# What `docs/api.md` allows: characters of a phrase.
PHRASE_CHARS_MAX: Final = 256
# What is read of one record: characters of its text, of a language tag, and of a DID or at-uri, and items of
# each list. Posts have at most 3,000 bytes of text, and a hostile record must not cost more than 2 ms.
TEXT_CHARS_MAX: Final = 3_000
_TAG_CHARS_MAX: Final = 64
_URI_CHARS_MAX: Final = 3_000
_ITEMS_MAX: Final = 100

_TAG: Final = re.compile(r"[a-zA-Z]{1,8}(?:-[a-zA-Z0-9]{1,8}){0,7}").fullmatch
_MENTION: Final = "app.bsky.richtext.facet#mention"
_EMBEDS: Final = frozenset({"app.bsky.embed.images", "app.bsky.embed.video"})
# Terms without a value. A colon is a word of its own, so no term is a word.
_TEXT: Final = "has:text"
_MEDIA: Final = "has:media"
# Scripts that are written without spaces, or with endings on a word: words in them have no boundary.
_UNSPACED: Final = (
    "\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3\uf900-\ufaff"
    "\U00020000-\U0003ffff"
)
_is_unspaced: Final = re.compile(rf"[{_UNSPACED}]").match
# Marks that belong to the letter before them: accents, vowels of Hebrew, Arabic and the scripts of India.
_MARKS: Final = "\u0300-\u036f\u0591-\u05bd\u064b-\u065f\u0670\u0900-\u0963\u0966-\u0dff"
# What phones write for "'".
_APOSTROPHE: Final = "\u2019"
_WORDS: Final = re.compile(rf"[^\W{_UNSPACED}]+(?:[{_MARKS}]+[^\W{_UNSPACED}]*)*|[{_UNSPACED}]+|\S").findall
_ASCII_WORDS: Final = re.compile(r"\w+|\S").findall  # the same in ASCII text, and faster


class Features:
    """What content filters may ask of one record."""

    __slots__ = ("_text", "_words", "terms")

    def __init__(self, terms: tuple[str, ...] = (), text: str = "") -> None:
        # Each in the form that the module's docstring shows; some may be there twice.
        self.terms = terms
        # As the record has it, cut to `TEXT_CHARS_MAX`; dropped once the words were asked for.
        self._text = text
        # The words, once they were asked for.
        self._words: str | None = None

    @property
    def words(self) -> str:
        """The words of the text, with a space before and after each; see `words`."""
        if self._words is None:
            self._words, self._text = words(self._text), ""
        return self._words


@dataclass(frozen=True, slots=True)
class Content:
    """What a record must have. Two that ask for the same compare equal, in whatever order they do.

    `parse` and `parse_steps` make it, of what a request gives (`web.filter_parameters`).
    """

    # The first is the one that the fewest records meet, as a rule. Never empty.
    clauses: tuple[frozenset[str], ...]
    # Each as it is in the words of a text, with a space where a word ends; empty: any text, or none.
    phrases: frozenset[str] = frozenset()

    @classmethod
    def parse(cls, **lists: Any) -> Content | None:
        """Do all of `parse_steps` at once."""
        return finish(cls.parse_steps(**lists))

    @classmethod
    def parse_steps(
        cls,
        *,
        lang: Sequence[str] = (),
        mentions: Sequence[str] = (),
        reply_to: Sequence[str] = (),
        subject: Sequence[str] = (),
        text: Sequence[str] = (),
        has_media: bool = False,
    ) -> Steps[Content | None]:
        """Parse the parameters of these names, in steps; None if all are absent.

        A record must meet each that is given, by any of its values. Raises InvalidParameter for more than 100
        values in a list, for what is not a language tag, a DID, or the at-uri of a record with a DID, and for
        a phrase without a word or of more than 256 characters.
        """
        phrases = yield from _phrases(text)
        clauses = (
            _terms("mentions", mentions, _mention, _NO_DID),
            _terms("replyTo", reply_to, _reply_to, _NO_DID),
            _terms("subject", subject, _about, "is neither a DID nor at://<did>/<collection>/<rkey>"),
            frozenset({_TEXT} if phrases else ()),
            frozenset({_MEDIA} if has_media else ()),
            _terms("lang", lang, _spoken, "is not a language, such as en or pt-BR"),
        )
        given = tuple(filter(None, clauses))
        return cls(given, phrases) if given else None

    @property
    def terms(self) -> frozenset[str]:
        """Terms of which every record that matches has one: an index finds it by them, or by its phrases."""
        return self.clauses[0]

    @property
    def by_phrases(self) -> bool:
        """Whether an index should find it by its phrases: text is the first thing that is asked for."""
        return _TEXT in self.terms

    def meets(self, terms: Collection[str]) -> bool:
        """Tell whether a record matches that has these terms, but for the phrases."""
        for clause in self.clauses:  # noqa: SIM110 - `all` takes twice as long
            if clause.isdisjoint(terms):
                return False
        return True

    def matches(self, features: Features) -> bool:
        """Tell whether a record matches: meets every clause, and has one of the phrases if there are any."""
        if not self.meets(features.terms):
            return False
        return not self.phrases or any(map(features.words.__contains__, self.phrases))

    def search_cost(self, features: Features) -> int:
        """Return what it costs at worst to search a record for the phrases: up to 50 ns a unit.

        At worst, a search takes the product of the lengths of text and phrase.
        """
        if not self.meets(features.terms):
            return 0
        return len(self.phrases) + sum(map(len, self.phrases)) * len(features.words) // 1_000


# Parsing records


def features_of(body: bytes) -> Features:
    """Parse a record for all content filters. `body` is its JSON, as events have it: an object.

    Members of another type than their lexicon says, and what is longer than allowed, are passed over. So it
    raises nothing for any record that the server has accepted.
    """
    record = orjson.loads(body)
    terms: list[str] = []
    for name, read in _READ.items():
        value = record.get(name)
        if value is not None:
            terms += read(value)
    text = record.get("text")
    if type(text) is not str or not text:
        return Features(tuple(terms))
    return Features((*terms, _TEXT), text[:TEXT_CHARS_MAX])


def words(text: str) -> str:
    """Return the words of a text, case-folded, with a space before and after each.

    What is neither a letter, a digit nor a space is a word of its own, and so is each run of characters of
    scripts that are written without spaces. Forms that look alike are equal (Unicode's NFKC).
    """
    if text.isascii():
        return f" {' '.join(_ASCII_WORDS(text.lower()))} "
    # A character may become eighteen.
    folded = normalize("NFKC", normalize("NFKC", text)[:TEXT_CHARS_MAX].casefold())
    return f" {' '.join(_WORDS(folded.replace(_APOSTROPHE, chr(39))))} "


def whole_words(phrase: str) -> list[str]:
    """Return the words that every text has that has a phrase of a `Content`."""
    # The first and the last are empty, or may be a part of a longer word.
    return phrase.split(" ")[1:-1]


def _items(value: object) -> list[Any]:
    """Return the first items of a list; none of what is not a list."""
    return value[:_ITEMS_MAX] if type(value) is list else []


def _member(value: object, name: str) -> Any:
    """Return a member of an object; None if there is none, or it is not an object."""
    return value.get(name) if type(value) is dict else None


def _languages(langs: object) -> list[str]:
    """Return the terms of each language: en-US is en, too.

    So a filter for `en` matches a record in `en-US`, and one for `en-US` does not match a record in `en`.
    """
    tags = [tag.lower() for tag in _items(langs) if type(tag) is str and len(tag) <= _TAG_CHARS_MAX]
    wider = [tag[:end] for tag in tags if "-" in tag for end, char in enumerate(tag) if char == "-"]
    return [f"lang:{tag}" for tag in tags + wider]


def _mentioned(facets: object) -> list[str]:
    """Return the term of each account that the text mentions, by the facets of its record."""
    features = [each for facet in _items(facets) for each in _items(_member(facet, "features"))]
    dids = [_member(each, "did") for each in features[:_ITEMS_MAX] if _member(each, "$type") == _MENTION]
    return [f"mention:{did}" for did in dids if type(did) is str and len(did) <= _URI_CHARS_MAX]


def _parent(reply: object) -> list[str]:
    """Return the term of the account that a record replies to."""
    uri = _member(_member(reply, "parent"), "uri")
    return [f"reply:{_repo(uri)}"] if type(uri) is str and len(uri) <= _URI_CHARS_MAX else []


def _subjects(subject: object) -> list[str]:
    """Return the terms of a subject: an account, or a record and its account.

    A follow has the DID itself as its subject; a like or repost has an object with the URI of a record.
    """
    uri = _member(subject, "uri") if type(subject) is dict else subject
    if type(uri) is not str or len(uri) > _URI_CHARS_MAX:
        return []
    return [f"subject:{uri}", f"subject:{_repo(uri)}"] if uri.startswith("at://") else [f"subject:{uri}"]


def _repo(uri: str) -> str:
    """Return the account of an at-uri, which may be empty or no DID: then the term matches no filter."""
    return uri.removeprefix("at://").partition("/")[0]


def _media(embed: object) -> list[str]:
    """Return the term of an embed that has images or a video, alone or beside a quoted record."""
    return [_MEDIA] if _is_media(embed) or _is_media(_member(embed, "media")) else []


def _is_media(embed: object) -> bool:
    """Tell whether an embed itself has images or a video."""
    kind = _member(embed, "$type")
    return type(kind) is str and kind in _EMBEDS


# What is read of a record, by the name of the member.
_READ: Final[Mapping[str, Callable[[object], list[str]]]] = {
    "facets": _mentioned,
    "reply": _parent,
    "subject": _subjects,
    "embed": _media,
    "langs": _languages,
}

# Parsing parameters

_NO_DID: Final = "is not a DID, such as did:plc:…"


def _terms(
    parameter: str, values: Sequence[str], term: Callable[[str], str | None], problem: str
) -> frozenset[str]:
    """Return the terms of a list, each by `term`, which returns None for a bad value.

    Raises InvalidParameter, with `problem` for the first bad value, or for more than 100 values.
    """
    refuse_many(parameter, values, NAMES_MAX)
    found = set()
    for value in values:
        made = term(value)
        if made is None:
            raise InvalidParameter(parameter, value, problem)
        found.add(made)
    return frozenset(found)


def _mention(value: str) -> str | None:
    """Return the term of an account that is mentioned; None for what is no DID."""
    return f"mention:{value}" if is_did(value) else None


def _reply_to(value: str) -> str | None:
    """Return the term of an account that is replied to; None for what is no DID."""
    return f"reply:{value}" if is_did(value) else None


def _about(value: str) -> str | None:
    """Return the term of an account or a record. Records name accounts by DID, never by handle."""
    did, *path = value.removeprefix("at://").split("/")
    is_record = value.startswith("at://") and len(path) == 2 and is_nsid(path[0]) and is_record_key(path[1])
    return f"subject:{value}" if is_did(did) and (is_record or did == value) else None


def _spoken(value: str) -> str | None:
    """Return the term of a language tag, whose case does not matter; None for what is none."""
    return f"lang:{value.lower()}" if _TAG(value) else None


def _phrases(values: Sequence[str]) -> Steps[frozenset[str]]:
    """Return phrases as words, in steps of one phrase. Raises InvalidParameter.

    A phrase has a space at an end where a word must end: ` cat ` is not found in `cats`. In a script without
    spaces it may begin and end in the middle of a run.
    """
    refuse_many("text", values, NAMES_MAX)
    found = set()
    for value in values:
        if len(value) > PHRASE_CHARS_MAX:
            raise InvalidParameter("text", value, f"is too long: at most {PHRASE_CHARS_MAX} characters")
        phrase = words(value).strip()
        if not phrase:
            raise InvalidParameter("text", value, "has no word to look for")
        before, after = ("" if _is_unspaced(phrase[end]) else " " for end in (0, -1))
        found.add(f"{before}{phrase}{after}")
        yield
    return frozenset(found)
