"""Heads: projections around an attention mechanism."""

from typing import Any

from torch import Tensor, nn

from ..zoo import Attention, State, View
from .embedding import rotate, sinusoids


class HeadNorm(nn.RMSNorm):
    """x [..., D] over its root mean square, times a learned weight [D]; in the weight's dtype,
    under autocast wider than that of x."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class MultiHeadAttention(nn.Module):
    """x [B, N, hidden] attends to itself or to a context [B, S, hidden] -> [B, N, hidden].

    Args:
        attention: the mechanism; its num_heads * head_dim is the hidden width. One with
            `traits.shared_qk` gets no k_proj: the keys are the queries.
        dropout: after the output projection. The linear form has no weights to drop.
        rotary: turn queries and keys by their positions; for `traits.rotary`.
        addressed: add what an `address` says to queries and keys, behind their projections; it goes
            through one projection of its own, so that equal places meet from the start.
        qk_norm: RMS norms, one for the queries and one for the keys, shared by the heads, behind
            all that (Henry et al., 2020): no token, however strange, drowns the others.
    """

    def __init__(
        self,
        attention: Attention,
        dropout: float = 0.0,
        rotary: bool = False,
        addressed: bool = False,
        qk_norm: bool = False,
    ) -> None:
        super().__init__()
        hidden = attention.num_heads * attention.head_dim
        if rotary and not attention.traits.rotary:
            raise ValueError(
                f"rotary positions turn dot products, and {type(attention).__name__} has none: "
                "choose other positions"
            )
        if rotary and attention.head_dim % 2:
            raise ValueError(f"the heads are {attention.head_dim} wide: rotary needs an even width")
        self.attention = attention
        self.rotary = rotary
        self.q_proj = nn.Linear(hidden, hidden)
        self.k_proj = None if attention.traits.shared_qk else nn.Linear(hidden, hidden)
        self.v_proj = nn.Linear(hidden, hidden)
        self.out_proj = nn.Linear(hidden, hidden)
        self.dropout = nn.Dropout(dropout)
        self.address = nn.Linear(hidden, hidden, bias=False) if addressed else None
        norm = HeadNorm if qk_norm else nn.Identity
        self.q_norm = norm(attention.head_dim)
        self.k_norm = None if self.k_proj is None else norm(attention.head_dim)

    def forward(
        self,
        x: Tensor,
        context: Tensor | None = None,
        address: tuple[Tensor, Tensor] | None = None,
        **view: Any,
    ) -> Tensor | tuple[Tensor, State]:
        """`view` are the fields of `leapformer.zoo.View`; with `return_state` also the state.

        `address` are places of the queries, [N] or [B, N], and of the keys, [S] or [B, S], on one
        scale that need not be of whole numbers: see `leapformer.progress`. Raises ValueError where
        it is given and the heads are not `addressed`, or the other way round.
        """
        if (address is None) != (self.address is None):
            raise ValueError("give an address to heads that are addressed, and to no others")
        q, k, v = self._project(x, x if context is None else context, address)
        if self.rotary:
            places = View(**view).places(q, k)
            q, k = (rotate(y, place) for y, place in zip((q, k), places, strict=True))
        found = self.attention(q, k, v, **view)
        if isinstance(found, tuple):
            return self._merge(found[0]), found[1]
        return self._merge(found)

    def _project(
        self, x: Tensor, context: Tensor, address: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, ...]:
        """q, k, v [B, H, N or S, D]; k is q where the mechanism shares the projection."""
        if self.k_proj is None and context is not x:
            raise ValueError(
                f"{type(self.attention).__name__} shares one projection between queries and keys: "
                "no context"
            )
        q = self.q_proj(x)
        k = q if self.k_proj is None else self.k_proj(context)
        if address is not None and self.address is not None:
            of_q, of_k = (sinusoids(place, x.shape[-1]).to(x.dtype) for place in address)
            q, k = q + self.address(of_q), k + self.address(of_k)
        heads = (self.attention.num_heads, -1)
        q, k, v = (y.unflatten(-1, heads) for y in (q, k, self.v_proj(context)))
        q = self.q_norm(q)
        k = q if self.k_norm is None else self.k_norm(k)
        return tuple(y.transpose(1, 2) for y in (q, k, v))

    def _merge(self, y: Tensor) -> Tensor:
        out: Tensor = self.dropout(self.out_proj(y.transpose(1, 2).flatten(2)))
        return out
