"""One layer of a transformer: attention, then a feed-forward net, each behind a norm."""

from torch import Tensor, nn

from ..ops import LeapState, Visible
from .attention import MultiHeadAttention


class TransformerBlock(nn.Module):
    """x [B, N, hidden] -> [B, N, hidden]; norms come first, as in the Long-Range Arena set-up.

    Args:
        attention: the heads.
        hidden: width of x.
        intermediate: width inside the feed-forward net.
        dropout: after each of its two linear maps.
        eps: of the norms.
    """

    def __init__(
        self,
        attention: MultiHeadAttention,
        hidden: int,
        intermediate: int,
        dropout: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(hidden, eps)
        self.attention = attention
        self.feed_forward_norm = nn.LayerNorm(hidden, eps)
        self.feed_forward = nn.Sequential(
            nn.Linear(hidden, intermediate),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(intermediate, hidden),
            nn.Dropout(dropout),
        )

    def forward(
        self,
        x: Tensor,
        visible: str | Visible | Tensor = "all",
        key_mask: Tensor | None = None,
    ) -> Tensor:
        x = x + self.attention(self.attention_norm(x), visible=visible, key_mask=key_mask)
        return self._feed_forward(x)

    def stream(
        self,
        x: Tensor,
        state: LeapState | None = None,
        start: int = 0,
        key_mask: Tensor | None = None,
    ) -> tuple[Tensor, LeapState]:
        """The next tokens x of a causal sequence, see `MultiHeadAttention.stream`."""
        y, state = self.attention.stream(self.attention_norm(x), state, start, key_mask)
        return self._feed_forward(x + y), state

    def _feed_forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.feed_forward(self.feed_forward_norm(x))
        return out
