"""Utterances to batches: padded features, labels, and how long to wait."""

import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...models.speech_processor import padded_labels
from .data import SpeechData
from .recipes import SpeechRecipe


class Collator:
    """Items of `Utterances` to `input_features` [B, T, bins], `attention_mask` [B, T], `labels`
    [B, N], with CTC `ctc_labels` [B, M], and `wait_k`.

    Args:
        data: what `prepare` left.
        recipe: what is drawn: k from `waits`, and what SpecAugment hides.
        seed: of that; what is drawn follows from it, the epoch and which utterances meet in a
            batch, so that a run which was stopped goes on as if nothing had happened.
        order: knows the epoch of training; None for validation: `validation_wait`, nothing hidden.
        recognise: labels are transcripts, and all of the source is seen.
    """

    def __init__(
        self,
        data: SpeechData,
        recipe: SpeechRecipe,
        seed: int = 0,
        order: "ByLength | None" = None,
        recognise: bool = False,
    ) -> None:
        self.data, self.recipe, self.order, self.recognise = data, recipe, order, recognise
        self.seed = seed

    def __call__(self, items: list[dict[str, Any]]) -> dict[str, Any]:
        together = zlib.crc32("\n".join(item["id"] for item in items).encode())
        epoch = 0 if self.order is None else self.order.epoch
        chance = np.random.default_rng([self.seed, epoch, together])
        frames = [torch.from_numpy(np.array(item["input_features"])) for item in items]
        if self.order is not None:
            frames = [hidden(part, self.recipe, chance) for part in frames]
        lengths = torch.tensor([len(part) for part in frames])
        features = pad_sequence(frames, batch_first=True)
        transcripts = [item["transcript"] for item in items]
        batch = {
            "input_features": features,
            "attention_mask": (torch.arange(features.shape[1]) < lengths.unsqueeze(1)).long(),
        }
        if self.recognise:
            return {**batch, "labels": padded_labels(self.data.transcript_tokenizer, transcripts)}
        batch["labels"] = padded_labels(
            self.data.processor.tokenizer, [item["translation"] for item in items]
        )
        if self.recipe.ctc_weight:
            ends = self.data.transcript_tokenizer
            batch["ctc_labels"] = padded_labels(ends, transcripts, end=False)
        wait = self.recipe.validation_wait
        if self.order is not None:
            wait = int(chance.choice(self.recipe.waits))
        return {**batch, "wait_k": wait or None}


class ByLength(torch.utils.data.Sampler[int]):
    """Numbers 0, 1, ... in an order drawn for each epoch, in which those of like length follow each
    other: little padding in batches, which then come in any order of length.

    Args:
        lengths: of each.
        batch: so many are used together.
        seed: of the order; with the epoch it says everything.
    """

    together = 50
    """Batches that are sorted among each other, at most; a quarter of a smaller corpus."""

    def __init__(self, lengths: NDArray[np.int64], batch: int, seed: int) -> None:
        self.lengths, self.batch, self.seed, self.epoch = lengths, batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Which order is next."""
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        chance = np.random.default_rng([self.seed, self.epoch])
        order = chance.permutation(len(self.lengths))
        many = max(1, min(self.together, len(order) // self.batch // 4)) * self.batch
        batches = []
        for i in range(0, len(order), many):
            part = order[i : i + many]
            part = part[np.argsort(self.lengths[part], kind="stable")]
            batches += [part[j : j + self.batch] for j in range(0, len(part), self.batch)]
        last = [] if len(batches[-1]) == self.batch else [batches.pop()]
        chance.shuffle(batches)
        yield from np.concatenate([*batches, *last]).tolist()


def hidden(frames: Tensor, recipe: SpeechRecipe, chance: np.random.Generator) -> Tensor:
    """Frames [T, bins] with bands and spans set to the mean (SpecAugment, arXiv 1904.08779)."""
    frames = frames.clone()
    count, bins = frames.shape
    for _ in range(recipe.frequency_masks):
        width = int(chance.integers(min(recipe.frequency_width, bins) + 1))
        first = int(chance.integers(bins - width + 1))
        frames[:, first : first + width] = 0
    for _ in range(recipe.time_masks):
        width = int(chance.integers(min(recipe.time_width, count // 5) + 1))
        first = int(chance.integers(count - width + 1))
        frames[first : first + width] = 0
    return frames
