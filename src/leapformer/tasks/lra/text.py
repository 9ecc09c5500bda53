"""Text: is a film review for or against the film, read byte by byte? (IMDb, Maas et al. 2011.)"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..files import Layout, Row, files, json_layout, recognise
from ..source import Example, Source

PER_CLASS = 12_500
"""Reviews of a class in a split of the published data set."""

_CLASSES = ("neg", "pos")


def read(source: Path) -> Source:
    """IMDb reviews as bytes of UTF-8, whole; label 1 is for the film.

    Layouts: the published folders, or JSON lines. Raises FileNotFoundError or ValueError, naming
    what `source` holds and the layouts, where it has neither.
    """
    return recognise(
        source,
        (
            Layout("aclImdb/ as published: {train,test}/{neg,pos}/*.txt", _folders),
            json_layout(_review, "'text' and 'label' (0 or 1)"),
        ),
    )


def _folders(source: Path) -> Source | None:
    for root in (source, source / "aclImdb"):
        leaves = [root / split / name for split in ("train", "test") for name in _CLASSES]
        missing = [leaf for leaf in leaves if not leaf.is_dir()]
        if len(missing) == len(leaves):
            continue
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing")
        splits = {split: partial(_reviews, root / split) for split in ("train", "test")}
        return Source("aclImdb", dict(splits), dict.fromkeys(splits, 2 * PER_CLASS))
    return None


def _reviews(folder: Path) -> Iterator[Example]:
    classes = [files(folder / name, ".txt") for name in _CLASSES]
    for label, reviews in enumerate(classes):
        for file in reviews:
            text = file.read_bytes()
            if not text:
                raise ValueError(f"{file}: the review is empty")
            try:
                text.decode("utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{file}: not UTF-8 text") from None
            yield (text,), label


def _review(row: Row) -> Example:
    return (row.text("text"),), row.binary("label")
