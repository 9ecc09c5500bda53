"""LeaPformer (Agostinelli, Hong, Chen, ICML 2024, arXiv 2405.13046).

    w_ij = relu(q_i) . relu(k_j) * cos(pi/2 * (p_q[i] - p_k[j])),    p = LeaP(x)

The proportions are learned from the tokens themselves: no position, no length.
"""

from torch import Tensor

from ..proportion import LeaP, LengthLeaP
from .base import Traits, View
from .linear import LinearAttention


class LeapAttention(LinearAttention):
    """Linear attention re-weighted by learned proportions.

    Args:
        hidden: r, the width inside LeaP; head_dim // 4 by default.
        learned_length: learn the length of a ramp in place of the proportion itself: `LengthLeaP`.
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
        learned_length: bool = False,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_heads, head_dim, max_length, backend=backend)
        kind = LengthLeaP if learned_length else LeaP
        self.leap_q = kind(head_dim, hidden)
        self.leap_k = kind(head_dim, hidden)

    def proportions(
        self, q: Tensor, k: Tensor, view: View
    ) -> tuple[Tensor, Tensor] | tuple[LeaP, LeaP]:
        if isinstance(self.leap_q, LengthLeaP) and isinstance(self.leap_k, LengthLeaP):
            of_queries, of_keys = view.places(q, k)
            p_k = self.leap_k(k, view.key_mask, of_keys)
            return self.leap_q(q, positions=of_queries), p_k
        return self.leap_q, self.leap_k
