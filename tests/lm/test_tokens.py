"""Vocabularies: text comes back as it was, an end is never written, words are by frequency."""

from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from leapformer.tasks.lm.data import encode
from leapformer.tasks.lm.tokens import END, KINDS, UNKNOWN, pieces, train_tokenizer

TEXTS = [
    "the cat sat on the mat , and the dog sat on the log .\n \n = The end = \n",
    "Don't 12345 \r\n the  cat\u3000the\tdog 🐈 é\u0301 <unk> <eos>\nthe end",
    "a\n\n\nb   c  \n  d" * 9,
    "<unk> <unk> <unk> <eos> <eos> <eos> <eos>\n" * 5,
]
ODD = [
    END,
    UNKNOWN,
    "<",
    "eos>",
    " ",
    "  ",
    "\n",
    "\n\n",
    "\r\n",
    "\x1c",
    "\x85",
    "\u2028",
    "\u3000",
    "'t",
]
texts = st.lists(st.sampled_from([*ODD, "the", "cat", "🐈", "\ufeff"]) | st.text(), max_size=12)
texts = texts.map("".join)
SIZES = {"bytes": None, "bpe": 300, "words": None}


def trained(kind: str) -> PreTrainedTokenizerFast:
    return train_tokenizer(kind, iter(TEXTS), SIZES[kind])


def kept(kind: str, folder: Path) -> PreTrainedTokenizerFast:
    trained(kind).save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


@pytest.fixture(scope="module", params=["made", "kept"])
def tokenizers(request, tmp_path_factory: pytest.TempPathFactory) -> Callable:
    """The tokenizer of a kind, as it was trained or as it comes back from disk."""
    if request.param == "made":
        made = {kind: trained(kind) for kind in KINDS}
    else:
        made = {kind: kept(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}
    return made.__getitem__


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_any_text_comes_back_and_is_nowhere_an_end(tokenizers, kind):
    tokenizer = tokenizers(kind)

    @given(texts)
    def check(text):
        ids = encode(tokenizer, text)
        assert tokenizer.decode(ids) == text
        assert tokenizer.eos_token_id not in ids
        assert tokenizer(text)["input_ids"] == ids  # as anyone who loads it would call it

    check()


def test_a_byte_is_a_token(tokenizers):
    tokenizer = tokenizers("bytes")
    of: dict[int, int] = {}

    @given(texts)
    def check(text):
        ids, raw = encode(tokenizer, text), text.encode()
        assert len(ids) == len(raw)
        assert all(of.setdefault(byte, i) == i for byte, i in zip(raw, ids, strict=True))

    check()
    assert len(set(of.values())) == len(of)
    assert len(tokenizer) == 257


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_the_numbers_from_zero_and_the_end_is_one_of_them(tokenizers, kind):
    tokenizer = tokenizers(kind)
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(tokenizer)))
    assert tokenizer.eos_token == END
    assert tokenizer.get_vocab()[END] == tokenizer.eos_token_id == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_has_the_tokens_of_its_pieces(tokenizers, kind):
    tokenizer = tokenizers(kind)

    @given(texts, st.integers(0, 12))
    @example("a\n\nb", 0)
    @example("a  b", 0)
    def check(text, size):
        parts = list(pieces(text, size))
        assert "".join(parts) == text
        assert all(len(part) > size for part in parts[:-1])
        whole = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
        assert [i for part in parts for i in encode(tokenizer, part)] == whole

    check()


@pytest.mark.parametrize("end", [" ", "\n"])
def test_a_long_text_is_cut_soon_after_its_size(end):
    text = f"four{end}" * 1000
    assert [len(piece) for piece in pieces(text, 100)] == [104, *[105] * 46, 66]


@pytest.mark.parametrize("size", [257, 258, 280, 10_000])
def test_bpe_has_the_size_that_was_asked_for_or_what_the_texts_give(size):
    tokenizer = train_tokenizer("bpe", iter(TEXTS), size)
    most = len(train_tokenizer("bpe", iter(TEXTS), 10**6))
    assert 280 < most < 1000
    assert len(tokenizer) == min(size, most)


