"""A short convolution over time: each token gets a glance at the few before it."""

import torch
from torch import Tensor, nn


class ShortConvolution(nn.Module):
    """x [B, N, hidden] -> [B, N, hidden]: y_i = sum_t w_t * x_{i-t}, each channel by itself.

    No tap reaches beyond the first token of a sequence, which `positions` tell: neither into
    padding, nor into another document. It starts as the identity.

    Args:
        hidden: the channels.
        size: how many taps, the token itself included.
    """

    def __init__(self, hidden: int, size: int) -> None:
        super().__init__()
        if size < 1:
            raise ValueError(f"size is {size}: a convolution has at least one tap")
        self.taps = nn.Parameter(torch.zeros(size, hidden))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Back to the identity."""
        with torch.no_grad():
            self.taps.zero_()[0] = 1

    def forward(
        self, x: Tensor, positions: Tensor, recent: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Also gives the last size - 1 inputs, [B, size - 1, hidden], to go on from as `recent`.
        `positions` [N] or [B, N] count from 0 in each sequence."""
        back = len(self.taps) - 1
        if recent is None:
            recent = x.new_zeros(len(x), back, x.shape[-1])
        whole = torch.cat([recent, x], 1)
        y = x * self.taps[0]
        for t in range(1, back + 1):
            before = whole[:, back - t : whole.shape[1] - t]
            there = (positions >= t).unsqueeze(-1)
            y = y + torch.where(there, before, 0) * self.taps[t]
        return y, whole[:, whole.shape[1] - back :]
