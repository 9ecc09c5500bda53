"""When to read and when to write: wait-k, in training and in a stream.

Token i of the translation may see the first `ratio * (k + i)` states of the source (Ma et al.,
STACL, arXiv 1810.08398; units of `ratio` states are the fixed pre-decision of Ma et al., SimulMT to
SimulST, arXiv 2011.02048). `WaitK.visible` is what training sees, `WaitK.writes` what a stream
does: the same rule read two ways.
"""

import sys
from dataclasses import dataclass

from ...ops import Visible


@dataclass(frozen=True)
class WaitK:
    """Wait for k units of the source, then write a token for each further one.

    Attributes:
        k: units before the first token, at least 1; None waits for all of the source.
        ratio: encoder states of a unit.
    """

    k: int | None
    ratio: int

    def __post_init__(self) -> None:
        if (self.k is not None and self.k < 1) or self.ratio < 1:
            raise ValueError(
                f"k is {self.k} and the ratio {self.ratio}: both are at least 1 (or k None)"
            )

    @property
    def visible(self) -> Visible:
        """Which states each target token sees."""
        return Visible.all() if self.k is None else Visible.wait_k(self.k, self.ratio)

    def needs(self, token: int) -> int:
        """States of the source that must have been heard, unless it is over, to write token number
        `token`, counted from 0."""
        return self.visible.count(token, sys.maxsize)

    def writes(self, token: int, heard: int, finished: bool) -> bool:
        """WRITE that token now (True), or READ on (False)? `heard` states are there so far."""
        return finished or heard >= self.needs(token)


def parse_wait(word: str) -> int | None:
    """Units of the source to wait for, at least 1, or None for "all". Raises ValueError for another
    word."""
    word = str(word).strip()
    if word == "all":
        return None
    if not word.isdecimal() or not int(word):
        raise ValueError(f"a wait is {word!r}: give units of the source, such as 3, or all")
    return int(word)
