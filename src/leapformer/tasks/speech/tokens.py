"""Vocabularies of subwords: a unigram model (Kudo, 2018) by sentencepiece, run by tokenizers."""

import io
from collections.abc import Iterable
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

try:
    import sentencepiece
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; vocabularies of speech translation need it: pip install 'leapformer[speech]'"
    ) from None

SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
"""Padding, beginning, end, unknown: ids 0 to 3."""

_NORMAL = normalizers.Sequence(
    [
        normalizers.NFKC(),
        normalizers.Replace(Regex(r"[\p{Cc}\p{Z}▁▅]+"), " "),
        normalizers.Replace(Regex(r"<(?=(pad|/?s|unk)>)"), "< "),
        normalizers.Strip(),
    ]
)
_THREADS = 4
"""Part of the recipe, for sums over threads depend on how many there are."""


def normalized(text: str) -> str:
    """As tokens see a text: NFKC; blanks, line breaks, control characters and the two signs that
    sentencepiece keeps for itself as one blank; a special token's name with a blank in it, so that
    no text is one."""
    found: str = _NORMAL.normalize_str(text)
    return found


def train_unigram(texts: Iterable[str], vocab_size: int, piece_length: int = 16) -> bytes:
    """A sentencepiece model of `vocab_size` pieces, special ones included, each of at most
    `piece_length` characters; fewer where the texts have no more. The same texts give the same
    model.

    Raises ValueError for texts without a word, for a size below the number of their characters, and
    for a length below 1.
    """
    if piece_length < 1:
        raise ValueError(f"piece_length is {piece_length}: expected at least 1")
    rows = [row for row in map(normalized, texts) if row]
    if not rows:
        raise ValueError("there is no text to make a vocabulary of")
    least = len(set("".join(rows)) | {" "}) + len(SPECIAL)
    if vocab_size < least:
        raise ValueError(
            f"vocab_size is {vocab_size}: the texts have so many characters that it must be at "
            f"least {least}"
        )
    model = io.BytesIO()
    names = ("pad", "bos", "eos", "unk")
    special: dict[str, Any] = {f"{name}_id": i for i, name in enumerate(names)}
    special |= {f"{name}_piece": piece for name, piece in zip(names, SPECIAL, strict=True)}
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(rows),
        model_writer=model,
        model_type="unigram",
        vocab_size=vocab_size,
        hard_vocab_limit=False,
        max_sentencepiece_length=piece_length,
        character_coverage=1.0,
        normalization_rule_name="identity",
        max_sentence_length=2**30,
        num_threads=_THREADS,
        minloglevel=2,
        **special,
    )
    return model.getvalue()


def tokenizer_of(model: bytes) -> PreTrainedTokenizerFast:
    """The tokenizer of a model of `train_unigram`: the ids that sentencepiece gives the normalized
    text, then the end."""
    pieces = sentencepiece.SentencePieceProcessor(model_proto=model)
    scores = [(pieces.id_to_piece(i), pieces.get_score(i)) for i in range(len(pieces))]
    tokenizer = Tokenizer(models.Unigram(scores, SPECIAL.index("<unk>"), False))
    tokenizer.normalizer = _NORMAL
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace("▁", "always")
    tokenizer.decoder = decoders.Metaspace("▁", "always")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", SPECIAL.index("</s>"))]
    )
    pad, begin, end, unknown = SPECIAL
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=pad,
        bos_token=begin,
        eos_token=end,
        unk_token=unknown,
        clean_up_tokenization_spaces=False,
        split_special_tokens=True,
    )
