"""Tokens and, where wanted, their positions as vectors."""

import math

import torch
from torch import Tensor, nn

POSITIONS = ("learned", "sinusoidal", "none")


class TokenEmbedding(nn.Module):
    """Token ids [B, N], or vectors [B, N, hidden], to vectors with positions added.

    Args:
        vocab_size: number of token ids.
        hidden: width.
        positions: "learned" (a table of max_length rows), "sinusoidal" (any length) or "none".
        max_length: rows of the learned table.
        padding_idx: the id whose vector stays zero and untrained, if any.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden: int,
        positions: str,
        max_length: int,
        padding_idx: int | None = None,
    ) -> None:
        super().__init__()
        if positions not in POSITIONS:
            raise ValueError(f"unknown positions {positions!r}: choose from {', '.join(POSITIONS)}")
        if positions == "sinusoidal" and hidden % 2:
            raise ValueError(f"the width is {hidden}: sinusoidal positions need an even one")
        self.tokens = nn.Embedding(vocab_size, hidden, padding_idx)
        self.table = nn.Embedding(max_length, hidden) if positions == "learned" else None
        self.positions = positions

    def forward(
        self, input_ids: Tensor | None = None, vectors: Tensor | None = None, start: int = 0
    ) -> Tensor:
        if vectors is None:
            vectors = self.tokens(input_ids)
        end = start + vectors.shape[1]
        place = torch.arange(start, end, device=vectors.device)
        if self.table is not None:
            if end > self.table.num_embeddings:
                raise ValueError(
                    f"the sequence is {end} long and the table of learned positions has "
                    f"{self.table.num_embeddings} rows: raise max_position_embeddings, "
                    'or take "sinusoidal" or no positions'
                )
            return vectors + self.table(place)
        if self.positions == "sinusoidal":
            return vectors + sinusoids(place, vectors.shape[-1]).to(vectors.dtype)
        return vectors


def sinusoids(positions: Tensor, width: int) -> Tensor:
    """Sines and cosines of positions [...] at geometric frequencies, float32 [..., width], width
    even (Vaswani et al., 2017, section 3.5)."""
    steps = torch.arange(0, width, 2, device=positions.device) / width
    angle = positions.unsqueeze(-1) * torch.exp(-math.log(10000.0) * steps)
    return torch.cat([angle.sin(), angle.cos()], -1)
