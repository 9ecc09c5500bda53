"""A corpus of translated speech to features and texts on disk, with the processor of a model."""

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from ...models import LeaPformerFeatureExtractor, LeaPformerSpeechProcessor
from ...ops.checks import known
from ...results import writable_folder, write_json
from ..files import SPLITS
from ..source import Source
from .corpus import read, read_splits
from .data import ABOUT, PROCESSOR, TRANSCRIPTS, fingerprint
from .digits import Counts, write_digits
from .numbers import PAIRS
from .store import Moments, write_split
from .tokens import tokenizer_of, train_unigram

CORPORA = ("auto", "digits")

_AUDIO = "corpus"
"""Where utterances lie that were made, beside their features."""


def prepare(
    source: Path,
    out: Path,
    corpus: str = "auto",
    pair: str | None = None,
    vocab_size: int = 10_000,
    piece_length: int | None = None,
    shared_vocabulary: bool = False,
    held_out: int = 200,
    max_bad: float = 0.01,
    counts: Counts | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """Read a corpus and leave in the new folder `out` the features of each utterance as they are
    before normalisation, its texts and where its audio lies; the processor, whose extractor
    normalises by the training split; a tokenizer of transcripts. Returns what `about.json` there
    says: layout, counts, hours, checksums, and what was left out.

    Args:
        source: a folder in a layout of `corpus.read`, or the recordings of `digits`.
        corpus: "auto" recognises the layout; "digits" puts spoken numbers together.
        pair: of languages, such as "en-de"; needed by digits, and where the folder has several.
        vocab_size: pieces of a vocabulary; fewer where the texts have no more.
        piece_length: characters of a piece at most; None: 16, and 11 for digits, whose numbers
            would otherwise be a piece each, though they are made of few parts.
        shared_vocabulary: one vocabulary, of both languages, in place of two.
        held_out: utterances for validation, where the corpus has no such split.
        max_bad: the share of a split that may be left out because it cannot be used.
        counts: utterances of each split of digits.
        seed: draws what is held out, and the digits.

    Raises ValueError or OSError where the corpus is malformed or too much of it cannot be used, and
    FileExistsError where `out` is there.
    """
    known("corpus", corpus, CORPORA)
    if corpus == "digits" and pair is None:
        raise ValueError(f"digits have several pairs: choose with --pair {' or '.join(PAIRS)}")
    if not 0 <= max_bad <= 1:
        raise ValueError(f"max_bad is {max_bad:g}: expected a share, from 0 to 1")
    source, out = source.expanduser(), out.expanduser()
    if out.exists():
        raise FileExistsError(f"{out} is there already: delete it, or choose another --out")
    found = read(source, pair) if corpus == "auto" else None
    writable_folder(out.parent)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    try:
        if found is None:
            found = _made(source, half / "data" / _AUDIO, pair or "", counts, seed)
        splits = read_splits(found, held_out, seed)
        texts = [
            [getattr(each, kind) for each in splits["train"]]
            for kind in ("translation", "transcript")
        ]
        if shared_vocabulary:
            texts = [texts[0] + texts[1]] * 2
        length = piece_length or (11 if corpus == "digits" else 16)
        translations, transcripts = (
            tokenizer_of(train_unigram(x, vocab_size, length)) for x in texts
        )
        whole = half / "data"
        whole.mkdir(exist_ok=True)
        moments = Moments(LeaPformerFeatureExtractor().feature_size)
        about: dict[str, Any] = {
            "layout": found.layout,
            "seed": seed,
            "vocab_sizes": {"translation": len(translations), "transcript": len(transcripts)},
            "splits": {},
        }
        for name in SPLITS:
            file, counted = whole / f"{name}.arrow", moments if name == "train" else None
            about["splits"][name] = write_split(splits[name], file, name, max_bad, counted)
        mean, std = moments.statistics()
        extractor = LeaPformerFeatureExtractor(mean=mean, std=std)
        LeaPformerSpeechProcessor(extractor, translations).save_pretrained(whole / PROCESSOR)
        transcripts.save_pretrained(whole / TRANSCRIPTS)
        about["checksums"] = {name: fingerprint(whole / name) for name in (PROCESSOR, TRANSCRIPTS)}
        write_json(whole / ABOUT, about)
        whole.replace(out)
    finally:
        shutil.rmtree(half)
    return about


def _made(recordings: Path, folder: Path, pair: str, counts: Counts | None, seed: int) -> Source:
    folder.mkdir(parents=True)
    write_digits(recordings, folder, pair, counts, seed)
    return replace(read(folder), layout=f"digits {pair}")
