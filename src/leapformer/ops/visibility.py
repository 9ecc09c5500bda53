"""Which keys a query may see, as one integer: query i sees the first n_i keys of the call.

The n_i never decrease. Prefixes are what a running state can serve, so this is the whole mask
language: a mask that cannot be streamed cannot be written.
"""

import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import forbid, known


@dataclass(frozen=True)
class Visible:
    """A rule for n_i among S keys: `n_i = min(S, (i // size + start) * step + lookahead)`.

    Use the named constructors; `Visible.causal()` and `Visible.all()` are what the strings
    "causal" and "all" stand for.
    """

    size: int = 1
    start: int = 1
    step: int = 1
    lookahead: int = 0

    def __post_init__(self) -> None:
        numbers = self.numbers()
        if not all(isinstance(number, int) for number in numbers):
            raise TypeError(f"{self}: visibility counts keys, give whole numbers")
        if self.size < 1 or min(numbers) < 0:
            raise ValueError(f"{self}: size must be at least 1, the rest at least 0")

    def numbers(self) -> list[int]:
        """What stands in the rule: size, start, step and lookahead."""
        return [self.size, self.start, self.step, self.lookahead]

    @staticmethod
    def all() -> "Visible":
        """Every query sees every key (encoder, cross-attention)."""
        return Visible(step=0, lookahead=sys.maxsize)

    @staticmethod
    def causal(prefix: int = 0) -> "Visible":
        """Query i sees keys 0..i after `prefix` that all see: n_i = prefix + i + 1."""
        return Visible(lookahead=prefix)

    @staticmethod
    def chunks(size: int, lookahead: int = 0) -> "Visible":
        """A streaming encoder: the query's whole chunk, all before, `lookahead` keys after."""
        return Visible(size=size, step=size, lookahead=lookahead)

    @staticmethod
    def wait_k(k: int, ratio: int = 1) -> "Visible":
        """Simultaneous cross-attention: k source units first, then one more a query.

        A unit is `ratio` keys (the pre-decision ratio): n_i = ratio * (k + i).
        """
        if ratio < 1:
            raise ValueError(f"ratio is {ratio}: a source unit has at least one key")
        return Visible(start=k, step=ratio)

    def count(self, i: int, keys: int) -> int:
        """n_i for one query."""
        return min(keys, (i // self.size + self.start) * self.step + self.lookahead)

    def counts(self, queries: int, keys: int) -> Tensor:
        """All n_i: int64 [queries], on the CPU."""
        return self.counts_at(torch.arange(queries), torch.tensor(keys), keys)

    def counts_at(self, i: Tensor, keys: Tensor, most: int) -> Tensor:
        """n_i of the queries i among `keys` keys, of which there are `most` at most; int64."""
        start, step, lookahead = (min(n, most) for n in (self.start, self.step, self.lookahead))
        unit = i.div(self.size, rounding_mode="floor") + start
        return (unit.clamp_max(most) * step + lookahead).minimum(keys)


RULES = {"all": Visible.all(), "causal": Visible.causal()}


def as_rule(visible: str | Visible | Tensor) -> Visible | None:
    """The rule behind `visible`; None for a tensor, which is no rule."""
    if isinstance(visible, Tensor):
        return None
    if isinstance(visible, Visible):
        return visible
    if not isinstance(visible, str):
        raise TypeError(
            f"visible is {type(visible).__name__}: expected {' or '.join(map(repr, RULES))}, "
            "a Visible rule, or an integer tensor [N] or [B, N]"
        )
    return RULES[known("visibility", visible, RULES)]


def visible_counts(
    visible: str | Visible | Tensor,
    batch: int,
    queries: int,
    keys: int,
    cu_seqlens: Tensor | None = None,
) -> Tensor:
    """The n_i of every query, int64 [N], or [B, N] where each row has its own; checked.

    With `cu_seqlens` (see `leap_attention`) `visible` counts keys of the query's own document, and
    the n_i all keys up to there, [N].

    Raises ValueError for a tensor that decreases, is negative or exceeds the number of keys, and
    TypeError for one that is not of integers.
    """
    rule = as_rule(visible)
    if rule is not None and cu_seqlens is None:
        return rule.counts(queries, keys)
    first: Tensor | int = 0
    limit = torch.tensor(keys)
    if cu_seqlens is not None:
        which = documents(cu_seqlens, queries)
        first, limit = cu_seqlens[which], cu_seqlens.diff()[which]
    if rule is not None:
        return first + rule.counts_at(torch.arange(queries) - first, limit, keys)
    assert isinstance(visible, Tensor)
    if visible.is_floating_point() or visible.is_complex() or visible.dtype == torch.bool:
        raise TypeError(f"visible is {visible.dtype}: it counts keys, give an integer tensor")
    if visible.shape not in ((queries,), (batch, queries)):
        raise ValueError(
            f"visible is {list(visible.shape)}: expected [N] = [{queries}] "
            f"or [B, N] = [{batch}, {queries}]"
        )
    counts = visible.long()
    if cu_seqlens is not None:
        counts = counts.flatten().cpu()  # packed documents are one row
    outside = (counts < 0) | (counts > limit.to(counts.device))
    forbid(outside.any(), f"visible must lie in 0..S = {keys}: it counts leading keys")
    counts = counts + first
    shrinks = counts[..., 1:] < counts[..., :-1]
    forbid(shrinks.any(), "visible decreases: a later query must see all that an earlier one saw")
    return counts


def documents(cu_seqlens: Tensor, tokens: int) -> Tensor:
    """The number of the document that each token belongs to: int64 [tokens], where `cu_seqlens`
    lies."""
    places = torch.arange(tokens, device=cu_seqlens.device)
    return torch.searchsorted(cu_seqlens, places, right=True) - 1


def token_positions(
    tokens: int, cu_seqlens: Tensor | None = None, device: torch.device | str | None = None
) -> Tensor:
    """0, 1, ... for each token, from the start of its document: int64 [tokens]."""
    places = torch.arange(tokens, device=device)
    if cu_seqlens is None:
        return places
    bounds = cu_seqlens.long()
    return places - bounds[documents(bounds, tokens)].to(places.device)


def seen_by_any(counts: Tensor, key_mask: Tensor | None, batch: int, keys: int) -> Tensor | None:
    """`key_mask` [B, S] with the keys hidden that no query of the call sees; `counts` lie on its
    device."""
    if not counts.shape[-1]:
        return key_mask
    seen = torch.arange(keys, device=counts.device) < counts[..., -1:]
    seen = seen.expand(batch, -1)
    return seen if key_mask is None else key_mask & seen


def seen_pairs(
    counts: Tensor, key_mask: Tensor | None, keys: int, cu_seqlens: Tensor | None = None
) -> Tensor:
    """Which key each query sees, as quadratic forms want it: bool, [N, S] or [B, 1, N, S] where
    counts [N] or [B, N] or a `key_mask` [B, S] on the same device differ by row."""
    seen = counts.unsqueeze(-1) > torch.arange(keys, device=counts.device)
    if cu_seqlens is not None:
        which = documents(cu_seqlens, keys).to(counts.device)
        seen = seen & (which.unsqueeze(-1) == which)
    seen = seen if seen.dim() == 2 else seen.unsqueeze(1)
    return seen if key_mask is None else seen & key_mask[:, None, None, :]
