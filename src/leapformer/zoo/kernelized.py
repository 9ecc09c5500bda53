"""Kernelized attention (Chen et al., "Skyformer", NeurIPS 2021, arXiv 2111.00035, section 4.1).

    y_i = sum_j exp(-||q_i - k_j||^2 / (2 sqrt(D))) v_j

A Gaussian kernel in place of softmax, not normalised: the exact form that Skyformer approximates.
Quadratic in time and memory.
"""

import torch
from torch import Tensor

from ..ops.features import accumulator, autocast, full_precision
from .base import Traits
from .pairs import PairwiseAttention


class KernelizedAttention(PairwiseAttention):
    """Every pair of tokens, weighed by a Gaussian of their distance."""

    traits = Traits(linear=False, causal=True, cross=True)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        v = autocast(v)
        weights = gaussian(q, k)
        if causal:
            weights = weights.tril()
        if seen is not None:
            weights = weights.masked_fill(~seen, 0)
        with torch.autocast(v.device.type, enabled=False):
            return (weights @ v.to(weights.dtype)).to(v.dtype)


@full_precision
def gaussian(x: Tensor, y: Tensor) -> Tensor:
    """exp(-||x_i - y_j||^2 / (2 sqrt(D))): x [..., N, D], y [..., S, D] -> [..., N, S].

    The exponent is one matrix product: x.y - x.x / 2 - y.y / 2, with the squares as two columns.
    They nearly cancel, so all is worked out, and returned, in float32 at least.
    """
    x, y = (z.to(accumulator(z.dtype)) * z.shape[-1] ** -0.25 for z in (x, y))
    half_x, half_y = (z.square().sum(-1, keepdim=True) / -2 for z in (x, y))
    left = torch.cat([x, half_x, torch.ones_like(half_x)], -1)
    right = torch.cat([y, torch.ones_like(half_y), half_y], -1)
    return (left @ right.mT).clamp_max(0).exp()
