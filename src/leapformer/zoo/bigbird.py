"""BigBird (Zaheer et al., NeurIPS 2020, arXiv 2007.14062, section 2): blocks of a sparse graph.

    y_i = softmax_j(q_i . k_j / sqrt(D)) v_j,    j in the blocks that the block of i sees

A block sees itself and its neighbours, the first and the last block, and a few random ones; the
first and the last block see, and are seen by, all. The last block is that of the sequence, not of
the batch. A sequence so short that nothing is left out has exact softmax attention.
"""

import torch
from torch import Tensor
from torch.nn.functional import embedding, pad, scaled_dot_product_attention

from .base import EncoderAttention, Traits


class BigBirdAttention(EncoderAttention):
    """Softmax attention to a window of three blocks, two global and some random ones.

    Args:
        block: tokens in a block.
        random: blocks drawn for each block of queries and head, beyond window and global ones.
    """

    traits = Traits(linear=True, right_padded=True)
    salts: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        block: int = 64,
        random: int = 3,
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        if block < 1 or random < 0:
            raise ValueError(f"block is {block} and random {random}: expected > 0 and >= 0")
        self.block, self.random = block, random
        self.register_buffer("salts", torch.randint(2**32, (num_heads,)))

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        batch, heads, length, _ = q.shape
        count = -(-length // self.block)
        if count <= self.random + 4:  # window and global ones: all but count - 4 at most
            return scaled_dot_product_attention(q, k, v, attn_mask=real[:, None, None])
        missing = count * self.block - length
        if missing:
            q, k, v = (pad(x, (0, 0, 0, missing)) for x in (q, k, v))
            real = pad(real, (0, missing))
        last = (real.sum(-1) - 1).clamp_min(0) // self.block
        index, fresh = self.plan(last, count)
        slots = index.shape[-1]
        first = torch.arange(0, batch * heads * count, count, device=q.device)
        flat = index + first.view(batch, heads, 1, 1)

        def blocks(x: Tensor) -> Tensor:
            """What each block sees: [B, H, N, E] -> [B * H * count, 1, slots * block, E]."""
            found = embedding(flat, x.reshape(batch * heads * count, -1))
            return found.view(-1, 1, slots * self.block, x.shape[-1])

        seen = real.view(batch, 1, count, self.block).expand(-1, heads, -1, -1)
        seen = seen.gather(2, index.flatten(2).unsqueeze(-1).expand(-1, -1, -1, self.block))
        seen = seen.view(*index.shape, self.block) & fresh.unsqueeze(-1)
        q = q.unflatten(2, (count, self.block))
        y = scaled_dot_product_attention(
            q.reshape(-1, 1, *q.shape[3:]),
            blocks(k),
            blocks(v),
            attn_mask=seen.view(-1, 1, 1, slots * self.block),
        ).view(*q.shape[:4], v.shape[-1])

        end = last[:, None, None, None, None]
        ends = torch.cat([q[:, :, 0], q.take_along_dim(end, 2).squeeze(2)], 2)
        ends = scaled_dot_product_attention(ends, k, v, attn_mask=real[:, None, None])
        start, final = ends.unsqueeze(2).chunk(2, 3)
        place = torch.arange(count, device=q.device)[:, None, None]
        y = torch.where(place == 0, start, torch.where(place == end, final, y))
        return y.flatten(2, 3)[:, :, :length]

    @torch.no_grad()
    def plan(self, last: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Which blocks each of `count` blocks of queries sees, given each sequence's last block,
        int64 [B]: int64 [B, H, count, 5 + random], and which of these count, without repeats.

        Holds for the blocks between the first and the last. Random ones have the highest scores
        among those left; a score depends on the head and the pair of blocks, on nothing else.
        """
        i = torch.arange(count, device=last.device)[:, None]
        j, last = i.mT, last[:, None, None, None]
        left = (j > 0) & (j < last) & ((i - j).abs() > 1)
        scores = torch.where(left, mix(self.salts[:, None, None], i, j) * count + j, -1)
        best = scores.topk(self.random, -1)
        window = torch.cat([i - 1, i, i + 1], 1).clamp(0, count - 1)
        shape = (*scores.shape[:3], -1)
        ends = torch.cat([torch.zeros_like(last), last], -1)
        index = [ends.expand(shape), window.expand(shape), best.indices]
        once = torch.cat([(i > 1).expand(last.shape[0], 1, -1, -1), i < last - 1], -1)
        fresh = [once.expand(shape), (window >= 0).expand(shape), best.values >= 0]
        return torch.cat(index, -1), torch.cat(fresh, -1)


def mix(salt: Tensor, i: Tensor, j: Tensor) -> Tensor:
    """A hash of three integers in 0..2^32 - 1, int64 (the finaliser of MurmurHash3)."""
    low = 2**32 - 1
    x = (salt + i * 0x9E3779B1 + j * 0x7FEB352D) & low
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        x = ((x ^ (x >> shift)) * factor) & low
    return x
