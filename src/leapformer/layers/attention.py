"""Heads: projections around an attention mechanism."""

from torch import Tensor, nn

from ..ops import LeapState, Visible
from ..zoo import Attention


class MultiHeadAttention(nn.Module):
    """x [B, N, hidden] attends to itself or to a context [B, S, hidden] -> [B, N, hidden].

    Args:
        attention: the mechanism; its num_heads * head_dim is the hidden width.
        dropout: after the output projection. The linear form has no weights to drop.
    """

    def __init__(self, attention: Attention, dropout: float = 0.0) -> None:
        super().__init__()
        hidden = attention.num_heads * attention.head_dim
        self.attention = attention
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        *,
        visible: str | Visible | Tensor = "all",
        key_mask: Tensor | None = None,
    ) -> Tensor:
        """`visible` and `key_mask` [B, S] are those of `leapformer.leap_attention`."""
        context = x if context is None else context
        q, k, v = self._heads(self.q_proj(x), self.k_proj(context), self.v_proj(context))
        return self._merge(self.attention(q, k, v, visible=visible, key_mask=key_mask))

    def stream(
        self,
        x: Tensor,
        state: LeapState | None = None,
        start: int = 0,
        key_mask: Tensor | None = None,
    ) -> tuple[Tensor, LeapState]:
        """The next tokens x of a causal sequence of which `start` went into `state`; `key_mask`
        [B, N] is True where x is real."""
        q, k, v = self._heads(self.q_proj(x), self.k_proj(x), self.v_proj(x))
        y, state = self.attention(
            q,
            k,
            v,
            visible="causal",
            key_mask=key_mask,
            state=state,
            return_state=True,
            start=start,
        )
        return self._merge(y), state

    def _heads(self, *xs: Tensor) -> tuple[Tensor, ...]:
        heads = self.attention.num_heads
        return tuple(x.unflatten(-1, (heads, -1)).transpose(1, 2) for x in xs)

    def _merge(self, y: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.out_proj(y.transpose(1, 2).flatten(2)))
        return out
