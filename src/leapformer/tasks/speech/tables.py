"""Corpora that are tables: CoVoST 2 as published, and manifests that anyone can write."""

import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from ..files import SPLITS, files, lines
from ..source import Source
from .utterance import Utterance, present, seconds

COVOST = (
    "CoVoST 2: covost_v2.fr_en.{train,dev,test}.tsv, which its get_covost_splits.py makes, beside "
    "Common Voice's clips/"
)
MANIFEST = (
    "a manifest: {train,validation,test}.tsv with a header, columns audio, transcript, "
    "translation, and if need be id, start, duration"
)

_COVOST = re.compile(r"covost_v2\.([A-Za-z-]+)_([A-Za-z-]+)\.(train|dev|test)\.tsv")
_ALL = re.compile(r"covost_v2\.[A-Za-z-]+_[A-Za-z-]+\.tsv")
_NAMES = {"train": "train", "validation": "validation", "dev": "validation", "test": "test"}
_NEEDED = ("audio", "transcript", "translation")
_MARK = "\ufeff"
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_ESCAPED_CELL = re.compile(r"(?:^|\t)((?:\\.|[^\t])*)", re.DOTALL)


def find_covost(pair: str | None, source: Path) -> Source | None:
    """CoVoST 2 in this folder, if it is there; `pair`, such as fr-en, chooses among several.

    Raises FileNotFoundError where a table or the clips are missing, or the pair, and ValueError
    where there are several pairs and none is chosen.
    """
    tables: dict[str, dict[str, Path]] = {}
    for file in files(source, ".tsv"):
        match = _COVOST.fullmatch(file.name)
        if match is not None:
            tables.setdefault(f"{match[1]}-{match[2]}", {})[_NAMES[match[3]]] = file
    if not tables:
        if whole := [file for file in files(source, ".tsv") if _ALL.fullmatch(file.name)]:
            raise FileNotFoundError(
                f"{whole[0]} has the translations alone: cut it into splits with CoVoST's "
                f"get_covost_splits.py; expected {COVOST}"
            )
        return None
    if pair is None and len(tables) > 1:
        raise ValueError(f"{source} holds {', '.join(tables)}: choose one with --pair")
    name = pair or next(iter(tables))
    if name not in tables:
        raise FileNotFoundError(f"{source} holds {', '.join(tables)} and --pair is {name}")
    if not (source / "clips").is_dir():
        raise FileNotFoundError(f"{source / 'clips'} is missing: it is part of Common Voice")
    return _source(f"CoVoST 2 {name}", tables[name], _covost)


def find_manifest(source: Path) -> Source | None:
    """The manifest in this folder, if it is there and not part of CoVoST 2 (whose folder has
    Common Voice's own train.tsv). Raises FileNotFoundError where train or test is missing, and
    ValueError for both of validation.tsv and dev.tsv."""
    held = files(source, ".tsv")
    splits: dict[str, Path] = {}
    for file in held:
        split = _NAMES.get(file.stem)
        if split in splits:
            raise ValueError(f"{source}: {splits[split].name} and {file.name}: keep one")
        if split is not None:
            splits[split] = file
    if not splits or any(file.name.startswith("covost_v2.") for file in held):
        return None
    return _source("manifest", splits, _manifest)


def write_manifest(file: Path, utterances: Iterable[Utterance]) -> None:
    """Write a table that `find_manifest` reads, audio relative to it. Raises ValueError for a text
    with a tab or a line break."""
    rows = ["\t".join(("id", *_NEEDED))]
    for each in utterances:
        audio = each.audio.relative_to(file.parent).as_posix()
        cells = (each.id, audio, each.transcript, each.translation)
        if any(set(cell) & set("\t\r\n") for cell in cells):
            raise ValueError(f"{each.id}: a text has a tab or a line break: leave it out")
        rows.append("\t".join(cells))
    file.write_text("\n".join(rows) + "\n", encoding="utf-8", newline="\n")


def _source(
    layout: str, tables: dict[str, Path], reader: Callable[[Path], Iterator[Utterance]]
) -> Source:
    for split in ("train", "test"):
        if split not in tables:
            there = ", ".join(file.name for file in tables.values())
            raise FileNotFoundError(f"the table of the {split} split is missing beside {there}")
    splits = {split: partial(reader, tables[split]) for split in SPLITS if split in tables}
    return Source(layout, dict(splits))


def _covost(file: Path) -> Iterator[Utterance]:
    for place, row in _rows(file, ("path", "sentence", "translation"), escaped=True):
        audio = present(place, file.parent / "clips" / row["path"])
        texts = row["sentence"].strip(), row["translation"].strip()
        yield Utterance(audio.stem, audio, 0.0, None, *texts)


def _manifest(file: Path) -> Iterator[Utterance]:
    for i, (place, row) in enumerate(_rows(file, _NEEDED)):
        yield Utterance(
            row.get("id") or f"{file.stem}-{i}",
            present(place, file.parent / row["audio"]),
            seconds(place, "start", row.get("start") or "0"),
            seconds(place, "duration", row["duration"]) if row.get("duration") else None,
            row["transcript"].strip(),
            row["translation"].strip(),
        )


def _unescaped(line: str) -> list[str]:
    """Cells in which the character behind a backslash is itself, also a tab."""
    return [_ESCAPE.sub(r"\1", cell) for cell in _ESCAPED_CELL.findall(line)]


def _rows(
    file: Path, needed: tuple[str, ...], escaped: bool = False
) -> Iterator[tuple[str, dict[str, str]]]:
    """The rows of a table by column, each with its place; a tab parts cells and nothing quotes.
    `escaped`: a backslash escapes, as in what get_covost_splits.py writes."""
    table = lines(file)
    _, head = next(table, ("", ""))
    names = head.removeprefix(_MARK).split("\t")
    missing = [name for name in needed if name not in names]
    if missing or len(set(names)) < len(names):
        fault = f"no column {missing[0]!r}" if missing else "two columns of one name"
        raise ValueError(
            f"{file}:1: {fault}: expected a header with {', '.join(needed)}, tabs between them; "
            f"found {', '.join(names):.100}"
        )
    for place, line in table:
        cells = _unescaped(line) if escaped else line.split("\t")
        if len(cells) != len(names):
            raise ValueError(f"{place}: {len(cells)} cells, and the header has {len(names)}")
        yield place, dict(zip(names, cells, strict=True))
