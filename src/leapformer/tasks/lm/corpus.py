"""Texts as their users have them: WikiText as published, folders of text files, JSON lines."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from ..files import SPLITS, Layout, entries, files, json_lines, json_splits, lines, recognise
from ..source import Document, Source

_HEADING = re.compile(r" ?= [^=].* = ?")
_WIKITEXT = {"train": "train", "validation": "valid", "test": "test"}


def read(source: Path) -> Source:
    """The documents of a corpus; splits that it has not are held out of "train" later.

    Layouts: WikiText-2 or -103, `wiki.{train,valid,test}.tokens` or `.raw`, an article a document;
    a folder of .txt files, a file a document, perhaps in folders {train,validation,test}; JSON
    lines with 'text'. Raises FileNotFoundError or ValueError, naming what `source` holds and the
    layouts, where it has none.
    """
    return recognise(
        source,
        (
            Layout("WikiText as published: wiki.{train,valid,test}.tokens", _wikitext(".tokens")),
            Layout("WikiText as published: wiki.{train,valid,test}.raw", _wikitext(".raw")),
            Layout("text files: {train,validation,test}/*.txt, or *.txt to be split", _folder),
            Layout("JSON lines {train,validation,test}.jsonl, plain, .gz or .xz: 'text'", _json),
        ),
    )


def text_of(path: Path) -> str:
    """The text of a file, without a byte-order mark. Raises ValueError for what is not UTF-8 and
    for a file without text."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}): convert it") from None
    if not text.strip():
        raise ValueError(f"{path}: no text in it")
    return text


def _wikitext(suffix: str) -> Callable[[Path], Source | None]:
    def find(source: Path) -> Source | None:
        there = {split: source / f"wiki.{name}{suffix}" for split, name in _WIKITEXT.items()}
        missing = [file for file in there.values() if not file.is_file()]
        if len(missing) == len(there):
            return None
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing")
        splits = {split: partial(_articles, file) for split, file in there.items()}
        return Source(f"WikiText ({suffix[1:]})", dict(splits))

    return find


def _articles(file: Path) -> Iterator[Document]:
    """A file of WikiText, cut before each heading of the first level."""
    name = file.name
    held: list[str] = []
    for place, line in lines(file):
        if _HEADING.fullmatch(line) and any(each.strip() for each in held):
            yield Document(name, "\n".join(held) + "\n")
            held = []
        if not any(each.strip() for each in held):
            name = place
        held.append(line)
    if not any(each.strip() for each in held):
        raise ValueError(f"{file}: no text in it")
    yield Document(name, "\n".join(held) + "\n")


def _folder(source: Path) -> Source | None:
    inside = {split: source / split for split in SPLITS if (source / split).is_dir()}
    flat = files(source, ".txt")
    if not inside:
        return Source("text files", {"train": partial(_texts, flat)}) if flat else None
    if "train" not in inside:
        raise FileNotFoundError(f"{source / 'train'} is missing")
    if flat:
        raise ValueError(f"{source}: {flat[0].name} lies beside {'/, '.join(inside)}/: move it")
    splits = {split: partial(_texts, files(folder, ".txt")) for split, folder in inside.items()}
    return Source("text files by split", dict(splits))


def _texts(paths: list[Path]) -> Iterator[Document]:
    for path in paths:
        yield Document(path.name, text_of(path))


def _json(source: Path) -> Source | None:
    named = [each for each in entries(source) if ".jsonl" in each.name]
    if not named:
        return None
    splits = {split: partial(_rows, file) for split, file in json_splits(source).items()}
    return Source("JSON lines", dict(splits)) if splits else None


def _rows(file: Path) -> Iterator[Document]:
    for row in json_lines(file):
        yield Document(row.place, row.string("text"))
