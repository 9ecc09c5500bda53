"""A corpus as token ids on disk, mapped into memory, in rows of any length."""

from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, load_from_disk
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from ...results import read_json
from ..files import SPLITS
from ..pretrained import fingerprint
from .recipes import LMRecipe
from .tokens import pieces

ABOUT, TOKENIZER = "about.json", "tokenizer"


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text, without an end."""
    ids: list[int] = []
    for piece in pieces(text):
        ids += tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids
    return ids


def load(folder: Path) -> tuple[dict[str, "Tokens"], PreTrainedTokenizerFast, dict[str, Any]]:
    """What `prepare` left: tokens by split, the tokenizer, and what identifies them.

    Raises FileNotFoundError where nothing is prepared and ValueError where it is damaged.
    """
    folder = folder.expanduser()
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(
            f"no tokens in {folder}: leapformer lm prepare --source ... --out {folder}"
        )
    about = read_json(folder / ABOUT)
    try:
        data, made = load_from_disk(str(folder)), about["splits"]
        splits = {name: Tokens.of(data[name]) for name in SPLITS}
        found = {name: {**made[name], **tokens.counts()} for name, tokens in splits.items()}
        whole = found == made and fingerprint(folder / TOKENIZER) == about["tokenizer"]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / TOKENIZER))
        whole = whole and len(tokenizer) == about["vocab_size"] and tokenizer.eos_token is not None
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({error}): delete it and make it anew") from None
    if not whole:
        raise ValueError(f"{folder} is not as it was made: delete it and make it anew")
    return splits, tokenizer, about


@dataclass(frozen=True)
class Tokens:
    """Documents end to end: `tokens[a:b]` are int64 ids, whatever documents they belong to.

    Attributes:
        parts: the ids of each document, mapped from disk.
        starts: where each document begins, and the end of the last; int64 [documents + 1].
        sizes: of the text of each document bytes in UTF-8, and words between blanks; int64
            [2, documents].
        scored: which tokens are to be predicted, bool [tokens]; None for all.
    """

    parts: list[NDArray[Any]]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]
    scored: NDArray[np.bool_] | None = None

    @staticmethod
    def of(data: Dataset) -> "Tokens":
        """The tokens of a split that `prepare` left."""
        column = data.data.column
        parts = [
            chunk.values.to_numpy(zero_copy_only=True)[a:b]
            for chunk in column("input_ids").chunks
            for a, b in pairwise(chunk.offsets.to_pylist())
        ]
        return Tokens.join(parts, column("bytes").to_numpy(), column("words").to_numpy())

    @staticmethod
    def join(parts: list[NDArray[Any]], count_bytes: ArrayLike, count_words: ArrayLike) -> "Tokens":
        """Documents that are there already, with the sizes of each."""
        starts = np.cumsum([0, *map(len, parts)])
        sizes = np.array([count_bytes, count_words], np.int64).reshape(2, len(parts))
        return Tokens(parts, starts, sizes)

    @property
    def bytes(self) -> int:
        """Of all texts, in UTF-8."""
        return int(self.sizes[0].sum())

    @property
    def words(self) -> int:
        """Of all texts, between blanks."""
        return int(self.sizes[1].sum())

    def counts(self) -> dict[str, int]:
        """Documents, tokens, bytes and words."""
        return {
            "documents": len(self.parts),
            "tokens": len(self),
            "bytes": self.bytes,
            "words": self.words,
        }

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, place: slice) -> NDArray[np.int64]:
        begin, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError(f"the step is {step}: tokens are read one after the other")
        first = int(np.searchsorted(self.starts, begin, "right")) - 1
        found = []
        while begin < stop:
            start, end = self.starts[first], min(self.starts[first + 1], stop)
            found.append(self.parts[first][begin - start : end - start])
            begin, first = int(end), first + 1
        return np.concatenate([np.zeros(0, np.int64), *found])

    def first(self, count: int | None) -> "Tokens":
        """Whole documents from the start until there are `count` tokens; None for all."""
        if count is None:
            return self
        keep = min(int(np.searchsorted(self.starts, count)), len(self.parts))
        kept = Tokens.join(self.parts[:keep], *self.sizes[:, :keep])
        return kept if self.scored is None else replace(kept, scored=self.scored[: len(kept)])


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of `length` tokens, one behind the other; what is left at the end is dropped.

    An item has `input_ids` [length] and `starts`, where documents begin inside it, 0 included.
    At most `limit` rows are taken, spread evenly.
    """

    def __init__(self, tokens: Tokens, length: int, limit: int | None = None) -> None:
        whole = len(tokens) // length
        if not whole:
            raise ValueError(
                f"the split has {len(tokens)} tokens, fewer than a row of {length}: give a smaller "
                "--sequence-length, or more text"
            )
        self.tokens, self.length = tokens, length
        count = min(limit or whole, whole)
        self.chosen = np.arange(count, dtype=np.int64) * whole // count

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        begin = int(self.chosen[i]) * self.length
        starts = self.tokens.starts
        inside = starts[np.searchsorted(starts, begin, "right") :]
        inside = inside[: np.searchsorted(inside, begin + self.length)]
        return {
            "input_ids": torch.from_numpy(self.tokens[begin : begin + self.length]),
            "starts": [0, *(inside - begin).tolist()],
        }


@dataclass(frozen=True)
class Collator:
    """Rows to a batch: `input_ids` and `labels` [B, N]; with documents apart one packed row
    [1, B * N] with its `cu_seq_lens_q`. The first token of each row is not predicted."""

    recipe: LMRecipe

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        labels = ids.clone()
        labels[:, 0] = -100
        if self.recipe.documents == "joined":
            return {"input_ids": ids, "labels": labels}
        length = ids.shape[1]
        starts = [i * length + start for i, row in enumerate(rows) for start in row["starts"]]
        bounds = torch.tensor([*starts, ids.numel()], dtype=torch.int32)
        labels = labels.view(1, -1)
        labels[:, starts] = -100
        return {"input_ids": ids.view(1, -1), "labels": labels, "cu_seq_lens_q": bounds}
