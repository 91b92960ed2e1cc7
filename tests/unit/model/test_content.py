from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.fixtures import json_lines

from jetstream.errors import InvalidParameter
from jetstream.model.content import PHRASE_CHARS_MAX, TEXT_CHARS_MAX, Content, features_of, whole_words, words
from jetstream.model.lists import NAMES_MAX

ANN, BOB = "did:plc:ann", "did:web:bob.example"
POST = f"at://{ANN}/app.bsky.feed.post/3k"


def matches(record: dict[str, Any], **asked: Any) -> bool:
    content = Content.parse(**asked)
    assert content is not None
    return content.matches(features_of(json.dumps(record, ensure_ascii=False).encode()))


def mention(*dids: object) -> dict[str, Any]:
    features = [{"$type": "app.bsky.richtext.facet#mention", "did": did} for did in dids]
    return {"facets": [{"features": features, "index": {}}]}


def reply(parent: object, root: object = POST) -> dict[str, Any]:
    return {"reply": {"parent": {"cid": "b", "uri": parent}, "root": {"uri": root}}}


def embed(kind: object, **more: object) -> dict[str, Any]:
    return {"embed": {"$type": kind, **more}}


# Judging


@pytest.mark.parametrize(
    ("langs", "asked", "expected"),
    [
        (["en"], "en", True),
        (["EN"], "en", True),
        (["en"], "EN", True),
        (["en-US"], "en", True),
        (["en-Latn-US"], "en-latn", True),
        (["en"], "en-US", False),
        (["pt-BR"], "pt-br", True),
        (["pt-PT"], "pt-br", False),
        (["eng"], "en", False),
        (["de", "en"], "en", True),
        ([], "en", False),
    ],
)
def test_a_language_includes_its_variants(langs: list[str], asked: str, expected: bool) -> None:
    assert matches({"langs": langs}, lang=[asked]) is expected


def test_a_mention_is_of_an_account() -> None:
    assert matches(mention(BOB, ANN), mentions=[ANN])
    assert not matches(mention(BOB), mentions=[ANN])
    assert not matches({"text": f"@{ANN}"}, mentions=[ANN])
    link = {"facets": [{"features": [{"$type": "app.bsky.richtext.facet#link", "did": ANN}]}]}
    assert not matches(link, mentions=[ANN])


def test_a_reply_is_to_its_parent() -> None:
    assert matches(reply(POST), reply_to=[ANN])
    assert not matches(reply(f"at://{BOB}/app.bsky.feed.post/3k", root=POST), reply_to=[ANN])
    assert not matches({"text": ""}, reply_to=[ANN])


@pytest.mark.parametrize(
    ("subject", "asked", "expected"),
    [
        (ANN, ANN, True),
        (BOB, ANN, False),
        ({"uri": POST, "cid": "b"}, POST, True),
        ({"uri": POST, "cid": "b"}, ANN, True),
        ({"uri": POST, "cid": "b"}, f"{POST}x", False),
        ({"uri": POST, "cid": "b"}, BOB, False),
        (POST, POST, True),
        (POST, ANN, True),
        (ANN, POST, False),
    ],
)
def test_a_subject_is_an_account_or_a_record_and_its_account(
    subject: object, asked: str, expected: bool
) -> None:
    assert matches({"subject": subject}, subject=[asked]) is expected


@pytest.mark.parametrize(
    ("record", "expected"),
    [
        (embed("app.bsky.embed.images", images=[]), True),
        (embed("app.bsky.embed.video"), True),
        (embed("app.bsky.embed.recordWithMedia", media={"$type": "app.bsky.embed.images"}), True),
        (embed("app.bsky.embed.recordWithMedia", media={"$type": "app.bsky.embed.external"}), False),
        (embed("app.bsky.embed.external"), False),
        (embed("app.bsky.embed.record"), False),
        ({"text": "a"}, False),
    ],
)
def test_media_is_images_or_a_video(record: dict[str, Any], expected: bool) -> None:
    assert matches(record, has_media=True) is expected


@pytest.mark.parametrize(
    ("text", "phrase", "expected"),
    [
        ("Hello world", "hello", True),
        ("Hello world", "hell", False),
        ("hello  world\nagain", "world again", True),
        ("hello, world", "hello world", False),
        ("hello, world", "hello, world", True),
        ("(hello)", "hello", True),
        ("snake_case", "snake", False),
        ("café", "cafe", False),
        ("cafe\u0301", "café", True),
        ("CAFÉ", "café", True),
        ("STRASSE", "straße", True),
        ("ΣΊΣΥΦΟΣ", "σίσυφος", True),
        ("\uff21\uff22\uff23", "abc", True),
        ("don\u2019t stop", "don't", True),
        ("黒猫が好き", "猫", True),
        ("Pythonが好き", "python", True),
        ("Pythonが好き", "pythonが", True),
        ("Python が好き", "pythonが", True),
        ("猫 abc 犬", "猫 ABC", True),
        ("xabc 犬", "abc犬", False),
        ("고양이가 좋아", "고양이", True),
        ("ฉันชอบแมว", "แมว", True),
        ("हिन्दी भाषा", "हिन्दी", True),
        ("हिन्दी भाषा", "हि", False),
        ("good 😀 morning", "😀", True),
        ("I like C++ a lot", "c++", True),
        ("see #Python.", "#python", True),
        ("see #Python.", "python", True),
        ("", "a", False),
    ],
)
def test_text_is_compared_word_by_word(text: str, phrase: str, expected: bool) -> None:
    assert matches({"text": text}, text=[phrase]) is expected


