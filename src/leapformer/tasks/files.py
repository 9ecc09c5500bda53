"""Files of a user's disk: which layout a folder has, its files in one order, lines with a place.

An order never depends on the machine: names are sorted by code point and hidden files are left out.
A place is `file` or `file:line`; every error about what was read begins with one.
"""

import gzip
import json
import lzma
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from .source import Document, Example, Source

SPLITS = ("train", "validation", "test")
SPLIT_NAMES = {
    **{split: split for split in SPLITS},
    **dict.fromkeys(("valid", "val", "dev"), "validation"),
}
"""What files and folders of a split are called."""

_ARCHIVES = (".tar", ".tgz", ".txz", ".tar.gz", ".tar.xz", ".tar.bz2", ".zip")
_LISTED = 8
_SPLIT_FILE = re.compile(rf"(?:(.*)_)?({'|'.join(SPLIT_NAMES)})\.jsonl(\.gz|\.xz)?")


@dataclass(frozen=True)
class Layout:
    """One of the forms that a task's data may have on disk.

    Attributes:
        form: what it looks like, for an error.
        find: gives the source, None where nothing of the layout is there, and raises
            FileNotFoundError, naming what is missing, where only a part of it is.
    """

    form: str
    find: Callable[[Path], Source | None]


def recognise(source: Path, layouts: tuple[Layout, ...]) -> Source:
    """The source in the one layout that the folder has.

    Raises FileNotFoundError where there is no layout, or only a part of one, and ValueError for
    more than one and for a file in place of a folder. Both name the folder, what it holds and all
    layouts.
    """
    if source.is_file():
        archive = tarfile.is_tarfile(source) or zipfile.is_zipfile(source)
        what = "an archive: extract it and" if archive else "a file:"
        raise ValueError(f"{source} is {what} give the folder. {_forms(layouts)}")
    if not source.is_dir():
        raise FileNotFoundError(f"{source} is not there: give a folder. {_forms(layouts)}")
    rest = f"{source} holds {_held(source)}. {_forms(layouts)}"
    try:
        found = [each for each in (layout.find(source) for layout in layouts) if each is not None]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}. {rest}") from None
    if not found:
        raise FileNotFoundError(f"{source}: no known layout. {rest}")
    if len(found) > 1:
        names = " and ".join(each.layout for each in found)
        raise ValueError(f"{source}: {names} side by side, give a folder with one. {rest}")
    return found[0]


def _forms(layouts: tuple[Layout, ...]) -> str:
    return "What would do:" + "".join(f"\n  - {layout.form}" for layout in layouts)


def _held(folder: Path) -> str:
    names = [each.name + "/" * each.is_dir() for each in entries(folder)]
    if not names:
        return "nothing"
    more = f" and {len(names) - _LISTED} more" if len(names) > _LISTED else ""
    archives = [name for name in names if name.endswith(_ARCHIVES)]
    hint = f" (extract {', '.join(archives[:_LISTED])} first)" if archives else ""
    return ", ".join(names[:_LISTED]) + more + hint


def entries(folder: Path) -> list[Path]:
    """What a folder holds, sorted by name, hidden entries left out."""
    held = (each for each in folder.iterdir() if not each.name.startswith("."))
    return sorted(held, key=lambda each: each.name)


def files(folder: Path, *suffixes: str) -> list[Path]:
    """Files of a folder with one of these suffixes (in either case), sorted by name."""
    return [each for each in entries(folder) if each.suffix.lower() in suffixes and each.is_file()]


