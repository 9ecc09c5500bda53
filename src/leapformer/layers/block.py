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
    """What a causal block keeps of the tokens so far: the attention's state, the cross-attention's,
    and the last inputs [B, size - 1, hidden] of the short convolutions before the attention and
    before the feed-forward net."""

    attention: State | None = None
    cross: State | None = None
    recent: Tensor | None = None
    recent_feed_forward: Tensor | None = None

    def select(self, rows: Tensor) -> "BlockState":
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them."""

        def pick(part: State | Tensor | None) -> Any:
            if part is None:
                return None
            return part.index_select(0, rows) if isinstance(part, Tensor) else part.select(rows)

        return BlockState(**{name: pick(part) for name, part in vars(self).items()})

    @property
    def nbytes(self) -> int:
        """What it holds, in bytes."""
        kept = [self.recent, self.recent_feed_forward]
        for state in (self.attention, self.cross):
            kept += [] if state is None else vars(state).values()
        return sum(x.nbytes for x in kept if x is not None)

    @staticmethod
    def cat(states: Sequence["BlockState"]) -> "BlockState":
        """The rows of several states, one behind the other."""

        def join(parts: list[Any]) -> Any:
            if parts[0] is None:
                return None
            return torch.cat(parts) if isinstance(parts[0], Tensor) else parts[0].cat(parts)

        return BlockState(
            **{name: join([getattr(state, name) for state in states]) for name in vars(states[0])}
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
        feed_forward_convolution: taps of another before the feed-forward net; 0 for none.
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
        feed_forward_convolution: int = 0,
    ) -> None:
        super().__init__()
        self.convolution, self.feed_forward_convolution = (
            ShortConvolution(hidden, taps) if taps else None
            for taps in (convolution, feed_forward_convolution)
        )
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
        y, recent = self._local(self.convolution, self.attention_norm(x), before.recent, view)
        found = self.attention(y, **{**view, "state": before.attention})
        y, after = found if wanted else (found, None)
        x, heard = x + y, None
        if self.cross is not None and self.cross_norm is not None:
            whole = {**(source or {}), "state": before.cross, "return_state": wanted}
            found = self.cross(self.cross_norm(x), **whole)
            y, heard = found if wanted else (found, None)
            x = x + y
        y, fed = self._local(
            self.feed_forward_convolution,
            self.feed_forward_norm(x),
            before.recent_feed_forward,
            view,
        )
        x = x + self.feed_forward(y)
        return (x, BlockState(after, heard, recent, fed)) if wanted else x

    @staticmethod
    def _local(
        convolution: ShortConvolution | None,
        x: Tensor,
        recent: Tensor | None,
        view: dict[str, Any],
    ) -> tuple[Tensor, Tensor | None]:
        """x through the convolution, if there is one, and its last inputs."""
        if convolution is None:
            return x, None
        positions = view.get("positions")
        if positions is None:
            positions = token_positions(x.shape[1], view.get("cu_seqlens"), x.device)
        found: tuple[Tensor, Tensor] = convolution(x, positions, recent, view.get("key_mask"))
        return found
