"""Retrieval: does one paper cite another? Both are read byte by byte, each on its own.

Long-Range Arena's release has the pairs. From documents and their links they are made here: a pair
that is not linked has its left side from one link and its right side from another link of the same
split. So each document stands on each side of as many linked as unlinked pairs, in every split, and
to know that a document is cited often is of no use.
"""

import ast
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from ..files import SPLITS, Layout, Row, json_layout, json_lines, lines, recognise
from ..source import Example, Source

OFFICIAL = {"train": 147_086, "validation": 18_090, "test": 17_437}
"""Pairs in Long-Range Arena's release (the AAN corpus, Radev et al. 2013)."""

SEED = 0
"""Splits documents with links, and says which are not linked."""

_RELEASE = {
    "train": "new_aan_pairs.train.tsv",
    "validation": "new_aan_pairs.eval.tsv",
    "test": "new_aan_pairs.test.tsv",
}
_LABELS = {"0": 0, "0.0": 0, "1": 1, "1.0": 1}
_DOCUMENTS = ("docs.jsonl", "docs.jsonl.gz", "docs.jsonl.xz")
_LINKS = "citations.tsv"
_ATTEMPTS = 20
_ROUNDS = 100

Link = tuple[str, str]


def read(source: Path) -> Source:
    """Pairs of documents as bytes of UTF-8, whole; label 1 is for linked ones.

    Layouts: Long-Range Arena's release, documents with their links, or JSON lines. Raises
    FileNotFoundError or ValueError, naming what `source` holds and the layouts, where it has none.
    """
    return recognise(
        source,
        (
            Layout(
                "Long-Range Arena's release: new_aan_pairs.{train,eval,test}.tsv, "
                "columns label, id, id, text, text",
                _release,
            ),
            Layout(
                f"documents with links: docs.jsonl, plain, .gz or .xz ('id' and 'text'), and "
                f"{_LINKS} (two ids a line, tab between them)",
                _documents,
            ),
            json_layout(_pair, "'text1', 'text2' and 'label' (0 or 1)"),
        ),
    )


def _release(source: Path) -> Source | None:
    files = {split: source / name for split, name in _RELEASE.items()}
    missing = [file for file in files.values() if not file.is_file()]
    if len(missing) == len(files):
        return None
    if missing:
        raise FileNotFoundError(f"{missing[0]} is missing")
    splits = {split: partial(_table, file) for split, file in files.items()}
    return Source("Long-Range Arena's release", dict(splits), dict(OFFICIAL))


def _table(file: Path) -> Iterator[Example]:
    place = ""
    for place, line in lines(file):
        columns = line.split("\t")
        if len(columns) != 5:
            raise ValueError(
                f"{place}: expected 5 columns (label, id, id, text, text) with tabs between them, "
                f"found {len(columns)}; if it is the last line, the file was cut: extract it again"
            )
        if columns[0] not in _LABELS:
            raise ValueError(f"{place}: expected the label 0.0 or 1.0, found {columns[0]!r:.50}")
        yield _texts(place, columns[3:]), _LABELS[columns[0]]
    if not place:
        raise ValueError(f"{file}: no pairs in it")


def _texts(place: str, columns: list[str]) -> tuple[bytes, ...]:
    """The bytes of both texts. The release has them as Python writes bytes, b'...', all but
    printable ASCII escaped. Where neither begins so, they are taken as they are."""
    texts = tuple(column.encode("utf-8") for column in columns)
    if any(column.startswith(("b'", 'b"')) for column in columns):
        try:
            texts = tuple(ast.literal_eval(column) for column in columns)
        except (ValueError, SyntaxError):
            texts = ()
        if not texts or not all(isinstance(text, bytes) for text in texts):
            raise ValueError(
                f"{place}: expected both texts in Python's form of bytes, b'...'; if it is the "
                "last line, the file was cut: extract it again"
            )
    if not all(texts):
        raise ValueError(f"{place}: a text is empty")
    return texts


def _pair(row: Row) -> Example:
    return (row.text("text1"), row.text("text2")), row.binary("label")


