"""Transformer-LS (Zhu et al., NeurIPS 2021, arXiv 2107.02192): long- and short-term attention.

    y_i = softmax(q_i [LN_far(P^T k) ; LN_near(k_window(i))]^T / sqrt(D)) [LN(P^T v) ; LN(v_window)]
    P = softmax over tokens of k W_p

One softmax over r compressed keys, which stand for all tokens, and the keys near by: tokens are cut
into segments of `window`, and a query sees its own and half a window on either side. The norms
bring the two kinds to one scale. The paper projects the layer's input by W_p; a mechanism here is
given the keys of its heads, so P is made of those (as in lucidrains' long-short-transformer). Norms
of keys have learned weights; those of values have none, as values may have any width.
"""

import torch
from torch import Tensor, nn
from torch.nn.functional import layer_norm, pad

from ..ops.features import accumulator
from .base import EncoderAttention, Traits, masked_softmax


class TransformerLSAttention(EncoderAttention):
    """Softmax attention to a window and to a compressed form of the whole sequence.

    Args:
        rank: r, the number of compressed keys.
        window: tokens in a segment, even.
    """

    traits = Traits(linear=True, right_padded=True)

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        rank: int = 32,
        window: int = 8,
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        if rank < 1:
            raise ValueError(f"rank is {rank}: it must be positive")
        if window < 2 or window % 2:
            raise ValueError(f"window is {window}: half of it is seen on either side, so even")
        self.window = window
        bound = head_dim**-0.5
        self.projection = nn.Parameter(torch.empty(num_heads, head_dim, rank))
        nn.init.uniform_(self.projection, -bound, bound)
        self.far_norm, self.near_norm = nn.LayerNorm(head_dim), nn.LayerNorm(head_dim)

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        length, rank = q.shape[2], self.projection.shape[-1]
        shares = masked_softmax(self.projection.mT @ k.mT, real[:, None, None]).to(k.dtype)
        far_k, far_v = self.far_norm(shares @ k), layer_norm(shares @ v, v.shape[-1:])
        near_k, near_v = self.tiles(self.near_norm(k)), self.tiles(layer_norm(v, v.shape[-1:]))
        hidden = ~self.tiles(real[:, None, :, None]).mT

        q = pad(q / self.head_dim**0.5, (0, 0, 0, -length % self.window))
        near = q.unflatten(2, (-1, self.window)) @ near_k.mT
        near = near.masked_fill_(hidden, torch.finfo(near.dtype).min).flatten(2, 3)
        scores = torch.cat([q @ far_k.mT, near], -1)
        weights = scores.softmax(-1, dtype=accumulator(q.dtype)).to(v.dtype)
        near = weights[..., rank:].unflatten(2, (-1, self.window)) @ near_v
        y: Tensor = weights[..., :rank] @ far_v + near.flatten(2, 3)
        return y[:, :, :length]

    def tiles(self, x: Tensor) -> Tensor:
        """Each segment with half a window on either side: x [B, H, N, E] ->
        [B, H, segments, 2 * window, E]; zeros where the sequence ends."""
        half = self.window // 2
        x = pad(x, (0, 0, half, half + -x.shape[2] % self.window))
        x = x.unflatten(2, (-1, self.window))
        return torch.cat([x[:, :, :-1], x[:, :, 1:]], 3)
