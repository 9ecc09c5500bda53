"""Skyformer (Chen et al., NeurIPS 2021, arXiv 2111.00035, sections 4.2 and 4.4), kernelized
attention by the Nystrom method.

    y = g(q, x) (g(x, x) + ridge I)^-1 g(x, k) v,    g(a, b) = exp(-||a_i - b_j||^2 / (2 sqrt(D)))

x are m rows sampled from the stacked [q; k], which makes the matrix of all pairs symmetric and
positive. The inverse is six steps of an iteration on S^-1/2 (g(x, x) + ridge I) S^-1/2, where S
holds the sums of rows: its eigenvalues lie between 0 and 1.
"""

import torch
from torch import Tensor

from ..ops.features import full_precision
from .base import EncoderAttention, Traits
from .kernelized import gaussian
from .landmarks import check_positive, inverse_times, random_draws, rows, sampled_places


class SkyformerAttention(EncoderAttention):
    """Gaussian attention through sampled rows; `kernelized` in the limit where all are sampled, the
    ridge is small and the steps are many.

    The published code samples anew at each call and starts the iteration from the largest norm in
    the batch; here the rows are drawn once, and each matrix starts from its own norm.

    Args:
        features: m, how many rows are sampled; all 2n of a sequence of n tokens where m will do.
        ridge: what is added on the diagonal.
        steps: of the iteration for the inverse.
    """

    traits = Traits(linear=True, right_padded=True)
    draws: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        features: int = 128,
        ridge: float = 0.1,
        steps: int = 6,
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        check_positive(features=features, steps=steps)
        if not ridge >= 0:
            raise ValueError(f"ridge is {ridge}: expected 0 or more")
        self.ridge, self.steps = ridge, steps
        self.register_buffer("draws", random_draws(features))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        tokens = real.sum(-1, keepdim=True)
        places, counts = sampled_places(self.draws, 2 * tokens.squeeze(-1))
        places = places + (places >= tokens) * (q.shape[2] - tokens)  # over the queries' padding
        x = rows(torch.cat([q, k], 2), places)
        return self.approximate(q, k, v, x, counts)

    @full_precision
    def approximate(self, q: Tensor, k: Tensor, v: Tensor, x: Tensor, counts: Tensor) -> Tensor:
        """The formula, given the sampled rows; in float32 at least, returned in v's dtype."""
        near = gaussian(x, k)
        values = near @ v.to(near.dtype)  # v is zero at padding
        return (gaussian(q, x) @ self.solve(x, counts, values)).to(v.dtype)

    def solve(self, x: Tensor, counts: Tensor, values: Tensor) -> Tensor:
        """(g(x, x) + ridge I)^-1 values, among the rows that count: x [B, H, m, D], counts bool
        [B, m], values [B, H, m, E] -> [B, H, m, E], zeros in the other rows."""
        eye = torch.eye(x.shape[2], dtype=values.dtype, device=x.device)
        pairs = counts[:, None, :, None] & counts[:, None, None, :]
        a = (gaussian(x, x) + self.ridge * eye) * pairs
        scale = a.sum(-1, keepdim=True).masked_fill(~counts[:, None, :, None], 1).rsqrt()
        return scale * inverse_times(scale * a * scale.mT, scale * values, self.steps)