def _documents(source: Path) -> Source | None:
    documents = [source / name for name in _DOCUMENTS if (source / name).is_file()]
    citations = source / _LINKS
    if not documents and not citations.is_file():
        return None
    if not documents or not citations.is_file():
        missing = citations if documents else source / _DOCUMENTS[0]
        raise FileNotFoundError(f"{missing} is missing")
    if len(documents) > 1:
        names = " and ".join(file.name for file in documents)
        raise ValueError(f"{source}: {names} are both there: keep one")
    splits = {split: partial(_linked, documents[0], citations, split) for split in SPLITS}
    return Source("documents with links", dict(splits))


def _linked(documents: Path, citations: Path, split: str) -> Iterator[Example]:
    """A linked pair, an unlinked one, and so on."""
    texts = _by_id(documents)
    links = _links(citations, texts)
    try:
        linked, unlinked = split_pairs(links, SEED)[split]
    except ValueError as error:
        raise ValueError(f"{citations}: {error}") from None
    for pairs in zip(linked, unlinked, strict=True):
        for (left, right), label in zip(pairs, (1, 0), strict=True):
            yield (texts[left], texts[right]), label


def _by_id(documents: Path) -> dict[str, bytes]:
    texts: dict[str, bytes] = {}
    for row in json_lines(documents):
        name = row.string("id")
        if name in texts:
            raise ValueError(f"{row.place}: the id {name!r} was there before")
        texts[name] = row.text("text")
    return texts


def _links(citations: Path, texts: dict[str, bytes]) -> list[Link]:
    """Each linked pair once, sorted. Of two papers that cite each other one link is kept."""
    links: set[Link] = set()
    for place, line in lines(citations):
        ids = tuple(line.split("\t"))
        if len(ids) != 2:
            raise ValueError(
                f"{place}: expected two ids with a tab between them, found {line!r:.80}"
            )
        for name in ids:
            if name not in texts:
                raise ValueError(f"{place}: no document has the id {name!r:.80}")
        if ids[0] == ids[1]:
            raise ValueError(f"{place}: {ids[0]!r} is linked with itself")
        links.add((ids[0], ids[1]))
    return sorted(link for link in links if link < link[::-1] or link[::-1] not in links)


def split_pairs(links: list[Link], seed: int) -> dict[str, tuple[list[Link], list[Link]]]:
    """By split, 80 / 10 / 10 %: the linked pairs, and as many that are not linked.

    Each id stands on the left, and on the right, of as many linked as unlinked pairs of a split. No
    two documents make two pairs, in whichever order. `links` must hold no pair twice either. The
    same seed gives the same pairs. Raises ValueError where the links are too few or too dense.
    """
    random = np.random.default_rng(seed)
    tenth = len(links) // 10
    for _ in range(_ATTEMPTS if tenth else 0):
        order = [links[i] for i in random.permutation(len(links))]
        taken = {frozenset(link) for link in links}
        parts = order[:tenth], order[tenth : 2 * tenth], order[2 * tenth :]
        result = {}
        for split, linked in zip(("validation", "test", "train"), parts, strict=True):
            unlinked = _exchange(linked, taken, random)
            if unlinked is None:
                break
            taken |= {frozenset(pair) for pair in unlinked}
            result[split] = linked, unlinked
        else:
            return result
    raise ValueError(
        f"{len(links)} linked pairs are too few, or too many for so few documents: no split of "
        "them has as many unlinked pairs with the same documents. A few hundred links will do"
    )


def _exchange(
    links: list[Link], taken: set[frozenset[str]], random: np.random.Generator
) -> list[Link] | None:
    """The links with their right sides exchanged, so that no pair is taken or comes twice."""
    lefts = [left for left, _ in links]
    rights = [links[i][1] for i in random.permutation(len(links))]
    held = Counter(frozenset(pair) for pair in zip(lefts, rights, strict=True))

    def pairs(places: set[int]) -> list[frozenset[str]]:
        return [frozenset((lefts[i], rights[i])) for i in places]

    def faults(*places: int) -> int:
        return sum(len(p) == 1 or p in taken or held[p] > 1 for p in pairs({*places}))

    def swap(i: int, j: int) -> None:
        held.subtract(pairs({i, j}))
        rights[i], rights[j] = rights[j], rights[i]
        held.update(pairs({i, j}))

    for _ in range(_ROUNDS):
        faulty = [i for i in range(len(links)) if faults(i)]
        if not faulty:
            return list(zip(lefts, rights, strict=True))
        for i in faulty:
            j = int(random.integers(len(links)))
            before = faults(i, j)
            swap(i, j)
            if faults(i, j) > before:
                swap(i, j)
    return None
