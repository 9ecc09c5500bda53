"""The memory of linear attention: constant in size, whatever has been read into it."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .checks import check_eps, check_floating, check_keys, check_proportions, check_state, known
from .features import (
    FEATURE_MAPS,
    accumulator,
    autocast,
    full_precision,
    normalise,
    real_keys,
    rotation,
    widen,
    with_ones,
)


@dataclass(eq=False, repr=False)
class LeapState:
    """Everything a query needs to know of the keys and values so far.

    `sums` [B, H, F, E + 1] holds sum_j k'_j^T [v_j, 1], values and normaliser side by side, in
    float32, or float64 for float64 inputs. F is 2D with proportions and D without. A state is a
    value: its methods return new ones, and gradients flow through them.
    """

    sums: Tensor

    @staticmethod
    def empty(
        batch: int,
        heads: int,
        key_width: int,
        value_width: int,
        *,
        proportions: bool = True,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
    ) -> "LeapState":
        """The state before anything was read. `dtype` is that of the inputs to come."""
        width = key_width * (2 if proportions else 1)
        shape = (batch, heads, width, value_width + 1)
        return LeapState(torch.zeros(shape, dtype=accumulator(dtype), device=device))

    def __repr__(self) -> str:
        return f"LeapState({list(self.sums.shape)}, {self.sums.dtype}, {self.sums.device})"

    @property
    def kv(self) -> Tensor:
        """sum_j k'_j^T v_j, [B, H, F, E]: a view."""
        return self.sums[..., :-1]

    @property
    def norm(self) -> Tensor:
        """sum_j k'_j, [B, H, F]: a view."""
        return self.sums[..., -1]

    def extend(
        self,
        k: Tensor,
        v: Tensor,
        p_k: Tensor | None = None,
        *,
        key_mask: Tensor | None = None,
        feature_map: str = "relu",
    ) -> "LeapState":
        """The state after the keys k [B, H, S, D] with values v [B, H, S, E] and proportions
        p_k [B, H, S]; `key_mask` [B, S] is True where a key is real.

        Raises ValueError and TypeError as `leap_attention` does.
        """
        k, v = autocast(k), autocast(v)
        check_floating(k=k, v=v)
        check_keys(k, v, key_mask)
        known("feature map", feature_map, FEATURE_MAPS)
        p_k = check_proportions("p_k", p_k, k, key_mask)
        check_state(self.sums, k, p_k is not None, v.shape[-1])
        return self.extend_unchecked(k, v, p_k, key_mask, feature_map)

    def read(
        self,
        q: Tensor,
        p_q: Tensor | None = None,
        *,
        eps: float = 1e-6,
        feature_map: str = "relu",
    ) -> Tensor:
        """What queries q [B, H, N, D] with proportions p_q [B, H, N] find here: [B, H, N, E].

        Raises ValueError and TypeError as `leap_attention` does.
        """
        q = autocast(q)
        check_floating(q=q)
        check_eps(eps)
        known("feature map", feature_map, FEATURE_MAPS)
        p_q = check_proportions("p_q", p_q, q)
        check_state(self.sums, q, p_q is not None, self.sums.shape[-1] - 1)
        return self.read_unchecked(q, p_q, eps, feature_map)

    @full_precision
    def extend_unchecked(
        self,
        k: Tensor,
        v: Tensor,
        p_k: Tensor | None,
        key_mask: Tensor | None,
        feature_map: str,
    ) -> "LeapState":
        """`extend` of arguments known to be right."""
        k, v, rot = real_keys(k, v, p_k, key_mask)
        wide = widen(k, rot, feature_map).flatten(0, 1)
        values = with_ones(v, wide.dtype).flatten(0, 1)
        sums = torch.baddbmm(self.sums.flatten(0, 1), wide.mT, values)
        return LeapState(sums.view_as(self.sums))

    @full_precision
    def read_unchecked(self, q: Tensor, p_q: Tensor | None, eps: float, feature_map: str) -> Tensor:
        """`read` of arguments known to be right."""
        wide = widen(q, rotation(p_q, q), feature_map)
        return normalise(wide @ self.sums, eps).to(q.dtype)

    @full_precision
    def step_unchecked(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        p_q: Tensor | None,
        p_k: Tensor | None,
        key_mask: Tensor | None,
        eps: float,
        feature_map: str,
    ) -> tuple[Tensor, "LeapState"]:
        """`extend`, then `read`, for one query and one key: a step of decoding. Its cost is the
        number of small operations, so query and key go through them as one."""
        if key_mask is not None:
            after = self.extend_unchecked(k, v, p_k, key_mask, feature_map)
            return after.read_unchecked(q, p_q, eps, feature_map), after
        both = torch.stack((q, k))
        p = None if p_q is None or p_k is None else torch.stack((p_q, p_k))
        wide_q, wide_k = widen(both, rotation(p, both), feature_map).unbind(0)
        after = LeapState(torch.addcmul(self.sums, wide_k.mT, with_ones(v, wide_k.dtype)))
        return normalise(wide_q @ after.sums, eps).to(q.dtype), after

    def select(self, rows: Tensor) -> "LeapState":
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them:
        selection, beam reordering and repetition in one."""
        return LeapState(self.sums.index_select(0, rows))

    @staticmethod
    def cat(states: Sequence["LeapState"]) -> "LeapState":
        """The rows of several states, one behind the other."""
        return LeapState(torch.cat([state.sums for state in states]))

    def to(self, device: torch.device | str) -> "LeapState":
        """The state on another device; its dtype is its precision and stays."""
        return LeapState(self.sums.to(device))

    def detach(self) -> "LeapState":
        """The state cut from the graph that made it (truncated back-propagation)."""
        return LeapState(self.sums.detach())
