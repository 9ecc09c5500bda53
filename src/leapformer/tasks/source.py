"""What a task reads from its user's disk, before it becomes a data set."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

Example = tuple[tuple[bytes, ...], int]
"""Of the arena: the sequences of an example (one, or two for a pair), a token id a byte, and its
label. A language model's examples are `Document`s."""


@dataclass(frozen=True)
class Document:
    """A text and where it comes from."""

    name: str
    text: str


@dataclass(frozen=True)
class Source:
    """Examples in the layout that was found.

    Attributes:
        layout: its name, such as "aclImdb".
        splits: "train", "test" and, where the layout has one, "validation": each a function that
            reads the examples of the split anew, in an order that does not depend on the machine.
            Reading raises ValueError or OSError, naming the file, for what is malformed.
        official: how many examples each split of the published release has; None for layouts that
            anyone may fill.
    """

    layout: str
    splits: dict[str, Callable[[], Iterator[Any]]]
    official: dict[str, int] | None = None
