"""MuST-C as published: talks, segments of them in YAML, and a line of text for each segment."""

import re
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import yaml

from ..files import entries, lines
from ..source import Source
from .utterance import Utterance, present, seconds

FORM = "MuST-C: en-de/data/{train,dev,tst-COMMON}/{wav,txt}, or the folder en-de itself"

_SPLITS = {"train": "train", "validation": "dev", "test": "tst-COMMON"}
_PAIR = re.compile(r"[a-z]{2,3}-[a-z]{2,3}")
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_ROW = "{duration: seconds, offset: seconds, wav: name}"


def find(pair: str | None, source: Path) -> Source | None:
    """The corpus in this folder, if it has the layout; `pair` chooses among several pairs.

    The test is tst-COMMON; tst-HE is not read. Raises FileNotFoundError where a part is missing, or
    the pair, and ValueError where there are several pairs and none is chosen.
    """
    source = source.absolute()  # its name counts, also that of "."
    folders = [source, *(each for each in entries(source) if each.is_dir())]
    there = {
        each.name: each / "data"
        for each in folders
        if _PAIR.fullmatch(each.name) and (each / "data").is_dir()
    }
    if not there:
        return None
    if pair is None and len(there) > 1:
        raise ValueError(f"{source} holds {', '.join(there)}: choose one with --pair")
    name = pair or next(iter(there))
    if name not in there:
        raise FileNotFoundError(f"{source} holds {', '.join(there)} and --pair is {name}")
    splits = {}
    for split, published in _SPLITS.items():
        folder = there[name] / published
        if folder.is_dir():
            splits[split] = partial(_utterances, folder, *name.split("-"))
        elif split != "validation":
            raise FileNotFoundError(f"{folder} is missing")
    return Source(f"MuST-C {name}", dict(splits))


def _utterances(folder: Path, source: str, target: str) -> Iterator[Utterance]:
    """The segments of a split in the order of its YAML file; named by talk and place in it."""
    table = folder / "txt" / f"{folder.name}.yaml"
    files = [table.with_suffix(f".{language}") for language in (source, target)]
    for file in (table, *files):
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing")
    rows = list(_segments(table))
    texts = [[line.strip() for _, line in lines(file)] for file in files]
    for file, found in zip(files, texts, strict=True):
        if len(found) != len(rows):
            raise ValueError(
                f"{file}: {len(found)} lines, but {table.name} has {len(rows)} segments: fetch "
                "both again"
            )
    seen: Counter[str] = Counter()
    for (place, row), transcript, translation in zip(rows, *texts, strict=True):
        missing = [key for key in ("duration", "offset", "wav") if key not in row]
        if missing:
            raise ValueError(f"{place}: no {missing[0]!r}: expected {_ROW}")
        audio = present(place, folder / "wav" / row["wav"])
        yield Utterance(
            f"{audio.stem}_{seen[audio.stem]}",
            audio,
            seconds(place, "offset", row["offset"]),
            seconds(place, "duration", row["duration"]),
            transcript,
            translation,
        )
        seen[audio.stem] += 1


def _segments(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """The mappings of a YAML list, values as they are written, each with its place.

    Reads events, never objects: nothing in the file can run, 230,000 segments take seconds and no
    tree of them is held.
    """
    row: dict[str, str] | None = None
    key, place = None, f"{path}:1"
    try:
        with path.open("rb") as stream:
            for event in yaml.parse(stream, Loader=_PARSER):
                here = f"{path}:{event.start_mark.line + 1}"
                if row is None:
                    if isinstance(event, yaml.MappingStartEvent):
                        row, key, place = {}, None, here
                    elif isinstance(event, (yaml.ScalarEvent, yaml.AliasEvent)):
                        raise ValueError(f"{here}: expected a list of {_ROW}")
                elif isinstance(event, yaml.MappingEndEvent):
                    yield place, row
                    row = None
                elif not isinstance(event, yaml.ScalarEvent):
                    raise ValueError(f"{here}: expected {_ROW}")
                elif key is None:
                    key = event.value
                else:
                    row[key], key = event.value, None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}:{mark.line + 1}" if mark is not None else place
        why = getattr(error, "problem", None) or getattr(error, "reason", "unknown")
        raise ValueError(f"{where}: not YAML ({why}): fetch the file again") from None
