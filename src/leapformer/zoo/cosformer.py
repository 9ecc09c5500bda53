"""cosFormer (Qin et al., ICLR 2022, arXiv 2202.08791, eq. 10).

    w_ij = relu(q_i) . relu(k_j) * cos(pi/2 * (i - j) / M)

Static proportions: near tokens count more, and the maximum length M must be known.
"""

from torch import Tensor

from ..proportion import Ramp
from .base import Traits, View
from .linear import LinearAttention


class CosformerAttention(LinearAttention):
    """Linear attention re-weighted by the distance of positions; needs `max_length`."""

    traits = Traits(linear=True, causal=True, cross=True, streaming=True, fixed_length=True)
    feature_map = "relu"

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_heads, head_dim, max_length, backend=backend)
        assert max_length is not None  # refused above: traits.fixed_length
        self.ramp = Ramp(max_length)

    def proportions(self, q: Tensor, k: Tensor, view: View) -> tuple[Tensor, Tensor]:
        of_queries, of_keys = view.places(q, k)
        return self.ramp(q, of_queries), self.ramp(k, of_keys)
