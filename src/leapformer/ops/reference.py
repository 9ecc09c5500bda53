"""The definition: quadratic, in float64, one line per line of mathematics.

Every other backend is right exactly as far as it agrees with this file. It shares no formula with
them: the weights are cosines of differences here, dot products of widened vectors there.
"""

import math

import torch
from torch import Tensor

from .features import FEATURE_MAPS
from .operator import Inputs
from .visibility import seen_by_any, seen_pairs


def reference(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, E] and the sums over the state and the keys (all keys only if `whole`).

    Differentiable by autograd, as often as one likes.
    """
    q, k, v, p_q, p_k, sums, counts, key_mask, cu_seqlens, _, eps, feature_map, whole = inputs
    dtype, counts = q.dtype, counts.to(q.device)
    if not whole:
        key_mask = seen_by_any(counts, key_mask, *k.shape[:3:2])
    phi = FEATURE_MAPS[feature_map][0]
    q, k, v = q.double(), k.double(), v.double()
    if key_mask is None:
        q, k = phi(q), phi(k)
    else:
        padding = ~key_mask[:, None, :, None]
        q, k = phi(q), phi(k.masked_fill(padding, 0)).masked_fill(padding, 0)
        v = v.masked_fill(padding, 0)

    weights = q @ k.mT
    if p_q is not None and p_k is not None:
        a, b = p_q.double() * (math.pi / 2), p_k.double() * (math.pi / 2)
        weights = weights * torch.cos(a.unsqueeze(-1) - b.unsqueeze(-2))
        q = torch.cat([q * a.cos().unsqueeze(-1), q * a.sin().unsqueeze(-1)], -1)
        k = torch.cat([k * b.cos().unsqueeze(-1), k * b.sin().unsqueeze(-1)], -1)
    weights = weights.masked_fill(~seen_pairs(counts, key_mask, k.shape[-2], cu_seqlens), 0)

    numerator, total = weights @ v, weights.sum(-1, keepdim=True)
    after = torch.cat([k.mT @ v, k.sum(-2).unsqueeze(-1)], -1)
    before = sums.double()
    numerator = numerator + q @ before[..., :-1]
    total = total + q @ before[..., -1:]
    y = numerator / total.clamp_min(eps)
    return y.to(dtype), (before + after).to(sums.dtype)
