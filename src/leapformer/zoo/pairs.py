"""What mechanisms share that compare every query with every key: their state is all keys so far."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.functional import pad

from ..ops import Visible, as_rule, seen_pairs, visible_counts
from ..ops.checks import check_cu_seqlens
from .base import Attention, View


@dataclass(frozen=True, eq=False)
class KeyValues:
    """Keys k [B, H, P, D], values v [B, H, P, E] and which of them are real, bool [B, P]."""

    k: Tensor
    v: Tensor
    real: Tensor

    def extend(self, k: Tensor, v: Tensor, real: Tensor) -> "KeyValues":
        """With more of them behind."""
        return KeyValues(
            torch.cat([self.k, k], 2), torch.cat([self.v, v], 2), torch.cat([self.real, real], 1)
        )

    def select(self, rows: Tensor) -> "KeyValues":
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them."""
        return KeyValues(*(x.index_select(0, rows) for x in (self.k, self.v, self.real)))

    @staticmethod
    def cat(states: Sequence["KeyValues"]) -> "KeyValues":
        """The rows of several states, one behind the other: keys that none of a state's rows needs
        are left out, and shorter states padded in front."""
        needed = [state.real.any(0) for state in states]
        longest, found = max(int(some.sum()) for some in needed), []
        for state, some in zip(states, needed, strict=True):
            front = longest - int(some.sum()), 0
            k, v = (pad(x[:, :, some], (0, 0, *front)) for x in (state.k, state.v))
            found.append((k, v, pad(state.real[:, some], front)))
        return KeyValues(*(torch.cat(parts) for parts in zip(*found, strict=True)))

    def to(self, device: torch.device | str) -> "KeyValues":
        """The same on another device."""
        return KeyValues(self.k.to(device), self.v.to(device), self.real.to(device))

    def detach(self) -> "KeyValues":
        """Cut from the graph that made it."""
        return KeyValues(self.k.detach(), self.v.detach(), self.real)


class PairwiseAttention(Attention):
    """A mechanism with a weight for every pair. Subclasses write `mix`."""

    def mix(self, q: Tensor, k: Tensor, v: Tensor, seen: Tensor | None, causal: bool) -> Tensor:
        """y [B, H, N, E]; `seen` broadcasts to [B, H, N, S] and is True where a query sees a key.
        None: all of them, or with `causal` those up to its own place."""
        raise NotImplementedError

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, view: View
    ) -> Tensor | tuple[Tensor, KeyValues]:
        stateful = view.state is not None or view.return_state
        if view.cu_seqlens is not None:
            return self._packed(q, k, v, view, check_cu_seqlens(view.cu_seqlens, q, k, stateful))
        if not stateful:
            return self._attend(q, k, v, view.visible, view.key_mask, 0)
        real = view.key_mask
        if real is None:
            real = k.new_ones(len(k), k.shape[2], dtype=torch.bool)
        state, before = KeyValues(k, v, real), 0
        if view.state is not None:
            if not isinstance(view.state, KeyValues):
                raise TypeError(f"the state is a {type(view.state).__name__}: expected KeyValues")
            before = view.state.k.shape[2]
            state = view.state.extend(k, v, real)
        y = self._attend(q, state.k, state.v, view.visible, state.real, before)
        return (y, state) if view.return_state else y

    def _attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        visible: str | Visible | Tensor,
        key_mask: Tensor | None,
        before: int,
    ) -> Tensor:
        """The first `before` keys are seen by all, the rest as `visible` says."""
        rule, queries, keys = as_rule(visible), q.shape[2], k.shape[2] - before
        if rule == Visible.causal() and key_mask is None and not before and queries == keys:
            return self.mix(q, k, v, None, causal=True)
        if rule == Visible.all() or (rule == Visible.causal() and queries == keys == 1):
            seen = None if key_mask is None else key_mask[:, None, None, :]
        else:
            counts = visible_counts(visible, len(q), queries, keys).to(q.device) + before
            seen = seen_pairs(counts, key_mask, k.shape[2])
        return self.mix(q, k, v, seen, causal=False)

    def _packed(self, q: Tensor, k: Tensor, v: Tensor, view: View, bounds: Tensor) -> Tensor:
        """Each document by itself."""
        found = []
        for a, b in pairwise(bounds.tolist()):
            visible = view.visible[..., a:b] if isinstance(view.visible, Tensor) else view.visible
            mask = None if view.key_mask is None else view.key_mask[:, a:b]
            q_d, k_d, v_d = (x[:, :, a:b] for x in (q, k, v))
            found.append(self._attend(q_d, k_d, v_d, visible, mask, 0))
        return torch.cat(found, 2)
