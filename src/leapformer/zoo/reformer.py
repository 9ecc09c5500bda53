"""Reformer (Kitaev, Kaiser and Levskaya, ICLR 2020, arXiv 2001.04451): locality-sensitive hashing.

    bucket_h(q) = argmax [q R_h ; -q R_h],    k_j = q_j / (rms(q_j) sqrt(D))
    y_i = sum_h sum_{j in P_h(i)} exp(q_i . k_j) v_j / sum_h sum_{j in P_h(i)} exp(q_i . k_j)

Queries are keys. For each hash h the tokens are sorted by bucket, then by place, and cut into
chunks; P_h(i) is the chunk of i and the one before it. Before the first chunk of a hash stands the
last one of the hash before, as in transformers' LSHSelfAttention. A token sees itself only where
there is no other. Everything is counted within the real tokens of each sequence.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad

from ..ops.features import accumulator, with_ones
from .base import EncoderAttention, Traits


class ReformerAttention(EncoderAttention):
    """Softmax attention within chunks of similar tokens, by several hashes.

    Args:
        hashes: how many times the tokens are hashed and sorted.
        chunk: tokens in a chunk. A sequence of n tokens has 2n / chunk buckets, rounded down to a
            power of two.
        buckets: but no more than these, a power of two.
    """

    traits = Traits(linear=True, shared_qk=True)
    rotations: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        hashes: int = 2,
        chunk: int = 64,
        buckets: int = 512,
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        if hashes < 1 or chunk < 1:
            raise ValueError(f"hashes is {hashes} and chunk {chunk}: both must be positive")
        if buckets < 2 or buckets & (buckets - 1):
            raise ValueError(f"buckets is {buckets}: expected a power of two")
        self.hashes, self.chunk = hashes, chunk
        shape = (num_heads, head_dim, hashes, buckets // 2)
        self.register_buffer("rotations", torch.randn(shape))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        batch, heads, length, _ = q.shape
        sorted_shape = (batch, heads, self.hashes, -(-length // self.chunk), self.chunk)
        size = sorted_shape[3] * self.chunk
        tokens = real.sum(-1)[:, None, None, None, None]

        order = self.buckets(q, real).sort(dim=-1, stable=True).indices
        place = torch.arange(self.hashes * size, device=q.device).view(self.hashes, size)
        undo = torch.empty_like(order).scatter(-1, order, place[:, :length].expand_as(order))
        token = pad(order, (0, size - length)).view(sorted_shape)
        there = place[0].view(sorted_shape[3:]) < tokens
        last = ((tokens - 1).clamp_min(0) // self.chunk).expand(*sorted_shape[:3], 1, self.chunk)

        def look_back(x: Tensor) -> Tensor:
            """[B, H, hashes, chunks, chunk] -> [..., 2 * chunk]: the chunk before, and itself."""
            before = torch.cat([x.gather(3, last).roll(1, 2), x], 3)
            return torch.cat([before[:, :, :, :-1], x], 4)

        shown = look_back(token)
        scores = (rows(q, token) @ rows(normalised(q), shown).mT).to(accumulator(q.dtype))
        with torch.no_grad():  # these weigh nothing, so that no gradient comes back to be hidden
            scores.masked_fill_(token.unsqueeze(-1) == shown.unsqueeze(-2), -1e5)
            hidden = ~look_back(there.expand(sorted_shape)).unsqueeze(-2)
            scores.masked_fill_(hidden, torch.finfo(scores.dtype).min)

        # of each hash: weighted values and, last, weights, summed and divided by exp(peak)
        peak = scores.detach().amax(-1, keepdim=True)
        weights = scores.sub_(peak).exp_().to(v.dtype)
        sums = (weights @ rows(with_ones(v, v.dtype), shown)).to(peak.dtype)
        sums = rows(torch.cat([sums, peak], -1).flatten(2, 4), undo)
        peak = sums[..., -1:].detach()
        total = (sums[..., :-1] * (peak - peak.amax(2, keepdim=True)).exp()).sum(2)
        return (total[..., :-1] / total[..., -1:]).to(v.dtype)

    @torch.no_grad()
    def buckets(self, q: Tensor, real: Tensor) -> Tensor:
        """The bucket of each token by each hash, int64 [B, H, hashes, N]; padding's is the last."""
        most = self.rotations.shape[-1]
        while most > 1 and most > q.shape[2] // self.chunk:
            most //= 2
        dtype = accumulator(q.dtype)
        rotations = self.rotations[..., :most].flatten(2).to(dtype)
        with torch.autocast(q.device.type, enabled=False):
            turned = (q.to(dtype) @ rotations).unflatten(-1, (self.hashes, most)).transpose(2, 3)
        wanted = (real.sum(-1) // self.chunk).clamp_min(1)[:, None, None, None, None]
        powers = 2 ** torch.arange(most.bit_length(), device=q.device)
        half = powers.where(powers <= wanted, 0).amax(-1)
        column = torch.arange(most, device=q.device)
        nearest = turned.abs().masked_fill(column >= half.unsqueeze(-1), -1).argmax(-1)
        behind = turned.gather(-1, nearest.unsqueeze(-1)).squeeze(-1) < 0
        return torch.where(real[:, None, None], nearest + behind * half, 2 * most)


def normalised(q: Tensor) -> Tensor:
    """The keys of queries [..., D]: all of one length."""
    rms = (q.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    return q / (rms * q.shape[-1] ** 0.5)


def rows(x: Tensor, index: Tensor) -> Tensor:
    """x [B, H, N, E], index [B, H, ...] of its rows -> [B, H, ..., E]."""
    first = torch.arange(0, x.shape[:3].numel(), x.shape[2], device=x.device)
    first = first.view(*x.shape[:2], *[1] * (index.dim() - 2))
    return embedding(index + first, x.reshape(-1, x.shape[-1]))
