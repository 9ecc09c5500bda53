"""Vocabularies, through the tokenizers library: bytes, byte-pair encoding, or whole words."""

from collections.abc import Iterator

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from ...ops.checks import known

END, UNKNOWN = "<eos>", "<unk>"
KINDS = ("bytes", "bpe", "words")


def train_tokenizer(
    kind: str, texts: Iterator[str], vocab_size: int | None
) -> PreTrainedTokenizerFast:
    """A tokenizer of such texts; `<eos>` ends a document, and for words also a line.

    Args:
        kind: "bytes" (256 and the end), "bpe" (byte-level, nothing is unknown) or "words" (between
            blanks, the most frequent first; others are `<unk>`).
        texts: read once, never held at once.
        vocab_size: tokens, the end included; None is 257 for bytes and all words for words.

    Raises ValueError for a size that the kind cannot have.
    """
    known("vocabulary", kind, KINDS)
    trainer: trainers.Trainer
    if kind == "words":
        tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
        tokenizer.normalizer = normalizers.Replace(Regex(r"\n"), f" {END} ")
        tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        trainer = trainers.WordLevelTrainer(
            vocab_size=vocab_size or 2**31 - 1, special_tokens=[END, UNKNOWN], show_progress=False
        )
    else:
        smallest = 257
        size = smallest if vocab_size is None else vocab_size
        if size < smallest or (kind == "bytes" and size != smallest):
            raise ValueError(
                f"vocab_size is {vocab_size}: {kind} has "
                + ("exactly 257" if kind == "bytes" else "at least 257")
            )
        if kind == "bpe" and vocab_size is None:
            raise ValueError("give --vocab-size: how many tokens byte-pair encoding shall have")
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(
            add_prefix_space=False, use_regex=kind == "bpe"
        )
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token=END,
        unk_token=UNKNOWN if kind == "words" else None,
        clean_up_tokenization_spaces=False,
    )
