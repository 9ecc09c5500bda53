"""The five tasks of Long-Range Arena (Tay et al., arXiv 2011.04006) by name."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ..source import Source
from . import image, listops, pathfinder, retrieval, text


@dataclass(frozen=True)
class Task:
    """What a model has to know of a task.

    Attributes:
        read: the examples in a folder of its user's.
        vocab_size: number of token ids.
        num_labels: number of classes.
        length: tokens of a sequence in the arena; where throughput is measured.
        pair: an example is two sequences.
        cut: longer sequences are cut to the recipe's length; otherwise they are refused.
        side: pixels a side, of tasks on images.
    """

    read: Callable[[Path], Source]
    vocab_size: int
    num_labels: int
    length: int
    pair: bool = False
    cut: bool = False
    side: int | None = None


TASKS: dict[str, Task] = {
    "listops": Task(listops.read, len(listops.VOCABULARY), 10, 2000),
    "text": Task(text.read, 256, 2, 4000, cut=True),
    "retrieval": Task(retrieval.read, 256, 2, 4000, pair=True, cut=True),
    "image": Task(image.read, 256, 10, 1024, side=32),
    "pathfinder": Task(pathfinder.read, 256, 2, 1024, side=32),
}
