"""One layer of a transformer: attention (in a decoder also to a source), then a feed-forward net,
each behind a norm."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..ops import token_positions
from ..zoo import State
from .attention import MultiHeadAttention
from .convolution import ShortConvolution


@dataclass(frozen=True, eq=False)
class BlockState:
    """What a causal block keeps of the tokens so far: the attention's state, the last inputs
    [B, size - 1, hidden] of its short convolution, and the cross-attention's state."""

    attention: State | None = None
    recent: Tensor | None = None
    cross: State | None = None

    def select(self, rows: Tensor) -> "BlockState":
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them."""
        return BlockState(
            None if self.attention is None else self.attention.select(rows),
            None if self.recent is None else self.recent.index_select(0, rows),
            None if self.cross is None else self.cross.select(rows),
        )

    @property
    def nbytes(self) -> int:
        """What it holds, in bytes."""
        kept = [self.recent]
        for state in (self.attention, self.cross):
            kept += [] if state is None else vars(state).values()
        return sum(x.nbytes for x in kept if x is not None)

    @staticmethod
    def cat(states: Sequence["BlockState"]) -> "BlockState":
        """The rows of several states, one behind the other."""
        attention = [state.attention for state in states]
        recent = [state.recent for state in states]
        cross = [state.cross for state in states]
        return BlockState(
            None if attention[0] is None else attention[0].cat(attention),
            None if recent[0] is None else torch.cat([x for x in recent if x is not None]),
            None if cross[0] is None else cross[0].cat(cross),
        )


class TransformerBlock(nn.Module):
    """x [B, N, hidden] -> [B, N, hidden]; norms come first, as in the Long-Range Arena set-up.

    Args:
        attention: the heads.
        hidden: width of x.
        intermediate: width inside the feed-forward net.
        dropout: after each of its two linear maps.
        eps: of the norms.
        convolution: taps of a short convolution before the attention; 0 for none.
        cross: heads that attend to a source, for a decoder.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        hidden: int,
        intermediate: int,
        dropout: float = 0.0,
        eps: float = 1e-5,
        convolution: int = 0,
        cross: MultiHeadAttention | None = None,
    ) -> None:
        super().__init__()
        self.convolution = ShortConvolution(hidden, convolution) if convolution else None
        self.attention_norm = nn.LayerNorm(hidden, eps)
        self.attention = attention
        self.cross_norm = None if cross is None else nn.LayerNorm(hidden, eps)
        self.cross = cross
        self.feed_forward_norm = nn.LayerNorm(hidden, eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, intermediate),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(intermediate, hidden),
            nn.Dropout(dropout),
        )

    def forward(
        self, x: Tensor, source: dict[str, Any] | None = None, **view: Any
    ) -> Tensor | tuple[Tensor, BlockState]:
        """`view` are the fields of `leapformer.zoo.View`; its states are `BlockState`s. `source` is
        what the cross-attention takes: `context`, `address`, and its own view, but no state."""
        before, wanted = view.get("state"), view.get("return_state", False)
        before = BlockState() if before is None else before
        y, recent = self.attention_norm(x), None
        if self.convolution is not None:
            positions = view.get("positions")
            if positions is None:
                positions = token_positions(x.shape[1], view.get("cu_seqlens"), x.device)
            y, recent = self.convolution(y, positions, before.recent, view.get("key_mask"))
        found = self.attention(y, **{**view, "state": before.attention})
        y, after = found if wanted else (found, None)
        x, heard = x + y, None
        if self.cross is not None and self.cross_norm is not None:
            whole = {**(source or {}), "state": before.cross, "return_state": wanted}
            found = self.cross(self.cross_norm(x), **whole)
            y, heard = found if wanted else (found, None)
            x = x + y
        x = x + self.feed_forward(self.feed_forward_norm(x))
        return (x, BlockState(after, recent, heard)) if wanted else x
