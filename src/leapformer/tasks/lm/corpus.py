"""Texts as their users have them: WikiText, Parquet, folders of text files, JSON lines."""

import re
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, islice, pairwise
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from ..files import SPLIT_NAMES, SPLITS, Layout, Row, entries, files, json_layout, lines, recognise
from ..source import Document, Source

_HEADING = re.compile(r" ?= [^=].* = ?")
_MARK = "\ufeff"
_TOKENISED = tuple(
    (re.compile(pattern, re.MULTILINE), natural)
    for pattern, natural in (
        (r" @(.)@ ", r"\1"),
        (r"^ (?:= )+(.+?)(?: =)+ $", r"\1"),
        (r" ([,.;:!?%)\]])", r"\1"),
        (r"([(\[$£€]) ", r"\1"),
        (r" ('(?:s|t|d|m|ll|re|ve))\b", r"\1"),
        (r'" ([^"\n]*) "', r'"\1"'),
        (r"(?<=\d) (\u2013) (?=\d)", r"\1"),
        (r"^ +| +$", ""),
    )
)
_EMPTY = "no text in it: fetch the file again, or leave it out"
_WIKITEXT = {"train": "train", "validation": "valid", "test": "test"}
_SHARD = re.compile(rf"({'|'.join(SPLIT_NAMES)})(-\d+-of-\d+)?\.parquet")


def read(source: Path) -> Source:
    """The documents of a corpus; splits that it has not are held out of "train" later.

    Layouts: WikiText-2 or -103, `wiki.{train,valid,test}.tokens` or `.raw`, an article a document;
    Parquet with a column 'text', a row a document or, as the Hub has WikiText, a line; a folder of
    .txt files, a file a document, perhaps in folders {train,validation,test}; JSON lines with
    'text'. Raises FileNotFoundError or ValueError, naming what `source` holds and the layouts,
    where it has none.
    """
    return recognise(
        source,
        (
            Layout("WikiText as published: wiki.{train,valid,test}.tokens", _wikitext(".tokens")),
            Layout("WikiText as published: wiki.{train,valid,test}.raw", _wikitext(".raw")),
            Layout("Parquet with 'text': {train,validation,test}-*-of-*.parquet", _parquet),
            Layout("text files: {train,validation,test}/*.txt, or *.txt to be split", _folder),
            json_layout(_row, "'text'", needed=("train",)),
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


def natural(text: str) -> str:
    """WikiText as published, its tokenisation undone: "a two @-@ part story ( 1,5 % ) ." is
    "a two-part story (1,5%)." again, and headings lose their "=". Rules of this kind, not all of
    which can be turned back, are how models of other texts are measured on it (Radford et al.,
    2019, section 3.1). `<unk>`, in the place of rare words, stays."""
    for pattern, written in _TOKENISED:
        text = pattern.sub(written, text)
    return text


def _wikitext(suffix: str) -> Callable[[Path], Source | None]:
    def find(source: Path) -> Source | None:
        there = {split: source / f"wiki.{name}{suffix}" for split, name in _WIKITEXT.items()}
        missing = [file for file in there.values() if not file.is_file()]
        if len(missing) == len(there):
            return None
        if missing:
            raise FileNotFoundError(f"{missing[0]} is missing")
        splits = {split: partial(_of_file, file) for split, file in there.items()}
        return Source(f"WikiText ({suffix[1:]})", dict(splits))

    return find


def _of_file(file: Path) -> Iterator[Document]:
    found = lines(file)
    first = ((place, line.removeprefix(_MARK)) for place, line in islice(found, 1))
    return _articles(file, chain(first, found))


def _parquet(source: Path) -> Source | None:
    held: dict[str, list[Path]] = {}
    for file in entries(source):
        if match := _SHARD.fullmatch(file.name):
            held.setdefault(SPLIT_NAMES[match[1]], []).append(file)
    if not held:
        return None
    if "train" not in held:
        raise FileNotFoundError(f"{source / 'train-*.parquet'} is missing")
    splits = {split: partial(_of_shards, held[split]) for split in SPLITS if split in held}
    return Source("Parquet", dict(splits))


def _of_shards(shards: list[Path]) -> Iterator[Document]:
    """Lines, as of WikiText, where the first rows are no longer than one and some are blank;
    documents else."""
    rows = chain.from_iterable(map(_rows, shards))
    first = list(islice(rows, 100))
    rows = chain(first, rows)
    single = all(not text or text.find("\n") in (-1, len(text) - 1) for _, text in first)
    if single and not all(text.strip() for _, text in first):
        yield from _articles(shards[0], ((place, text.removesuffix("\n")) for place, text in rows))
        return
    for place, text in rows:
        if not text.strip():
            raise ValueError(f"{place}: 'text' must not be empty")
        yield Document(place, text)


def _rows(shard: Path) -> Iterator[tuple[str, str]]:
    """The place and the text of each row, a batch at a time."""
    number = 0
    try:
        with pq.ParquetFile(shard) as file:
            for batch in file.iter_batches(batch_size=1024, columns=["text"]):
                for text in batch.column("text").to_pylist():
                    number += 1
                    if not isinstance(text, str):
                        raise ValueError(f"{shard}:{number}: 'text' is {text!r:.50}, no text")
                    yield f"{shard}:{number}", text
    except (pa.ArrowException, KeyError) as error:
        raise ValueError(f"{shard}: no Parquet with a column 'text' ({error!s:.80})") from None


def _articles(file: Path, found: Iterator[tuple[str, str]]) -> Iterator[Document]:
    """Lines of WikiText, cut before each heading of the first level; blank lines surround one."""
    name = ""
    held: list[str] = []
    for (place, line), (_, after) in pairwise(chain(found, [("", "")])):
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
    inside: dict[str, list[Path]] = {}
    for name, split in SPLIT_NAMES.items():
        if (source / name).is_dir():
            inside.setdefault(split, []).extend(files(source / name, ".txt"))
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
