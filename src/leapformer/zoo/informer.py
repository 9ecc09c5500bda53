"""Informer's ProbSparse attention (Zhou et al., AAAI 2021, arXiv 2012.07436, eq. 4-6).

    y_i = softmax(q_i k^T / sqrt(D)) v    for the u most peaked queries i
    y_i = mean_j v_j                      for all others

A query is peaked by how far the largest of its scores stands above their mean, over a sample of the
keys.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..ops.features import accumulator, full_precision
from .base import EncoderAttention, Traits
from .landmarks import check_positive, random_draws, rows, sampled_places


class InformerAttention(EncoderAttention):
    """Exact softmax attention for a few queries; of n tokens, u = min(features, n), and so many
    keys are sampled.

    The paper samples keys anew at each call, other ones for each query; here one sample, spread
    over the sequence and drawn once, serves all queries, so that results repeat.

    Args:
        features: the most queries that attend, and the most keys in the sample.
    """

    traits = Traits(linear=True, right_padded=True)
    draws: Tensor

    def __init__(
        self, num_heads: int, head_dim: int, max_length: int | None = None, *, features: int = 128
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        check_positive(features=features)
        self.register_buffer("draws", random_draws(features))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        tokens = real.sum(-1)
        sample = rows(k, sampled_places(self.draws, tokens)[0])
        peaks = peakedness(q, sample).masked_fill(~real[:, None], -torch.inf)
        chosen = peaks.topk(min(len(self.draws), q.shape[2]), sorted=False).indices  # [B, H, u]
        # fewer tokens than u: all are chosen, whatever their peaks, and padding besides
        found = scaled_dot_product_attention(
            rows(q, chosen), k, v, attn_mask=real[:, None, None, :]
        )
        mean = v.sum(2, keepdim=True, dtype=accumulator(v.dtype))
        mean = (mean / tokens.clamp_min(1)[:, None, None, None]).to(v.dtype)
        index = chosen.unsqueeze(-1).expand_as(found)
        return mean.expand_as(v).scatter(2, index, found)


@torch.no_grad()
@full_precision
def peakedness(q: Tensor, sample: Tensor) -> Tensor:
    """max - mean of the scores of q [B, H, N, D] against sample [B, H, m, D] -> [B, H, N]."""
    q, sample = q.to(accumulator(q.dtype)), sample.to(accumulator(q.dtype))
    mean = (q @ sample.mean(2).unsqueeze(-1)).squeeze(-1)
    return (q @ sample.mT).amax(-1) - mean
