"""Nystromformer (Xiong et al., AAAI 2021, arXiv 2102.03902, eq. 13-15), without its convolution.

    y = softmax(q k~^T / s) pinv(A) softmax(q~ k^T / s) v,    A = softmax(q~ k~^T / s),  s = sqrt(D)

q~ and k~ are means over m segments of the sequence, and pinv is six steps of an iteration.
"""

import math

from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..ops.features import accumulator, full_precision
from .base import EncoderAttention, Traits, masked_softmax
from .landmarks import check_positive, inverse_times, segment_means


class NystromformerAttention(EncoderAttention):
    """Softmax attention through landmarks; exact in the limit of many steps where every token is
    one.

    The published code starts the iteration from the largest norm in the batch; here each matrix
    starts from its own, so that no sequence depends on another.

    Args:
        features: m, how many landmarks; a sequence of fewer tokens has as many as tokens.
        steps: of the iteration for the pseudo-inverse.
    """

    traits = Traits(linear=True, right_padded=True)

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        features: int = 128,
        steps: int = 6,
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        check_positive(features=features, steps=steps)
        self.features, self.steps = features, steps

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        count = min(self.features, q.shape[2])
        q_mean, filled = segment_means(q, real, count)
        k_mean, _ = segment_means(k, real, count)
        pairs = filled[:, None, :, None] & filled[:, None, None, :]
        a = self.kernel(q_mean, k_mean, pairs)
        values = scaled_dot_product_attention(q_mean, k, v, attn_mask=real[:, None, None, :])
        values = inverse_times(a, values, self.steps)
        return scaled_dot_product_attention(q, k_mean, values, attn_mask=filled[:, None, None, :])

    @full_precision
    def kernel(self, q: Tensor, k: Tensor, pairs: Tensor) -> Tensor:
        """softmax(q k^T / sqrt(D)) among `pairs`, in float32 at least: it is inverted."""
        q, k = (x.to(accumulator(x.dtype)) for x in (q, k))
        return masked_softmax(q @ k.mT / math.sqrt(self.head_dim), pairs)
