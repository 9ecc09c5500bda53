"""What every attention mechanism here is: a module from q, k, v to y, and what it can do."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn

from ..ops import LeapState, Visible


@dataclass(frozen=True)
class Traits:
    """What a mechanism can do; tools and tests read these, not lists of names.

    Attributes:
        linear: time and memory grow linearly with the length.
        causal: can hide the future from a query.
        cross: queries and keys may be of different sequences.
        streaming: goes on from a state of constant size.
        fixed_length: must know the longest sequence in advance.
        shared_qk: uses one projection for queries and keys.
    """

    linear: bool
    causal: bool
    cross: bool
    streaming: bool
    fixed_length: bool = False
    shared_qk: bool = False


class Attention(nn.Module):
    """One mechanism: q [B, H, N, D], k [B, H, S, D], v [B, H, S, E] -> y [B, H, N, E].

    Args:
        num_heads: H.
        head_dim: D.
        max_length: the longest sequence to come; needed where `traits.fixed_length`.
    """

    traits: ClassVar[Traits]

    def __init__(self, num_heads: int, head_dim: int, max_length: int | None = None) -> None:
        super().__init__()
        self.num_heads, self.head_dim, self.max_length = num_heads, head_dim, max_length

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
        """Attend; `visible` to `return_state` are those of `leapformer.leap_attention`.

        A state is for mechanisms with `traits.streaming`; `start` is how many tokens of the same
        sequence went into it.
        """
        raise NotImplementedError
