"""LeaPformer (Agostinelli, Hong, Chen, ICML 2024, arXiv 2405.13046).

    w_ij = relu(q_i) . relu(k_j) * cos(pi/2 * (p_q[i] - p_k[j])),    p = LeaP(x)

The proportions are learned from the tokens themselves: no position, no length.
"""

from torch import Tensor

from ..proportion import LeaP
from .base import Traits, View
from .linear import LinearAttention


class LeapAttention(LinearAttention):
    """Linear attention re-weighted by learned proportions.

    Args:
        hidden: r, the width inside LeaP; head_dim // 4 by default.
        backend: of `leap_attention`.
    """

    traits = Traits(linear=True, causal=True, cross=True, streaming=True)
    feature_map = "relu"

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        hidden: int | None = None,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_heads, head_dim, max_length, backend=backend)
        self.leap_q = LeaP(head_dim, hidden)
        self.leap_k = LeaP(head_dim, hidden)

    def proportions(self, q: Tensor, k: Tensor, view: View) -> tuple[LeaP, LeaP]:
        return self.leap_q, self.leap_k
