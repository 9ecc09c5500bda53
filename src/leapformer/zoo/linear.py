"""Linear attention (Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236, eq. 5).

    y_i = phi(q_i) sum_j phi(k_j)^T v_j / phi(q_i) sum_j phi(k_j)^T,    phi(x) = elu(x) + 1

The op without proportions, and the family of all that hand it some.
"""

from functools import partial
from typing import ClassVar

from torch import Tensor

from ..ops import BACKENDS, LeapState, leap_attention
from ..ops.checks import known
from ..proportion import LeaP
from .base import Attention, Traits, View


class LinearAttention(Attention):
    """A mechanism that is `leap_attention` with a feature map and, maybe, proportions.

    Args:
        backend: of `leap_attention`.
    """

    traits = Traits(linear=True, causal=True, cross=True, streaming=True)
    feature_map: ClassVar[str] = "elu"

    def __init__(
        self,
        num_heads: int,
        head_dim: int,
        max_length: int | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__(num_heads, head_dim, max_length)
        self.backend = known("backend", backend, ("auto", *BACKENDS))

    def proportions(
        self, q: Tensor, k: Tensor, view: View
    ) -> tuple[Tensor | LeaP | None, Tensor | LeaP | None]:
        """p_q [B, H, N] and p_k [B, H, S], or what reads them off q and k, or None for both."""
        return None, None

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, view: View
    ) -> Tensor | tuple[Tensor, LeapState]:
        call = partial(
            leap_attention,
            q,
            k,
            v,
            *self.proportions(q, k, view),
            visible=view.visible,
            key_mask=view.key_mask,
            cu_seqlens=view.cu_seqlens,
            state=view.state,
            feature_map=self.feature_map,
            backend=self.backend,
        )
        return call(return_state=True) if view.return_state else call()
