"""Corpora of translated speech as their users have them: MuST-C, CoVoST 2, manifests."""

from functools import partial
from pathlib import Path

import numpy as np

from ..files import SPLITS, Layout, recognise
from ..source import Source
from . import must_c, tables
from .utterance import Utterance


def read(source: Path, pair: str | None = None) -> Source:
    """The utterances of a corpus; their audio files are there, but unread.

    Args:
        source: a folder in one of the layouts; splits are train, test and perhaps validation.
        pair: of languages, such as "en-de", where the folder has several.

    Raises FileNotFoundError or ValueError where `source` has no layout or a part of one, naming
    what it holds. Reading a split raises them for a missing audio file, a missing column, a line
    that cannot be read, and texts of differing numbers, naming file and line.
    """
    return recognise(
        source,
        (
            Layout(must_c.FORM, partial(must_c.find, pair)),
            Layout(tables.COVOST, partial(tables.find_covost, pair)),
            Layout(tables.MANIFEST, tables.find_manifest),
        ),
    )


def read_splits(found: Source, held_out: int, seed: int) -> dict[str, list[Utterance]]:
    """The three splits; where there is no validation split, `held_out` utterances of the training
    split, drawn by `seed`, become it.

    Raises ValueError for an empty split and for a training split too small to hold out so many, and
    what reading raises.
    """
    splits = {name: list(read_split()) for name, read_split in found.splits.items()}
    for name, utterances in splits.items():
        if not utterances:
            raise ValueError(f"the {name} split of {found.layout} has no utterances")
    if "validation" not in splits:
        train = splits["train"]
        if not 0 < held_out < len(train):
            raise ValueError(
                f"the training split has {len(train)} utterances and {held_out} are to be held out "
                "for validation: give another --held-out"
            )
        drawn = set(np.random.default_rng(seed).permutation(len(train))[:held_out].tolist())
        splits["validation"] = [each for i, each in enumerate(train) if i in drawn]
        splits["train"] = [each for i, each in enumerate(train) if i not in drawn]
    return {name: splits[name] for name in SPLITS}
