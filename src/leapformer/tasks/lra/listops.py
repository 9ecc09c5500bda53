"""ListOps (Nangia & Bowman 2018) in its Long-Range Arena form (Tay et al., arXiv 2011.04006).

A tree of operators over digits, written in prefix form, and the digit it evaluates to:

    [MAX 2 9 [MIN 4 7 ] 0 ]  ->  9

MIN, MAX, MED (integer part of the median) and SM (sum modulo 10). The parentheses of the original
files are dropped and every closing bracket is one token.

Trees are sampled level by level, thousands at a time: a node is an operator with probability 0.25
unless it is at the largest depth, and then has 2 to 10 arguments. A tree is kept if its length lies
strictly between the bounds and it was not seen before.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ..source import Example, Source

PAD = "<pad>"
OPERATORS = ("[MIN", "[MAX", "[MED", "[SM")
VOCABULARY = (PAD, *OPERATORS, "]", *(str(digit) for digit in range(10)))
IDS = {token: i for i, token in enumerate(VOCABULARY)}
_CLOSE, _ZERO = IDS["]"], IDS["0"]
_MIN, _MAX, _MED, _SM = range(4)

Ids = NDArray[np.int8]


@dataclass(frozen=True)
class TreeShape:
    """What trees are kept: min_length < tokens < max_length, and how they are grown."""

    min_length: int = 500
    max_length: int = 2000
    max_depth: int = 10
    max_arguments: int = 10
    operator_probability: float = 0.25

    def __post_init__(self) -> None:
        if not 0 <= self.min_length < self.max_length - 1:
            raise ValueError(f"{self}: no length lies strictly between the bounds")
        if self.max_depth < 1 or self.max_arguments < 2:
            raise ValueError(f"{self}: max_depth must be at least 1 and max_arguments at least 2")
        if not 0 <= self.operator_probability <= 1:
            raise ValueError(f"{self}: operator_probability must lie in [0, 1]")


def evaluate(tokens: list[str]) -> int:
    """The digit a sequence of tokens evaluates to; parentheses are skipped.

    Raises ValueError, naming the token, for what is no ListOps tree.
    """
    stack: list[tuple[str, list[int]]] = []
    result: int | None = None
    for place, token in enumerate(tokens):
        if token in "()":
            continue
        if result is not None:
            raise ValueError(f"token {place + 1}, {token!r}, follows a complete tree")
        if token in OPERATORS:
            stack.append((token, []))
            continue
        if token == "]":
            if not stack or not stack[-1][1]:
                raise ValueError(f"token {place + 1} closes what holds no argument")
            operator, arguments = stack.pop()
            value = _apply(operator, sorted(arguments))
        elif token in IDS and token != PAD:
            value = int(token)
        else:
            raise ValueError(f"token {place + 1}, {token!r}, is no digit, operator or bracket")
        if stack:
            stack[-1][1].append(value)
        else:
            result = value
    if result is None:
        raise ValueError("the tree ends before it is complete" if stack else "the tree is empty")
    return result


def _apply(operator: str, ordered: list[int]) -> int:
    middle = ordered[(len(ordered) - 1) // 2] + ordered[len(ordered) // 2]
    return {
        "[MIN": ordered[0],
        "[MAX": ordered[-1],
        "[MED": middle // 2,
        "[SM": sum(ordered) % 10,
    }[operator]


def decode(ids: NDArray[np.integer] | list[int]) -> list[str]:
    """Token ids back to tokens, padding left out."""
    return [VOCABULARY[i] for i in ids if i]


def sample(
    count: int, shape: TreeShape, seed: int, progress: bool = True
) -> tuple[list[Ids], NDArray[np.int64]]:
    """`count` different trees as token ids, with the values they evaluate to.

    The same seed gives the same trees. Raises ValueError where no further new tree turns up.
    """
    random = np.random.default_rng(seed)
    trees: list[Ids] = []
    values: list[int] = []
    seen: set[bytes] = set()
    barren = 0
    with tqdm(total=count, desc="ListOps trees", unit="tree", disable=not progress) as bar:
        while len(trees) < count:
            before = len(trees)
            for ids, value in _grow(random, shape, roots=8192):
                digest = hashlib.blake2b(ids.tobytes(), digest_size=16).digest()
                if digest not in seen and len(trees) < count:
                    seen.add(digest)
                    trees.append(ids)
                    values.append(value)
            bar.update(len(trees) - before)
            barren = 0 if len(trees) > before else barren + 1
            if barren == 20:
                raise ValueError(
                    f"{len(trees)} of {count} trees found and no new one in {20 * 8192} attempts: "
                    f"{shape} leaves too few"
                )
    return trees, np.array(values, np.int64)


@dataclass
class _Level:
    """All nodes of one depth, parents in order, the children of a parent side by side."""

    root: NDArray[np.int64]
    operator: NDArray[np.int8]  # -1 for a digit
    digit: NDArray[np.int64]
    arguments: NDArray[np.int64]  # 0 for a digit
    size: NDArray[np.int64] = field(init=False)
    value: NDArray[np.int64] = field(init=False)

    def keep(self, roots: NDArray[np.bool_]) -> "_Level":
        chosen = roots[self.root]
        return _Level(
            self.root[chosen], self.operator[chosen], self.digit[chosen], self.arguments[chosen]
        )


def _grow(random: np.random.Generator, shape: TreeShape, roots: int) -> Iterator[tuple[Ids, int]]:
    """Grow so many trees at once and give those whose length fits: (token ids, value)."""
    levels: list[_Level] = []
    parents = np.arange(roots)
    length = np.zeros(roots, np.int64)
    for depth in range(1, shape.max_depth + 1):
        nodes = len(parents)
        inner = random.random(nodes) < shape.operator_probability
        inner &= depth < shape.max_depth
        operator = np.where(inner, random.integers(0, 4, nodes), -1).astype(np.int8)
        arguments = np.where(inner, random.integers(2, shape.max_arguments + 1, nodes), 0)
        levels.append(_Level(parents, operator, random.integers(0, 10, nodes), arguments))
        length += np.bincount(parents, np.where(inner, 2, 1), roots).astype(np.int64)
        arguments[length[parents] >= shape.max_length] = 0  # too long already: grow it no further
        parents = np.repeat(parents, arguments)
        if not len(parents):
            break

    fits = (length > shape.min_length) & (length < shape.max_length)
    levels = [level.keep(fits) for level in levels]
    below: _Level | None = None
    for level in reversed(levels):
        _measure(level, below)
        below = level
    yield from _write(levels)


def _measure(level: _Level, below: _Level | None) -> None:
    """Sizes and values of a level from those of the level below."""
    inner = level.operator >= 0
    level.size = np.where(inner, 2, 1)
    level.value = level.digit.copy()
    if below is None or not inner.any():
        return
    count = level.arguments[inner]
    first = np.cumsum(count) - count
    level.size[inner] += np.add.reduceat(below.size, first)

    argument = np.repeat(np.arange(len(count)), count)
    ordered = below.value[np.lexsort((below.value, argument))]
    middle = ordered[first + (count - 1) // 2] + ordered[first + count // 2]
    choices = np.stack(
        [
            ordered[first],
            ordered[first + count - 1],
            middle // 2,
            np.add.reduceat(ordered, first) % 10,
        ]
    )
    level.value[inner] = choices[level.operator[inner], np.arange(len(count))]


def _write(levels: list[_Level]) -> Iterator[tuple[Ids, int]]:
    """The trees as token ids: each node knows its place once its parent's is known."""
    top = levels[0]
    ends = np.cumsum(top.size)
    text = np.empty(ends[-1] if len(ends) else 0, np.int8)
    place = ends - top.size
    for depth, level in enumerate(levels):
        inner = level.operator >= 0
        text[place] = np.where(inner, level.operator + IDS["[MIN"], level.digit + _ZERO)
        text[place[inner] + level.size[inner] - 1] = _CLOSE
        if depth + 1 < len(levels):
            size, count = levels[depth + 1].size, level.arguments[inner]
            before = np.cumsum(size) - size
            first = (np.cumsum(count) - count).clip(max=max(len(size) - 1, 0))
            within = before - np.repeat(before[first], count) if len(size) else before
            place = np.repeat(place[inner] + 1, count) + within
    for start, end, value in zip(ends - top.size, ends, top.value, strict=True):
        yield text[start:end].copy(), int(value)