def test_each_parameter_must_be_met_by_any_of_its_values() -> None:
    record = {"langs": ["de"], "text": "Guten Morgen", **mention(ANN)}

    assert matches(record, lang=["en", "de"], text=["morgen", "abend"], mentions=[ANN, BOB])
    assert not matches(record, lang=["en"], text=["morgen"])
    assert not matches(record, lang=["de"], text=["abend"])
    assert not matches(record, lang=["de"], has_media=True)


def test_order_and_repetition_do_not_matter() -> None:
    one = Content.parse(lang=["en", "DE"], text=["Good  morning", "hi"])
    assert one == Content.parse(lang=["de", "en", "en"], text=["hi", "good morning"])
    assert one != Content.parse(lang=["de", "en"], text=["hi"])
    assert Content.parse() is None
    assert Content.parse(has_media=False, lang=[]) is None


# Parsing


@pytest.mark.parametrize(
    ("argument", "value", "parameter"),
    [
        ("lang", "", "lang"),
        ("lang", "e_n", "lang"),
        ("lang", "english language", "lang"),
        ("mentions", "alice.example", "mentions"),
        ("mentions", "", "mentions"),
        ("mentions", POST, "mentions"),
        ("reply_to", "@ann", "replyTo"),
        ("reply_to", POST, "replyTo"),
        ("subject", "", "subject"),
        ("subject", "at://", "subject"),
        ("subject", f"at://{ANN}", "subject"),
        ("subject", f"at://{ANN}/app.bsky.feed.post", "subject"),
        ("subject", f"at://{ANN}/post/3k", "subject"),
        ("subject", f"{POST}/x", "subject"),
        ("subject", "at://alice.example/app.bsky.feed.post/3k", "subject"),
        ("subject", f"{ANN}/app.bsky.feed.post/3k", "subject"),
        ("text", "", "text"),
        ("text", " \n", "text"),
        ("text", "x" * (PHRASE_CHARS_MAX + 1), "text"),
    ],
)
def test_what_is_bad_is_named(argument: str, value: str, parameter: str) -> None:
    with pytest.raises(InvalidParameter) as caught:
        Content.parse(**{argument: [value]})
    assert (caught.value.name, caught.value.value) == (parameter, value)


@pytest.mark.parametrize(
    ("argument", "value"),
    [("lang", "en"), ("mentions", ANN), ("reply_to", ANN), ("subject", ANN), ("text", "a")],
)
def test_a_hundred_values_are_the_most(argument: str, value: str) -> None:
    assert Content.parse(**{argument: [value] * NAMES_MAX}) == Content.parse(**{argument: [value]})
    with pytest.raises(InvalidParameter, match="'101' are too many: at most 100"):
        Content.parse(**{argument: [value] * (NAMES_MAX + 1)})


# Records of any shape

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.text(max_size=5)
    | st.sampled_from([ANN, POST]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$type", "uri", "parent", "features", "did", "media", "x"]), inner, max_size=4
        )
    ),
    max_leaves=8,
)
RECORDS = st.dictionaries(
    st.sampled_from(["langs", "facets", "reply", "subject", "embed", "text", "x"]), JSON, max_size=6
)


@given(RECORDS)
def test_a_record_of_any_shape_is_read(record: dict[str, Any]) -> None:
    features = features_of(json.dumps(record, ensure_ascii=False).encode())
    assert all(type(term) is str for term in features.terms)
    assert features.words.startswith(" ")
    matches(record, lang=["en"], mentions=[ANN], reply_to=[ANN], subject=[POST], text=["a"], has_media=True)


@given(st.text(max_size=30), st.text(max_size=30), st.text(max_size=10))
def test_words_of_a_part_are_among_the_words_of_the_whole(before: str, after: str, part: str) -> None:
    assert words(part).strip() == "" or words(part) in words(f"{before} {part} {after}")


LETTERS = st.text(st.sampled_from("aÉß猫が가:, "), max_size=8)


@given(LETTERS, LETTERS)
def test_a_text_that_matches_has_the_whole_words_of_the_phrase(text: str, asked: str) -> None:
    if words(asked).strip():
        content = Content.parse(text=[asked])
        assert content is not None
        features = features_of(json.dumps({"text": text}).encode())
        (phrase,) = content.phrases
        if content.matches(features):
            assert content.by_phrases
            assert set(whole_words(phrase)) <= {*features.words.split()}


def test_a_hostile_record_costs_no_more_than_a_post() -> None:
    features = features_of(
        json.dumps(
            {
                **mention(*[ANN] * 5_000),
                "langs": ["a-b"] * 5_000,
                "text": "a " * 400_000,
                "subject": "x" * 5_000,
            }
        ).encode()
    )
    assert len(features.terms) <= 301
    assert len(features.words) <= 2 * TEXT_CHARS_MAX
    assert len(words("\ufdfa" * TEXT_CHARS_MAX)) <= 2 * TEXT_CHARS_MAX


def test_captured_posts() -> None:
    records = [
        event["commit"]["record"]
        for event in json_lines("firehose/events.v1.jsonl")
        if "record" in event.get("commit", {})
    ]
    posts = [record for record in records if record["$type"] == "app.bsky.feed.post"]
    english = [post for post in posts if "en" in post.get("langs", [])]
    assert 0 < len(english) < len(posts) < len(records)
    assert [post for post in records if matches(post, lang=["en"])] == english
    likes = [record for record in records if record["$type"] == "app.bsky.feed.like"]
    assert all(matches(like, subject=[like["subject"]["uri"]]) for like in likes)
    replies = [post for post in posts if "reply" in post]
    for post in replies:
        assert matches(post, reply_to=[post["reply"]["parent"]["uri"].split("/")[2]])
