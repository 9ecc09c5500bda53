"""Copying a string, and looking a number up in a phone book.

The two tasks of "Repeat After Me: Transformers are Better than State Space Models at Copying"
(Jelassi et al., ICML 2024, arXiv 2402.01032).
"""

from collections.abc import Callable
from hashlib import blake2b

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...models.base import IGNORED
from .recipes import ProbeRecipe

PAD, BOS, EOS, ASK, ANSWER = range(5)
DIGIT = 5
LETTER = DIGIT + 10
"""The first digit and the first letter; the others follow."""
HELD_OUT = 8
"""One in so many prompts, told by a hash of the prompt, is never trained on."""

Ids = NDArray[np.int64]


def copy(recipe: ProbeRecipe, length: int, chance: np.random.Generator) -> tuple[Ids, Ids]:
    """A string to copy: prompt `<bos> x <answer>` and answer `x <eos>`."""
    string = LETTER + chance.integers(recipe.letters, size=length)
    return np.array([BOS, *string, ANSWER]), np.array([*string, EOS])


def phonebook(recipe: ProbeRecipe, length: int, chance: np.random.Generator) -> tuple[Ids, Ids]:
    """A book of so many entries `name number`, then `<ask> name`; the answer is the number,
    as in the book, and `<eos>`. Names differ, numbers need not."""
    places = recipe.letters ** np.arange(recipe.name_length)
    drawn = chance.choice(recipe.letters**recipe.name_length, length, replace=False)
    names = LETTER + drawn[:, None] // places % recipe.letters
    numbers = DIGIT + chance.integers(10, size=(length, recipe.number_length))
    asked = chance.integers(length)
    book = np.concatenate([names, numbers], 1).ravel()
    return np.array([BOS, *book, ASK, *names[asked]]), np.array([*numbers[asked], EOS])


SAMPLERS: dict[str, Callable[[ProbeRecipe, int, np.random.Generator], tuple[Ids, Ids]]] = {
    "copy": copy,
    "phonebook": phonebook,
}


def draw(
    recipe: ProbeRecipe, length: int, chance: np.random.Generator, held_out: bool
) -> tuple[Ids, Ids]:
    """Prompt and answer of that length, of those held out or of the others.

    Raises ValueError where there are none: very short strings of very few letters.
    """
    for _ in range(100 * HELD_OUT):
        prompt, answer = SAMPLERS[recipe.task](recipe, length, chance)
        digest = blake2b(prompt.tobytes(), digest_size=1).digest()
        if (digest[0] % HELD_OUT == 0) == held_out:
            return prompt, answer
    raise ValueError(
        f"length {length}, {recipe.letters} letters: too few prompts to hold some out for the "
        "evaluation: raise the length or --letters"
    )


class Rows(torch.utils.data.Dataset[tuple[Ids, Ids]]):
    """`count` rows of the trained lengths; row i follows from `seed` and i alone."""

    def __init__(self, recipe: ProbeRecipe, seed: int, count: int, held_out: bool = False) -> None:
        self.recipe, self.seed, self.count, self.held_out = recipe, seed, count, held_out

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Ids, Ids]:
        if not 0 <= i < self.count:
            raise IndexError(f"row {i} of {self.count}")
        chance = np.random.default_rng([self.held_out, self.seed, i])
        length = chance.integers(self.recipe.min_length, self.recipe.max_length + 1)
        return draw(self.recipe, int(length), chance, self.held_out)


def collate(rows: list[tuple[Ids, Ids]]) -> dict[str, Tensor]:
    """Rows to a batch, padded on the right; labels on the answers alone."""
    ends = torch.tensor([len(prompt) + len(answer) for prompt, answer in rows])
    mask = torch.arange(int(ends.max())) < ends[:, None]
    ids, labels = torch.full(mask.shape, PAD), torch.full(mask.shape, IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : ends[i]] = torch.from_numpy(np.concatenate([prompt, answer]))
        labels[i, len(prompt) : ends[i]] = torch.from_numpy(answer)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def evaluation_rows(recipe: ProbeRecipe, length: int) -> tuple[Tensor, Tensor]:
    """Held-out prompts [B, P] and answers [B, A] of one length; the same for all models."""
    keys = ([2, length, i] for i in range(recipe.evaluate_rows))
    rows = [draw(recipe, length, np.random.default_rng(key), True) for key in keys]
    prompts, answers = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return prompts, answers
