"""Vocabularies: the ids are sentencepiece's own, texts come back, special tokens are never text."""

import gzip
import random
import string
from collections.abc import Callable

import pytest
import sentencepiece
from hypothesis import example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from leapformer.tasks.speech.tokens import SPECIAL, normalized, tokenizer_of, train_unigram

CHANCE = random.Random(0)
WORDS = ["".join(CHANCE.choices(string.ascii_lowercase + "äöüß", k=n % 9 + 1)) for n in range(200)]
TEXTS = [" ".join(CHANCE.choices(WORDS, k=12)) + " <s> (no, 1/2)" for _ in range(150)]
ODD = [
    "",
    " ",
    "▁",
    "▅",
    "\0",
    "\t",
    "\n",
    "\xa0",
    "\u3000",
    "\u200b",
    "\ufeff",
    "e\u0301",
    "ﬁ",
    "…",
]
ODD += [*SPECIAL, "\uff1cs\uff1e", "<s", "/s>", "<<s>>", "aaaa", "ä", "漢字", "🐈", "👩\u200d🚀"]
texts = st.lists(st.sampled_from([*ODD, *WORDS[:30], " "]) | st.text(), max_size=10).map("".join)


@pytest.fixture(scope="module")
def model() -> bytes:
    return train_unigram(TEXTS, 200)


@pytest.fixture(scope="module", params=["made", "kept"])
def tokenizer(request, model, tmp_path_factory: pytest.TempPathFactory) -> PreTrainedTokenizerFast:
    """As it was trained, or as the library's Auto class finds it in its folder."""
    made = tokenizer_of(model)
    if request.param == "made":
        return made
    folder = tmp_path_factory.mktemp("kept")
    made.save_pretrained(folder)
    assert {file.name for file in folder.iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    return AutoTokenizer.from_pretrained(folder)


def same_ids(model: bytes, tokenizer: PreTrainedTokenizerFast) -> Callable[[str], None]:
    """A check that a text has the ids of sentencepiece, and then the end."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)

    def check(text: str) -> None:
        expected = pieces.encode(normalized(text))
        assert tokenizer(text, add_special_tokens=False)["input_ids"] == expected
        assert tokenizer(text)["input_ids"] == [*expected, tokenizer.eos_token_id]

    return check


def test_ids_are_those_of_sentencepiece(model, tokenizer):
    check = same_ids(model, tokenizer)

    @settings(max_examples=300)
    @given(texts)
    @example("<pad><s></s><unk>")
    @example("aaaaaaaaaaaaaaa")
    @example("▁<s>▁ </s> ")
    def law(text):
        check(text)

    law()


def test_real_sentences_have_the_ids_of_sentencepiece(shared_data):
    def lines(language: str) -> list[str]:
        with gzip.open(shared_data / "multi30k" / f"train.{language}.gz", "rt") as stream:
            return [line.rstrip("\n") for line in stream]

    german, french = lines("de"), lines("fr")
    model = train_unigram(german[:10_000], 4000)
    tokenizer = tokenizer_of(model)
    assert len(tokenizer) == 4000
    check = same_ids(model, tokenizer)
    for text in german[:12_000:4] + french[:2000]:
        check(text)
    for text in german[:200]:
        assert tokenizer.decode(tokenizer(text)["input_ids"][:-1]) == normalized(text)


@given(st.lists(st.sampled_from([*WORDS, "(no,", "1/2)"]), min_size=1))
def test_known_texts_come_back(model, words):
    tokenizer, text = tokenizer_of(model), " ".join(words)
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


@given(texts)
def test_no_text_is_a_special_token(tokenizer, text):
    ids = tokenizer(text)["input_ids"][:-1]
    assert not {0, 1, 2} & set(ids)
    if tokenizer.unk_token_id in ids:
        assert set(normalized(text)) - set("".join(TEXTS))


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("ﬁ … \uff21e\u0301", "fi ... Aé"),
        ("\ta\xa0\n\0 b\u3000", "a b"),
        ("▁a▅▁b", "a b"),
        ("<s>\uff1cpad\uff1e</s><unk><x>", "< s>< pad>< /s>< unk><x>"),
        ("a\u200db", "a\u200db"),
    ],
)
def test_normal_forms(text, normal):
    assert normalized(text) == normal


@given(texts)
def test_normal_form_is_final(text):
    found = normalized(text)
    assert normalized(found) == found
    assert found == found.strip()
    assert "  " not in found


def test_special_tokens_have_their_places(tokenizer):
    special = (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token, tokenizer.unk_token)
    assert special == SPECIAL
    assert tokenizer.convert_tokens_to_ids(list(SPECIAL)) == [0, 1, 2, 3]
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    batch = tokenizer(["ä", "ä ä ä"], padding=True)
    assert batch["input_ids"][0][-1] == 0
    assert batch["attention_mask"][0][-1] == 0
    assert tokenizer("漢")["input_ids"][-2] == 3


def test_the_same_texts_give_the_same_vocabulary():
    assert train_unigram(TEXTS, 200) == train_unigram(iter(TEXTS), 200)
    assert train_unigram(TEXTS, 200) != train_unigram(TEXTS[1:], 200)


@pytest.mark.parametrize("size", [60, 200, 10_000])
def test_a_vocabulary_has_the_size_asked_for_or_what_the_texts_give(size):
    most = len(tokenizer_of(train_unigram(TEXTS, 10**6)))
    assert 200 < most < 10_000
    assert len(tokenizer_of(train_unigram(TEXTS, size))) == min(size, most)


def test_a_vocabulary_below_the_characters_is_refused():
    characters = len(set("".join(TEXTS)))
    for size in (0, 10, characters + 3):
        with pytest.raises(ValueError, match=rf"vocab_size is {size}: .*at least {characters + 4}"):
            train_unigram(TEXTS, size)
    assert len(tokenizer_of(train_unigram(TEXTS, characters + 4))) == characters + 4


@pytest.mark.parametrize("nothing", [[], [""], [" \n", "▁", "▅"]])
def test_a_vocabulary_needs_texts(nothing):
    with pytest.raises(ValueError, match="no text to make a vocabulary of"):
        train_unigram(nothing, 100)


@pytest.mark.parametrize("text", ["a", "ab " * 5000 + "ç", "ç\n▅ a"])
def test_no_text_is_too_short_or_too_long_or_skipped(text):
    tokenizer = tokenizer_of(train_unigram([text], 100))
    assert set(normalized(text)) - {" "} <= set(tokenizer.get_vocab())
