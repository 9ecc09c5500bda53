"""Softmax attention (Vaswani et al., 2017, arXiv 1706.03762, eq. 1), the exact one.

    y = softmax(q k^T / sqrt(D)) v

Quadratic in time; torch's `scaled_dot_product_attention` keeps its memory linear where it can.
"""

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from ..ops import LeapState, Visible, visible_counts
from .base import Attention, Traits


class SoftmaxAttention(Attention):
    """Every pair of tokens, weighed by the exponential of their dot product."""

    traits = Traits(linear=False, causal=True, cross=True, streaming=False)

    def forward(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        *,
        visible: str | Visible | Tensor = "all",
        key_mask: Tensor | None = None,
        state: LeapState | None = None,
        return_state: bool = False,
        start: int = 0,
    ) -> Tensor | tuple[Tensor, LeapState]:
        if state is not None or return_state:
            raise ValueError("softmax attention has no state of constant size: give it all keys")
        mask = None if key_mask is None else key_mask[:, None, None, :]
        causal = visible == "causal" if isinstance(visible, str) else False
        if causal and mask is None and q.shape[2] == k.shape[2]:
            return scaled_dot_product_attention(q, k, v, is_causal=True)
        if not (isinstance(visible, str) and visible == "all"):
            batch, _, queries, _ = q.shape
            counts = visible_counts(visible, batch, queries, k.shape[2]).to(q.device)
            seen = counts[..., None] > torch.arange(k.shape[2], device=q.device)
            seen = seen if seen.dim() == 2 else seen[:, None]
            mask = seen if mask is None else seen & mask
        return scaled_dot_product_attention(q, k, v, attn_mask=mask)
