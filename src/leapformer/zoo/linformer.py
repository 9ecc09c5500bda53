"""Linformer (Wang et al., 2020, arXiv 2006.04768, eq. 7).

    y = softmax(q (E k)^T / sqrt(D)) (E v)

E [m, M] is trained: it sums M tokens into m, for keys and values alike. A shorter sequence uses its
first columns.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .base import EncoderAttention, Traits
from .landmarks import check_positive


class LinformerAttention(EncoderAttention):
    """Softmax attention to `features` learned sums of the tokens, a set of sums for each head.

    Each weight of E starts as N(0, 1 / M), so that a sum over M tokens is as large as one token
    (the paper's N(0, 1 / m) makes it sqrt(M / m) times that; published LRA code has std 0.02, which
    is the same as here at 2500 tokens).

    Args:
        features: m, how many sums.
    """

    traits = Traits(linear=True, fixed_length=True, right_padded=True)

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int | None = None, *, features: int = 128
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        check_positive(features=features)
        length = max_length or 1
        self.projection = nn.Parameter(torch.randn(num_heads, features, length) * length**-0.5)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        e = self.projection[:, :, : q.shape[2]].to(q.dtype)
        k, v = (torch.einsum("hmn,bhnd->bhmd", e, x) for x in (k, v))  # padding adds zeros
        return scaled_dot_product_attention(q, k, v)
