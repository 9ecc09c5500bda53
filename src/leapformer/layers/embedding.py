"""Tokens and, where wanted, their positions as vectors."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ..ops.checks import forbid
from .adaptive import AdaptiveEmbedding

POSITIONS = ("learned", "sinusoidal", "rotary", "none")


class TokenEmbedding(nn.Module):
    """Token ids [B, N], or vectors [B, N, hidden], to vectors with positions added.

    Args:
        vocab_size: number of token ids.
        hidden: width.
        positions: "learned" (a table of max_length rows), "sinusoidal" (any length; tokens are
            scaled by the root of the width, as in Vaswani et al., 2017), "rotary" (in
            the attention, not here) or "none".
        max_length: rows of the learned table.
        padding_idx: the id whose vector starts as zero and gets no gradient from here, if any (an
            output that is tied to the table still trains it).
        cutoffs, factor: for adaptive input, see `AdaptiveEmbedding`; padding is any token then.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden: int,
        positions: str,
        max_length: int,
        padding_idx: int | None = None,
        cutoffs: list[int] | None = None,
        factor: int = 4,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"unknown positions {positions!r}: choose from {', '.join(POSITIONS)}")
        if positions == "sinusoidal" and hidden % 2:
            raise ValueError(f"the width is {hidden}: sinusoidal positions need an even one")
        self.tokens: nn.Module
        if cutoffs is None:
            self.tokens = nn.Embedding(vocab_size, hidden, padding_idx)
        else:
            self.tokens = AdaptiveEmbedding(vocab_size, hidden, cutoffs, factor)
        self.table = nn.Embedding(max_length, hidden) if positions == "learned" else None
        self.positions = positions

    def forward(
        self,
        input_ids: Tensor | None = None,
        vectors: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> Tensor:
        """`positions` [N] or [B, N], whole numbers, are 0, 1, ... by default."""
        if vectors is None:
            assert input_ids is not None
            check_ids(input_ids, self.tokens.num_embeddings)  # transformers may have resized it
            vectors = self.tokens(input_ids)
        if self.positions in ("rotary", "none"):
            return vectors
        if positions is None:
            positions = torch.arange(vectors.shape[1], device=vectors.device)
        if self.table is None:
            width = vectors.shape[-1]
            return vectors * math.sqrt(width) + sinusoids(positions, width).to(vectors.dtype)
        rows = self.table.num_embeddings
        forbid(
            (positions >= rows).any(),
            f"the sequence is longer than the table of learned positions, which has {rows} rows: "
            'raise max_position_embeddings, or take "sinusoidal" or no positions',
        )
        return vectors + self.table(positions)


def check_ids(ids: Tensor, vocab_size: Any) -> None:
    """Raises IndexError for token ids outside the vocabulary. (On a GPU and while compiling they
    are left to the device.)"""
    if ids.numel() and not torch.compiler.is_compiling() and ids.device.type == "cpu":
        low, high = torch.aminmax(ids)
        if low < 0 or high >= vocab_size:
            raise IndexError(f"token ids lie in {low}..{high}, not in 0..{vocab_size - 1}")


def rotate(x: Tensor, positions: Tensor) -> Tensor:
    """x [B, H, N, D] turned by positions [N] or [B, N], D even: dot products of two then depend on
    the distance of their positions (RoFormer, arXiv 2104.09864, eq. 34)."""
    turn = sinusoids(positions, x.shape[-1])
    sin, cos = (turn if positions.dim() == 1 else turn.unsqueeze(1)).chunk(2, -1)
    a, b = x.to(turn.dtype).chunk(2, -1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1).to(x.dtype)


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions [...] at geometric frequencies, float32 [..., width], width
    even (Vaswani et al., 2017, section 3.5)."""
    steps = torch.arange(0, width, 2, device=positions.device) / width
    angle = positions.unsqueeze(-1) * torch.exp(-math.log(10000.0) * steps)
    return torch.cat([angle.sin(), angle.cos()], -1)
