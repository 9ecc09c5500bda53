"""Performer (Choromanski et al., ICLR 2021, arXiv 2009.14794, FAVOR+): positive random features.

    y_i = sum_j phi(q_i).phi(k_j) v_j / sum_j phi(q_i).phi(k_j)
    phi(x) = exp(w x' - |x'|^2 / 2 - c) + 1e-4,    x' = x D^-1/4

The rows of w [m, D] are orthogonal in blocks of D, each as long as a Gaussian vector, so that the
mean of phi(q).phi(k) is exp(q.k / sqrt(D)); the paper's factor m^-1/2 cancels. c keeps the
exponentials in range: the largest exponent of the query itself; for keys the largest of all real
keys of their head and document. Where not all keys are there at once (a hidden future, a state)
such a maximum would tell of the future and change from piece to piece: there c = 0, and exp(...)
has mean one. c is a constant to the gradient.
"""

import torch
from torch import Tensor

from ..ops import LeapState, Visible, as_rule
from ..ops.checks import check_floating, check_keys
from ..ops.features import accumulator, autocast
from .base import Traits, View
from .linear import LinearAttention


class PerformerAttention(LinearAttention):
    """Linear attention on random features whose mean is softmax's kernel.

    Args:
        features: m, how many.
        floor: what is added to each feature, 1e-4 in the paper's code.
        backend: of `leap_attention`.
    """

    traits = Traits(linear=True, causal=True, cross=True, streaming=True)
    feature_map = "relu"  # which leaves these features, positive as they are, alone
    directions: Tensor

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        features: int = 128,
        floor: float = 1e-4,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_heads, head_dim, max_length, backend=backend)
        if features < 1 or floor < 0:
            raise ValueError(f"features is {features} and floor {floor}: expected > 0 and >= 0")
        self.floor = floor
        self.register_buffer("directions", orthogonal_rows(features, head_dim))

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, view: View
    ) -> Tensor | tuple[Tensor, LeapState]:
        key_mask = view.key_mask
        q, k, v = autocast(q), autocast(k), autocast(v)
        check_floating(q=q, k=k, v=v)
        check_keys(k, v, key_mask)
        whole = (
            as_rule(view.visible) == Visible.all() and view.state is None and not view.return_state
        )
        if key_mask is not None:
            k = k.masked_fill(~key_mask[:, None, :, None], 0)
        with torch.autocast(q.device.type, enabled=False):
            along_q, half_q = self.project(q)
            phi_q = self.features(along_q, half_q, along_q.detach().amax(-1, keepdim=True) - half_q)
            along_k, half_k = self.project(k)
            if key_mask is not None:
                half_k = half_k.masked_fill(~key_mask[:, None, :, None], torch.inf)
            largest = None
            if whole and k.shape[2]:
                exponents = along_k.detach().amax(-1, keepdim=True) - half_k
                sizes = [k.shape[2]] if view.cu_seqlens is None else view.cu_seqlens.diff().tolist()
                documents = [part for part in exponents.split(sizes, 2) if part.shape[2]]
                peaks = [part.amax(2, keepdim=True).expand_as(part) for part in documents]
                largest = torch.cat(peaks, 2).clamp_min(torch.finfo(exponents.dtype).min)
            phi_k = self.features(along_k, half_k, largest)
            found = super().attend(phi_q, phi_k, v.to(phi_q.dtype), view)
        return found.to(v.dtype) if isinstance(found, Tensor) else (found[0].to(v.dtype), found[1])

    def project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """w x' [B, H, N, m] and |x'|^2 / 2 [B, H, N, 1], in float32 at least."""
        x = x.to(accumulator(x.dtype)) * self.head_dim**-0.25
        return x @ self.directions.to(x.dtype).mT, x.square().sum(-1, keepdim=True) / 2

    def features(self, along: Tensor, half: Tensor, c: Tensor | None) -> Tensor:
        """phi [B, H, N, m] of what `project` gives; the first part of that is overwritten."""
        return along.sub_(half if c is None else half + c.detach()).exp_() + self.floor


def orthogonal_rows(count: int, width: int) -> Tensor:
    """[count, width]: blocks of `width` orthogonal rows, with the lengths of Gaussian vectors.

    The signs of R's diagonal undo those of the algorithm, which else favours one side of the space.
    """
    Q, R = torch.linalg.qr(torch.randn(-(-count // width), width, width))
    rows = (Q * R.diagonal(dim1=-2, dim2=-1).sign().unsqueeze(-2)).mT.flatten(0, 1)[:count]
    return rows * torch.randn(count, width).norm(dim=-1, keepdim=True)