def test_bpe_without_texts_is_bytes():
    tokenizer = train_tokenizer("bpe", iter([]), 300)
    assert tokenizer.get_vocab() == trained("bytes").get_vocab()


def test_more_tokens_of_bpe_are_never_more_ids():
    text = "".join(TEXTS)
    counts = [
        len(encode(train_tokenizer("bpe", iter(TEXTS), size), text)) for size in (257, 270, 300)
    ]
    assert counts[0] == len(text.encode()) > counts[1] > counts[2]


words = st.sampled_from(["a", "b", "cat", "the", "é", "🐈", END, UNKNOWN, f"x{END}y"])
lines = st.lists(st.lists(words, max_size=6).map(" ".join), min_size=1, max_size=6)


@given(st.lists(lines.map("\n".join), max_size=6), st.none() | st.integers(3, 8))
def test_words_are_by_frequency_after_the_end_and_the_unknown(written, size):
    tokenizer = train_tokenizer("words", iter(written), size)
    counts = Counter(word for text in written for word in text.replace(END, UNKNOWN).split())
    del counts[UNKNOWN]
    vocab = sorted(tokenizer.get_vocab(), key=tokenizer.get_vocab().get)
    assert vocab[:2] == [END, UNKNOWN]
    frequencies = [counts[word] for word in vocab[2:]]
    assert frequencies == sorted(counts.values(), reverse=True)[: len(frequencies)]
    assert len(vocab) == min(2 + len(counts), size or 100)


def test_a_text_of_words_has_a_token_for_each_word_and_each_newline(tokenizers):
    tokenizer = tokenizers("words")
    vocab = tokenizer.get_vocab()

    @given(texts)
    def check(text):
        ids = encode(tokenizer, text)
        assert len(ids) == len(text.split()) + text.count("\n")
        assert ids.count(tokenizer.eos_token_id) == text.count("\n")
        expected = []
        for line in text.split("\n"):
            expected += [vocab.get(word.replace(END, UNKNOWN), 1) for word in line.split()] + [0]
        assert ids == expected[:-1]

    check()


@pytest.mark.parametrize("kind", KINDS)
def test_training_twice_gives_the_same_file(tmp_path, kind):
    for name in ("a", "b"):
        trained(kind).save_pretrained(tmp_path / name)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.parametrize("kind", KINDS)
def test_the_order_of_texts_does_not_matter(kind):
    again = train_tokenizer(kind, reversed(TEXTS), SIZES[kind])
    assert again.get_vocab() == trained(kind).get_vocab()


@pytest.mark.parametrize(
    ("kind", "size", "fault"),
    [
        ("bytes", 256, "vocab_size is 256: bytes has exactly 257"),
        ("bytes", 258, "vocab_size is 258: bytes has exactly 257"),
        ("bytes", 0, "vocab_size is 0: bytes has exactly 257"),
        ("bpe", 256, "vocab_size is 256: bpe has at least 257"),
        ("bpe", -1, "vocab_size is -1: bpe has at least 257"),
        ("bpe", None, "give --vocab-size"),
        ("words", 2, "vocab_size is 2: words has at least 3"),
        ("words", 0, "vocab_size is 0: words has at least 3"),
        ("words", -5, "vocab_size is -5: words has at least 3"),
        ("word", 300, "unknown vocabulary 'word' .did you mean words.*bytes, bpe, words"),
    ],
)
def test_a_size_that_the_kind_cannot_have_is_refused_before_a_text_is_read(kind, size, fault):
    def unread() -> Iterator[str]:
        pytest.fail("read")
        yield ""

    with pytest.raises(ValueError, match=fault):
        train_tokenizer(kind, unread(), size)


@pytest.mark.parametrize("kind", ["bpe", "words"])
def test_a_fault_in_a_text_is_the_fault_of_training(kind):
    def read() -> Iterator[str]:
        yield "good"
        raise ValueError("1.txt: not UTF-8")

    with pytest.raises(ValueError, match=r"^1\.txt: not UTF-8$"):
        train_tokenizer(kind, read(), 300)
