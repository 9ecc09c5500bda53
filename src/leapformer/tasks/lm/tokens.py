"""Vocabularies, through the tokenizers library: bytes, byte-pair encoding, or whole words."""

import re
from collections import Counter
from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ...ops.checks import known

END, UNKNOWN = "<eos>", "<unk>"
KINDS = ("bytes", "bpe", "words")

_BLANKS = r"[\s\x1c-\x1f]+"
"""Where str.split splits."""
_CUT = re.compile(r"\S(?=[ \n])")
"""No token reaches over such a place, nor depends on what is beyond."""


def train_tokenizer(
    kind: str, texts: Iterator[str], vocab_size: int | None
) -> PreTrainedTokenizerFast:
    """A tokenizer of such texts; `<eos>` ends a document, and for words also a line. Written in a
    text it is text: an unknown word, or its five bytes.

    Args:
        kind: "bytes" (256 and the end), "bpe" (byte-level, nothing is unknown) or "words" (between
            blanks, the most frequent first; others are `<unk>`).
        texts: read once at most, never held at once.
        vocab_size: tokens, the end included; None is 257 for bytes and all words for words. Fewer
            where the texts have no more.

    Raises ValueError for a size that the kind cannot have.
    """
    known("vocabulary", kind, KINDS)
    if kind == "bpe" and vocab_size is None:
        raise ValueError("give --vocab-size: how many tokens byte-pair encoding shall have")
    least = 3 if kind == "words" else 257
    size = least if vocab_size is None else vocab_size
    if size < least or (kind == "bytes" and size != least):
        exactly = "exactly" if kind == "bytes" else "at least"
        raise ValueError(f"vocab_size is {vocab_size}: {kind} has {exactly} {least}")
    if kind == "words":
        texts = tqdm(texts, desc="words", unit="text", leave=False)
        tokenizer = Tokenizer(models.WordLevel(_words(texts, vocab_size), UNKNOWN))
        tokenizer.normalizer = normalizers.Sequence(
            [normalizers.Replace(END, UNKNOWN), normalizers.Replace("\n", f" {END} ")]
        )
        tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(_BLANKS), "removed")
    else:
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        vocab = {token: i for i, token in enumerate([END, *alphabet])}
        tokenizer = Tokenizer(models.BPE(vocab, []))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=kind == "bpe"
        )
        tokenizer.decoder = decoders.ByteLevel()
    if kind == "bpe":
        trainer = trainers.BpeTrainer(
            vocab_size=size, special_tokens=[END], initial_alphabet=alphabet, show_progress=True
        )
        # Its threads take the texts: no tqdm among them, whose lock another thread may hold.
        tokenizer.train_from_iterator((piece for text in texts for piece in pieces(text)), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        unk_token=UNKNOWN if kind == "words" else None,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )


def pieces(text: str, size: int = 2**16) -> Iterator[str]:
    """A text cut behind words, after `size` characters or soon. Its tokens are those of the pieces,
    for the library takes some hundred bytes a character while it makes them."""
    begin = 0
    while begin < len(text):
        found = _CUT.search(text, begin + size)
        end = found.end() if found else len(text)
        yield text[begin:end]
        begin = end


def _words(texts: Iterator[str], size: int | None) -> dict[str, int]:
    """The end, the unknown word and then the words by frequency, alike ones by code point."""
    counts: Counter[str] = Counter()
    for text in texts:
        counts.update(text.replace(END, UNKNOWN).split())
    del counts[UNKNOWN]
    words = sorted(counts, key=lambda word: (-counts[word], word))
    return {word: i for i, word in enumerate([END, UNKNOWN, *words][:size])}
