"""Where a token stands, as a proportion in [0, 1]: the paper's idea in one file.

cosFormer re-weights attention by cos(pi/2 * (i/M - j/M)): near tokens count more. It needs the
length M, which a decoder, a stream or a translator does not have. LeaPformer (arXiv 2405.13046,
section 3) lets a small module read the proportion off the token itself:

    p = sigmoid(W2 relu(W1 phi(x)))

No position enters and no length, so there is none to know in advance, and the proportions need not
follow the order of the tokens: what belongs together can be drawn together.
"""

import torch
from torch import Tensor, nn

_ONE = [nn.Linear]
_TWO = [nn.Linear, nn.ReLU, nn.Linear]


class LeaP(nn.Module):
    """Learned proportions: x [B, H, N, D] -> p [B, H, N] in [0, 1].

    One module for the queries and one for the keys of a layer, shared by its heads. Its input is
    phi(x), the features the attention itself works with. The sigmoid is taken in float32, also
    under autocast.

    Args:
        head_dim: D, the width of a head.
        hidden: r, the width between the two linear maps; head_dim // 4 by default (the paper's
            step-down of 4). 1 stands for a single linear map.
    """

    def __init__(self, head_dim: int, hidden: int | None = None) -> None:
        super().__init__()
        hidden = max(1, head_dim // 4) if hidden is None else hidden
        if hidden < 1:
            raise ValueError(f"hidden is {hidden}: LeaP needs a width of at least 1")
        self.head_dim = head_dim
        self.proportion: nn.Module = nn.Linear(head_dim, 1)
        if hidden > 1:
            self.proportion = nn.Sequential(
                nn.Linear(head_dim, hidden), nn.ReLU(), nn.Linear(hidden, 1)
            )

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """`mask` [B, N] is False where x holds padding: whatever stands there, NaN too, then stays
        out of the proportions and of their gradients."""
        return torch.sigmoid(self._logit(x, mask))

    def _logit(self, x: Tensor, mask: Tensor | None) -> Tensor:
        if x.shape[-1] != self.head_dim:
            raise ValueError(f"x is {list(x.shape)}: expected a last axis of {self.head_dim}")
        if mask is not None:
            x = x.masked_fill(~mask[:, None, :, None], 0)
        logit: Tensor = self.proportion(x.relu()).squeeze(-1)
        return logit if logit.dtype == torch.float64 else logit.float()

    def weights(self) -> list[Tensor]:
        """What `forward` computes with, for a kernel that computes the same: W1 [r, D], b1 [r],
        W2 [1, r], b2 [1], or W [1, D], b [1] of a single linear map.

        Nothing where a call does more than the formula: a subclass, a hook, a layer that was
        quantised or adapted.
        """
        inner = self.proportion
        layers = list(inner) if type(inner) is nn.Sequential else [inner]
        kinds = [type(layer) for layer in layers]
        if type(self) is not LeaP or kinds not in (_ONE, _TWO):
            return []
        for module in (self, inner, *layers):
            if module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module):
                return []
        maps: list[Tensor] = [
            x for layer in layers for x in layer._parameters.values() if x is not None
        ]
        return maps if len(maps) == len(layers) + 1 else []


class LengthLeaP(LeaP):
    """A ramp whose length is learned: the token at position i, x_i, has the proportion

        p_i = n^s / (n^s + M(x_i)^s),    n = i + 1,    M(x) = START / exp(W2 relu(W1 phi(x)))

    which is LeaP with log(n / START) inside its sigmoid, times s. Near tokens count more, as in
    cosFormer, but M is a scale that each token tells, half way up the ramp, and no bound: p
    approaches 1 and never leaves [0, 1], however long the sequence grows. How steep the ramp is, s,
    is learned as well. Not in the paper. Args as those of LeaP.
    """

    START = 64
    """M, in tokens, where W2 relu(W1 phi(x)) is 0."""

    STEEPNESS = 2.0
    """s, before training."""

    def __init__(self, head_dim: int, hidden: int | None = None) -> None:
        super().__init__(head_dim, hidden)
        self.steepness = nn.Parameter(torch.full((1,), self.STEEPNESS))

    def forward(
        self, x: Tensor, mask: Tensor | None = None, positions: Tensor | None = None
    ) -> Tensor:
        """`positions`, whole numbers [N] or [B, N], are 0, 1, ... by default; `mask` as of LeaP."""
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        logit = self._logit(x, mask)
        further = torch.log((positions.to(logit.dtype) + 1) / self.START)
        further = further if further.dim() == 1 else further.unsqueeze(1)
        return torch.sigmoid(self.steepness.to(logit.dtype) * (logit + further))


class Ramp(nn.Module):
    """Static proportions, cosFormer's (arXiv 2202.08791): p_i = i / M for a length M known ahead.

    Args:
        max_length: M. A longer sequence has no proportion in [0, 1] and raises.
    """

    def __init__(self, max_length: int) -> None:
        super().__init__()
        if max_length < 1:
            raise ValueError(f"max_length is {max_length}: a ramp needs a positive length")
        self.max_length = max_length

    def forward(self, x: Tensor, positions: Tensor | None = None) -> Tensor:
        """Proportions [N], or [B, 1, N], of the N tokens of x [..., N, D] at `positions`, whole
        numbers [N] or [B, N]; at 0, 1, ... by default. (On a GPU and while compiling, positions
        beyond the ramp are left to `leap_attention` to refuse.)"""
        if positions is None:
            positions = torch.arange(x.shape[-2], device=x.device)
        if positions.dtype not in (torch.int32, torch.int64):
            raise TypeError(f"positions are {positions.dtype}: expected whole numbers")
        readable = positions.device.type != "cuda" and not torch.compiler.is_compiling()
        if readable and positions.numel():
            low, high = (int(bound) for bound in torch.aminmax(positions))
            if low < 0 or high >= self.max_length:
                raise ValueError(
                    f"positions {low}..{high} leave the ramp, whose max_length is "
                    f"{self.max_length}: static proportions need the length in advance (learned "
                    "ones, LeaP, do not)"
                )
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        p = positions.to(dtype) / self.max_length
        return p if p.dim() == 1 else p.unsqueeze(1)

    def extra_repr(self) -> str:
        return f"max_length={self.max_length}"
