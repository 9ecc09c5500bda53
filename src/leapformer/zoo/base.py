"""What every attention mechanism here is: a module from q, k, v to y, and what it can do."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol, Self

import torch
from torch import Tensor, nn

from ..ops import Visible, as_rule, token_positions
from ..ops.checks import check_floating, check_keys, forbid
from ..ops.features import accumulator, autocast


@dataclass(frozen=True)
class Traits:
    """What a mechanism can do; tools and tests read these, not lists of names.

    Attributes:
        linear: time and memory grow linearly with the length (Reformer: but for a logarithm).
        causal: can hide the future from a query.
        cross: queries and keys may be of different sequences.
        streaming: the state it goes on from is constant in size. (Every causal mechanism goes on
            from a state.)
        fixed_length: must know the longest sequence in advance.
        shared_qk: uses one projection for queries and keys.
        rotary: its weights are made of dot products q.k, which rotary positions turn; where only
            features of q and k meet, they would lose their sign or their meaning.
        right_padded: counts places from the start of a row, so padding must stand at its end.
    """

    linear: bool
    causal: bool = False
    cross: bool = False
    streaming: bool = False
    fixed_length: bool = False
    shared_qk: bool = False
    rotary: bool = False
    right_padded: bool = False


class State(Protocol):
    """What a causal mechanism keeps of the tokens so far. A value: its methods give new ones."""

    def select(self, rows: Tensor) -> Self:
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them."""

    @staticmethod
    def cat(states: Sequence[Any]) -> "State":
        """The rows of several states, one behind the other."""

    def to(self, device: torch.device | str) -> Self:
        """The state on another device."""

    def detach(self) -> Self:
        """The state cut from the graph that made it."""


@dataclass(frozen=True, kw_only=True)
class View:
    """What the queries of a call see, and where its tokens stand.

    Attributes:
        visible: see `leapformer.leap_attention`, like the next two.
        key_mask: bool [B, S], True where a key is real.
        cu_seqlens: bounds of documents packed into one row, int [documents + 1].
        positions: place of each query in its sequence, int64 [N] or [B, N]; 0, 1, ... by default,
            and with `cu_seqlens` from the start of each document.
        key_positions: place of each key, alike; by default those of the queries where there are as
            many, else 0, 1, ...
        state: what came before, as a call with `return_state` left it; every query sees all of it.
        return_state: also return the state after this call. For mechanisms with `traits.causal`.
    """

    visible: str | Visible | Tensor = "all"
    key_mask: Tensor | None = None
    cu_seqlens: Tensor | None = None
    positions: Tensor | None = None
    key_positions: Tensor | None = None
    state: Any = None
    return_state: bool = False

    def places(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Positions of the queries q [B, H, N, D] and of the keys k [B, H, S, D]."""
        of_queries, of_keys = self.positions, self.key_positions
        if of_queries is None:
            of_queries = token_positions(q.shape[2], self.cu_seqlens, q.device)
        if of_keys is None:
            same = k.shape[2] == q.shape[2]
            of_keys = of_queries if same else token_positions(k.shape[2], device=k.device)
        return of_queries, of_keys


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
        if self.traits.fixed_length and max_length is None:
            raise ValueError(f"{type(self).__name__} must know the longest sequence: max_length")

    @classmethod
    def options(cls) -> tuple[str, ...]:
        """Names of the arguments that this mechanism takes beyond those of all."""
        parameters = inspect.signature(cls).parameters.values()
        return tuple(p.name for p in parameters if p.kind is p.KEYWORD_ONLY)

    def forward(
        self, q: Tensor, k: Tensor, v: Tensor, **view: Any
    ) -> Tensor | tuple[Tensor, State]:
        """Attend; `view` are the fields of `View`. Gives also the state after, if asked for."""
        return self.attend(q, k, v, View(**view))

    def attend(self, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor | tuple[Tensor, State]:
        """What a mechanism is."""
        raise NotImplementedError


class EncoderAttention(Attention):
    """A mechanism for encoders: within one sequence, every token sees every real one.

    Subclasses write `mix`. What stands at padding never reaches them.
    """

    def mix(self, q: Tensor, k: Tensor, v: Tensor, real: Tensor) -> Tensor:
        """y [B, H, N, E] of q, k [B, H, N, D] and v [B, H, N, E], zeros where `real` [B, N] is
        False. What it gives at padding does not matter, as long as it is finite."""
        raise NotImplementedError

    def attend(self, q: Tensor, k: Tensor, v: Tensor, view: View) -> Tensor:
        """Raises ValueError for anything but self-attention in which all is visible."""
        name = type(self).__name__
        key_mask = view.key_mask
        if view.state is not None or view.return_state:
            raise ValueError(f"{name} has no state to go on from: give it all keys at once")
        if view.cu_seqlens is not None:
            raise ValueError(f"{name} attends within one sequence: give packed documents as rows")
        q, k, v = autocast(q), autocast(k), autocast(v)
        check_floating(q=q, k=k, v=v)
        check_keys(k, v, key_mask)
        if as_rule(view.visible) != Visible.all():
            raise ValueError(f'{name} cannot hide keys from a query: visible must be "all"')
        if q.shape != k.shape:
            raise ValueError(
                f"q is {list(q.shape)} and k is {list(k.shape)}: {name} attends within one sequence"
            )
        if q.shape[1] != self.num_heads or q.shape[3] != self.head_dim:
            raise ValueError(
                f"q is {list(q.shape)}: expected [B, {self.num_heads}, N, {self.head_dim}]"
            )
        if self.traits.fixed_length and q.shape[2] > (self.max_length or 0):
            raise ValueError(
                f"the sequence is {q.shape[2]} long, beyond {name}'s max_length of "
                f"{self.max_length}"
            )
        if not q.shape[2]:
            return v
        if key_mask is None:
            real = q.new_ones(q.shape[0], q.shape[2], dtype=torch.bool)
            return self.mix(q, k, v, real)
        if self.traits.right_padded:
            forbid(
                (key_mask[:, 1:] & ~key_mask[:, :-1]).any(),
                f"{name} counts places from the start of a row: pad on the right",
            )
        q, k, v = (x.masked_fill(~key_mask[:, None, :, None], 0) for x in (q, k, v))
        return self.mix(q, k, v, key_mask)


def masked_softmax(scores: Tensor, mask: Tensor) -> Tensor:
    """Softmax over the last axis among the entries where `mask`, which broadcasts, is True; zeros
    in a row that has none. Worked out in float32 at least, returned in the dtype of the scores."""
    dtype = accumulator(scores.dtype)
    weights = scores.to(dtype).masked_fill(~mask, torch.finfo(dtype).min).softmax(-1)
    return (weights * mask).to(scores.dtype)
