"""Linear attention (Katharopoulos et al., "Transformers are RNNs", arXiv 2006.16236, eq. 5).

    y_i = phi(q_i) sum_j phi(k_j)^T v_j / phi(q_i) sum_j phi(k_j)^T,    phi(x) = elu(x) + 1

The op without proportions, and the family of all that hand it some.
"""

from functools import partial
from typing import ClassVar

from torch import Tensor

from ..ops import LeapState, Visible, leap_attention
from .base import Attention, Traits


class LinearAttention(Attention):
    """A mechanism that is `leap_attention` with a feature map and, maybe, proportions."""

    traits = Traits(linear=True, causal=True, cross=True, streaming=True)
    feature_map: ClassVar[str] = "elu"

    def proportions(
        self, q: Tensor, k: Tensor, key_mask: Tensor | None, start: int
    ) -> tuple[Tensor | None, Tensor | None]:
        """p_q [B, H, N] and p_k [B, H, S], or None for both."""
        return None, None

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
        attend = partial(
            leap_attention,
            q,
            k,
            v,
            *self.proportions(q, k, key_mask, start),
            visible=visible,
            key_mask=key_mask,
            state=state,
            feature_map=self.feature_map,
        )
        return attend(return_state=True) if return_state else attend()
