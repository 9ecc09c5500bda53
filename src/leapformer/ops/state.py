"""The memory of linear attention: constant in size, whatever has been read into it."""

from dataclasses import dataclass

import torch
from torch import Tensor

from .features import accumulator, full_precision, normalise, real_keys, rotation, widen, with_ones


@dataclass
class LeapState:
    """Everything a query needs to know of the keys and values so far.

    `sums` [B, H, F, E + 1] holds sum_j k'_j^T [v_j, 1] (design: M and z side by side), in float32,
    or float64 for float64 inputs. F is 2D with proportions and D without. A state is a value:
    its methods return new ones, and gradients flow through them.
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

    @property
    def kv(self) -> Tensor:
        """sum_j k'_j^T v_j, [B, H, F, E]: a view."""
        return self.sums[..., :-1]

    @property
    def norm(self) -> Tensor:
        """sum_j k'_j, [B, H, F]: a view."""
        return self.sums[..., -1]

    @full_precision
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
        p_k [B, H, S]; `key_mask` [B, S] is True where a key is real."""
        k, v, rot = real_keys(k, v, p_k, key_mask)
        wide = widen(k, rot, feature_map)
        self._check(wide.shape[-1], "p_k")
        values = with_ones(v, wide.dtype).flatten(0, 1)
        sums = torch.baddbmm(self.sums.flatten(0, 1), wide.flatten(0, 1).mT, values)
        return LeapState(sums.view_as(self.sums))

    @full_precision
    def read(
        self,
        q: Tensor,
        p_q: Tensor | None = None,
        *,
        eps: float = 1e-6,
        feature_map: str = "relu",
    ) -> Tensor:
        """What queries q [B, H, N, D] with proportions p_q [B, H, N] find here: [B, H, N, E]."""
        wide = widen(q, rotation(p_q, q), feature_map)
        self._check(wide.shape[-1], "p_q")
        return normalise(wide @ self.sums, eps).to(q.dtype)

    def select(self, rows: Tensor) -> "LeapState":
        """Rows of the batch, in the order and as often as `rows` (int64 [B']) names them:
        selection, beam reordering and repetition in one."""
        return LeapState(self.sums.index_select(0, rows))

    def to(self, device: torch.device | str) -> "LeapState":
        """The state on another device; its dtype is its precision and stays."""
        return LeapState(self.sums.to(device))

    def detach(self) -> "LeapState":
        """The state cut from the graph that made it (truncated back-propagation)."""
        return LeapState(self.sums.detach())

    def _check(self, width: int, name: str) -> None:
        if width != self.sums.shape[-2]:
            raise ValueError(
                f"the state is {self.sums.shape[-2]} wide and the features are {width}: "
                f"give {name} to a state made with proportions and none to one made without "
                "(LeapState.empty(..., proportions=...)), and heads of the same width"
            )
