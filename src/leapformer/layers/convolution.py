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
        self,
        x: Tensor,
        positions: Tensor,
        recent: Tensor | None = None,
        key_mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Also gives the last size - 1 inputs, [B, size - 1, hidden], to go on from as `recent`.
        `positions` [N] or [B, N] count from 0 in each sequence. `key_mask` [B, N] is True where a
        token is real: wherever padding stands, taps pass over it."""
        back, order = len(self.taps) - 1, None
        if key_mask is not None and x.shape[1] > 1:
            order = key_mask.logical_not().byte().argsort(dim=1, stable=True)  # padding goes last
            x, positions = _pick(x, order), positions.expand(key_mask.shape).gather(1, order)
        if recent is None:
            recent = x.new_zeros(len(x), back, x.shape[-1])
        whole = torch.cat([recent, x], 1)
        y = x * self.taps[0]
        for t in range(1, back + 1):
            before = whole[:, back - t : whole.shape[1] - t]
            there = (positions >= t).unsqueeze(-1)
            y = y + torch.where(there, before, 0) * self.taps[t]
        if order is not None:
            y = _pick(y, order.argsort(1))
        if key_mask is None:
            return y, whole[:, whole.shape[1] - back :]
        last = key_mask.sum(1, keepdim=True) + torch.arange(back, device=x.device)
        return y, _pick(whole, last)


def _pick(x: Tensor, columns: Tensor) -> Tensor:
    """x [B, N, hidden] at these columns [B, M]."""
    return x.gather(1, columns.unsqueeze(-1).expand(-1, -1, x.shape[-1]))
