"""Texts as their users have them: WikiText as published, folders of text files, JSON lines."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, pairwise
from pathlib import Path

from ..files import SPLITS, Layout, Row, files, json_layout, lines, recognise
from ..source import Document, Source

_HEADING = re.compile(r" ?= [^=].* = ?")
_MARK = "\ufeff"
_EMPTY = "no text in it: fetch the file again, or leave it out"
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
            json_layout(_row, "'text'"),
        ),
    )


def text_of(path: Path) -> str:
    """The text of a file, its line ends as \\n, without a byte-order mark. Raises ValueError for
    what is not UTF-8 and for a file without text."""
    try:
        text = path.expanduser().read_text(encoding="utf-8").removeprefix(_MARK)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: not UTF-8 text (byte {error.start}): convert it") from None
    if not text.strip():
        raise ValueError(f"{path}: {_EMPTY}")
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
    """A file of WikiText, cut before each heading of the first level; blank lines surround one."""
    name = ""
    held: list[str] = []
    for (place, line), (_, after) in pairwise(chain(lines(file), [("", "")])):
        if place == f"{file}:1":
            line = line.removeprefix(_MARK)
        alone = not (held and held[-1].strip()) and not after.strip()
        if name and alone and _HEADING.fullmatch(line):
            yield Document(name, "\n".join(held) + "\n")
            name, held = "", []
        if line.strip() and not name:
            name = place
        held.append(line)
    if not name:
        raise ValueError(f"{file}: {_EMPTY}")
    yield Document(name, "\n".join(held) + "\n")


def _folder(source: Path) -> Source | None:
    inside = {split: files(source / split, ".txt") for split in SPLITS if (source / split).is_dir()}
    flat = files(source, ".txt")
    if not any(inside.values()):
        return Source("text files", {"train": partial(_texts, flat)}) if flat else None
    missing = [split for split, held in {"train": [], **inside}.items() if not held]
    if missing:
        raise FileNotFoundError(f"{source / missing[0]}/*.txt is missing")
    if flat:
        raise ValueError(f"{source}: {flat[0].name} lies beside {'/, '.join(inside)}/: move it")
    return Source(
        "text files by split", {split: partial(_texts, held) for split, held in inside.items()}
    )


def _texts(paths: list[Path]) -> Iterator[Document]:
    for path in paths:
        yield Document(path.name, text_of(path))


def _row(row: Row) -> Document:
    return Document(row.place, row.text("text").decode())
