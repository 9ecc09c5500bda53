"""What a causal model remembers between calls, as transformers' `generate` wants it."""

import dataclasses
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from ..layers import BlockState

CACHE_NAMES = ("cache", "past_key_values")
"""What transformers calls a model's cache, since version 5.24 and before; models take either."""

CACHE_NAME = next(
    x for x in CACHE_NAMES if x in {f.name for f in dataclasses.fields(BaseModelOutputWithPast)}
)
"""The one of the version that is installed; so it is called in what models give back."""


def given_cache(cache: Any, past_key_values: Any) -> Any:
    """The cache that a call was given under one of its names; ValueError where it is under both."""
    if cache is not None and past_key_values is not None:
        raise ValueError("cache and past_key_values are two names of one thing: give one of them")
    return past_key_values if cache is None else cache


class LeaPformerCache(Cache):
    """One state a block. Of linear mechanisms its size is constant, however much was read.

    Attributes:
        states: a `BlockState` for each block, None before the first token.
        length: columns read so far, padding included.
        seen: real tokens read so far of each row, int64 [B]; where the next positions begin.
    """

    def __init__(self) -> None:
        super().__init__(layers=[])
        self.reset()

    def __repr__(self) -> str:
        return f"LeaPformerCache(length={self.length})"

    def __len__(self) -> int:
        return len(self.states)

    def reset(self) -> None:
        """Forget everything."""
        self.states: list[BlockState] = []
        self.length = 0
        self.seen: Tensor | None = None

    def advance(self, states: list[BlockState], columns: int, real: Tensor) -> None:
        """Go on to these states, after so many columns, of which `real` [B] held tokens."""
        self.states = states
        self.length += columns
        self.seen = real if self.seen is None else self.seen + real

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Rows of the batch, in the order and as often as `beam_idx` names them."""
        if self.seen is not None:
            rows = beam_idx.to(self.seen.device)
            self.seen = self.seen[rows]
            self.states = [state.select(rows) for state in self.states]

    def batch_select_indices(self, indices: Tensor) -> None:
        self.reorder_cache(indices)

    def batch_repeat_interleave(self, repeats: int) -> None:
        if self.seen is not None:
            rows = torch.arange(len(self.seen), device=self.seen.device)
            self.reorder_cache(rows.repeat_interleave(repeats))

    def get_seq_length(self, layer_idx: int = 0) -> int:
        return self.length

    def get_max_length(self, layer_idx: int | None = None) -> int:
        """-1: there is none."""
        return -1

    def get_mask_sizes(self, query_length: int, layer_idx: int = 0) -> tuple[int, int]:
        return self.length + query_length, 0

    def crop(self, tokens_to_remove: int) -> None:
        """A running sum cannot take tokens back."""
        raise NotImplementedError(
            "a LeaPformerCache cannot take tokens back: start anew, or keep a copy of it"
        )

    @property
    def nbytes(self) -> int:
        """What the states hold, in bytes."""
        return sum(state.nbytes for state in self.states)

    @property
    def is_linear(self) -> list[bool]:
        """Not in the sense of transformers: its linear layers do not count what they have read, and
        `generate` would give them a whole prompt once more."""
        return [False]

    @property
    def is_croppable(self) -> bool:
        return False

    @property
    def batch_size(self) -> int:
        return -1 if self.seen is None else len(self.seen)

    @property
    def is_initialized(self) -> bool:
        return self.seen is not None