def read(source: Path) -> Source:
    """Long-Range Arena's release: a folder with `basic_{train,val,test}.tsv`.

    Raises FileNotFoundError where one of the three is missing, and on reading ValueError with file
    and line for a tree that is malformed or has another value.
    """
    files = {"train": "basic_train.tsv", "validation": "basic_val.tsv", "test": "basic_test.tsv"}
    for name in files.values():
        if not (source / name).is_file():
            raise FileNotFoundError(
                f"{source / name} is not there: expected a folder with {', '.join(files.values())}"
            )
    return Source(
        "basic_*.tsv",
        {split: partial(read_tsv, source / name) for split, name in files.items()},
        {"train": 96_000, "validation": 2_000, "test": 2_000},
    )


def read_tsv(path: Path) -> Iterator[Example]:
    """A header `Source<TAB>Target`, then a tree and its value a line. Raises ValueError with file
    and line for anything else, also for a value that is not what the tree evaluates to."""
    number = 0
    with path.open("rb") as lines:
        for number, raw in enumerate(lines, 1):
            try:
                line = raw.decode("utf-8")
            except UnicodeDecodeError:
                raise ValueError(f"{path}:{number}: not UTF-8 text") from None
            tree, tab, target = line.rstrip("\r\n").partition("\t")
            if number == 1:
                if (tree, target) != ("Source", "Target"):
                    raise ValueError(f"{path}:1: expected the header Source<TAB>Target")
                continue
            tokens = [token for token in tree.split() if token not in "()"]
            try:
                value = evaluate(tokens)
            except ValueError as error:
                raise ValueError(f"{path}:{number}: {error}") from None
            if not tab or target.strip() != str(value):
                raise ValueError(
                    f"{path}:{number}: expected a tab and the tree's value, {value}, "
                    f"after the tree; found {tab + target!r}"
                )
            yield (bytes(IDS[token] for token in tokens),), value
    if number < 2:
        raise ValueError(f"{path}: no trees in it")
