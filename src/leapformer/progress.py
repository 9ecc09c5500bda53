"""How much has been said so far: an address for cross-attention, without any length.

Proportions learned from content do not say where in the source a unit stands, so a linear
cross-attention confuses units of the same kind. Learned progress is a monotone count that the model
learns of what it has heard,

    s_j = sum over l <= j of sigmoid(w . x_l + b - 2)

over the source states x; at the start a state counts for about an eighth. It is encoded
sinusoidally, projected and added to the keys; the index of the target token, encoded alike, is
added to the queries. In a stream it is one running sum.
"""

import torch
from torch import Tensor, nn


class Progress(nn.Module):
    """The count: source states x [B, S, hidden] -> s [B, S], float64, growing along S.

    Args:
        hidden: width of x.
    """

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.rate = nn.Linear(hidden, 1)

    def forward(
        self, x: Tensor, mask: Tensor | None = None, before: Tensor | None = None
    ) -> Tensor:
        """`mask` [B, S] is False at padding, which does not count; `before` [B] is what was counted
        up to here, in a stream."""
        if mask is not None:
            x = x.masked_fill(~mask.unsqueeze(-1), 0)
        rate = torch.sigmoid(self.rate(x).squeeze(-1).double() - 2)
        if mask is not None:
            rate = rate.masked_fill(~mask, 0)
        count = rate.cumsum(1)
        return count if before is None else count + before.unsqueeze(1)