def json_splits(folder: Path, needed: tuple[str, ...] = ("train", "test")) -> dict[str, Path]:
    """Files `{train,validation,test}.jsonl` of a folder by split; empty where there is none.

    `valid`, `val` and `dev` stand for validation. A name may begin with that of the data set and
    `_`, and end in `.gz` or `.xz`. Raises FileNotFoundError where one that is `needed` is missing,
    and ValueError for files of more than one data set and for two files of one split.
    """
    splits: dict[str, Path] = {}
    names: dict[str | None, Path] = {}
    for file in entries(folder):
        match = _SPLIT_FILE.fullmatch(file.name)
        if match is None or not file.is_file():
            continue
        split = SPLIT_NAMES[match[2]]
        if split in splits:
            raise ValueError(
                f"{folder}: {splits[split].name} and {file.name} are both there: keep one"
            )
        splits[split] = names[match[1]] = file
    if len(names) > 1:
        mixed = " and ".join(file.name for file in names.values())
        raise ValueError(f"{folder}: {mixed} are of two data sets: keep one, or name them alike")
    for split in needed:
        if splits and split not in splits:
            there = ", ".join(file.name for file in splits.values())
            raise FileNotFoundError(f"{folder}: {split}.jsonl is missing beside {there}")
    return {split: splits[split] for split in SPLITS if split in splits}


def lines(path: Path) -> Iterator[tuple[str, str]]:
    """Each line with its place, without its line end; .gz and .xz are unpacked on the way.

    Raises ValueError for what is not UTF-8 or cannot be unpacked.
    """
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}
    number = 0
    with openers.get(path.suffix, open)(path, "rb") as stream:
        try:
            for raw in stream:
                number += 1
                line = raw.decode("utf-8")
                yield f"{path}:{number}", line.removesuffix("\n").removesuffix("\r")
        except UnicodeDecodeError:
            raise ValueError(f"{path}:{number}: not UTF-8 text") from None
        except (EOFError, gzip.BadGzipFile, lzma.LZMAError, zlib.error) as error:
            raise ValueError(
                f"{path}:{number + 1}: cannot be unpacked ({error}): fetch the file again"
            ) from None


@dataclass(frozen=True)
class Row:
    """A JSON object and its place."""

    place: str
    values: dict[str, object]

    def _value(self, key: str) -> object:
        if key not in self.values:
            raise ValueError(f"{self.place}: no {key!r}, only {sorted(self.values)!s:.80}")
        return self.values[key]

    def string(self, key: str) -> str:
        """Raises ValueError for a missing or empty string and for what is none."""
        value = self._value(key)
        if not isinstance(value, str) or not value:
            raise ValueError(f"{self.place}: {key!r} must be a text that is not empty")
        return value

    def text(self, key: str) -> bytes:
        """The string as UTF-8. Raises ValueError as `string`, and for half a surrogate pair."""
        try:
            return self.string(key).encode("utf-8")
        except UnicodeEncodeError:
            raise ValueError(f"{self.place}: {key!r} has no UTF-8 form") from None

    def binary(self, key: str) -> int:
        """Raises ValueError for anything but the numbers 0 and 1."""
        value = self._value(key)
        if type(value) is not int or value not in (0, 1):
            raise ValueError(f"{self.place}: expected {key!r} to be 0 or 1, found {value!r:.50}")
        return value


def json_lines(path: Path) -> Iterator[Row]:
    """A JSON object a line. Raises ValueError for any other line, also an empty one."""
    for place, line in lines(path):
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{place}: not JSON ({error})") from None
        if not isinstance(values, dict):
            raise ValueError(f"{place}: expected a JSON object, found {line!r:.50}")
        yield Row(place, values)


def json_layout(
    example: Callable[[Row], Example | Document],
    keys: str,
    needed: tuple[str, ...] = ("train", "test"),
) -> Layout:
    """JSON lines, a file a split, of which some are `needed`; `example` makes an example of a row,
    `keys` says which it has."""

    def find(source: Path) -> Source | None:
        splits = {split: partial(rows, file) for split, file in json_splits(source, needed).items()}
        return Source("JSON lines", dict(splits)) if splits else None

    def rows(file: Path) -> Iterator[Example | Document]:
        row = None
        for row in json_lines(file):
            yield example(row)
        if row is None:
            raise ValueError(f"{file}: no rows in it: fetch the file again, or leave it out")

    names = f"{{{','.join(needed)}}}"
    others = " and ".join(split for split in SPLITS if split not in needed)
    form = f"JSON lines {names}.jsonl or *_{names}.jsonl, perhaps {others} too"
    return Layout(f"{form}, plain, .gz or .xz, with {keys}", find)
