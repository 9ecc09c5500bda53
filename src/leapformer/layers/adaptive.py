"""Adaptive input (Baevski and Auli, ICLR 2019, arXiv 1809.10853): rare words get narrow vectors.

The vocabulary, sorted by frequency, is cut into bands; band b has vectors hidden / factor^b wide
and a map up to the full width. Weights are laid out as in torch's `AdaptiveLogSoftmaxWithLoss`, the
output of the same idea (Grave et al., 2017, arXiv 1609.04309), so that both can share them all.
"""

from itertools import pairwise

from torch import Tensor, nn


class Band(nn.Module):
    """Words of a band: vectors [words, width] and the map [width, hidden] from them upwards."""

    def __init__(self, words: int, width: int, hidden: int) -> None:
        super().__init__()
        self.vectors = nn.Embedding(words, width)
        self.up = nn.Linear(hidden, width, bias=False)

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.vectors(ids) @ self.up.weight
        return out


class AdaptiveEmbedding(nn.Module):
    """Token ids [...] -> vectors [..., hidden].

    Args:
        vocab_size: number of token ids, the most frequent first.
        hidden: width of the vectors, and of the first band.
        cutoffs: where the other bands begin, rising, below vocab_size.
        factor: by which the width falls from band to band.
    """

    def __init__(self, vocab_size: int, hidden: int, cutoffs: list[int], factor: int = 4) -> None:
        super().__init__()
        bounds = [0, *cutoffs, vocab_size]
        if not cutoffs or any(a >= b for a, b in pairwise(bounds)):
            raise ValueError(
                f"cutoffs are {cutoffs}: expected to rise from above 0 to {vocab_size}"
            )
        if factor < 1 or hidden // factor ** len(cutoffs) < 1:
            raise ValueError(f"factor is {factor}: {hidden} cannot be divided {len(cutoffs)} times")
        self.num_embeddings, self.embedding_dim, self.bounds = vocab_size, hidden, bounds
        # one more row a band: the output's scores of the bands themselves, unused by the input
        self.first = nn.Embedding(cutoffs[0] + len(cutoffs), hidden)
        self.bands = nn.ModuleList(
            Band(bounds[b + 1] - bounds[b], hidden // factor**b, hidden)
            for b in range(1, len(cutoffs) + 1)
        )

    def forward(self, ids: Tensor) -> Tensor:
        out = self.first(ids.clamp_max(self.bounds[1] - 1))
        for b, band in enumerate(self.bands, 1):
            start, end = self.bounds[b], self.bounds[b + 1]
            mine = (ids >= start) & (ids < end)
            out = out.index_put((mine,), band(ids[mine] - start).to(out.dtype))
        return out
