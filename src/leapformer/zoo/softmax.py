"""Softmax attention (Vaswani et al., 2017, arXiv 1706.03762, eq. 1), the exact one.

    y = softmax(q k^T / sqrt(D)) v

Quadratic in time; torch's `scaled_dot_product_attention` keeps its memory linear where it can.
"""

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .base import Traits
from .pairs import PairwiseAttention


class SoftmaxAttention(PairwiseAttention):
    """Every pair of tokens, weighed by the exponential of their dot product."""

    traits = Traits(linear=False, causal=True, cross=True, rotary=True)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        return scaled_dot_product_attention(q, k, v, attn_mask=seen, is_causal=causal)
