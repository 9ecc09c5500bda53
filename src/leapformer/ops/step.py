"""One step of decoding: a key into the state, then a query from it.

A backend that has it in one call lies in `STEPS`:

    step(q, k, v, p_q, p_k, sums, eps, feature_map, leap_q, leap_k, key_mask) -> y, sums after

q, k [B, H, 1, D], v [B, H, 1, E] in any layout, key_mask [B, 1] or None, sums [B, H, F, E + 1].
Proportions are given (p_q, p_k [B, H, 1]), or learned: `leap_q` and `leap_k` are then what
`LeaP.weights` gives, W1 [r, D], b1 [r], W2 [1, r], b2 [1] or W [1, D], b [1], and

    p = sigmoid(W2 relu(W1 relu(x) + b1) + b2)        in the dtype of the sums

or neither, the lists empty: plain linear attention. y [B, H, 1, E] has the dtype of q. A state is a
value: the sums after are a new tensor. No gradient is recorded.
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .checks import check_proportions
from .native_step import native_step
from .state import LeapState
from .triton_backend import triton_step

STEPS: dict[str, Callable[..., tuple[Tensor, Tensor]]] = {
    "native": native_step,
    "triton": triton_step,
}


class Learned(Protocol):
    """Proportions that are read off the tokens: `leapformer.LeaP`."""

    def __call__(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """x [B, H, N, D], mask [B, N] -> proportions [B, H, N]."""

    def weights(self) -> list[Tensor]:
        """The tensors of the formula above; none where it is not what a call computes."""


def proportions(
    name: str, p: Tensor | Learned | None, x: Tensor, real: Tensor | None = None
) -> Tensor | None:
    """p [B, H, N] of the tokens x [B, H, N, D], read off them where it is learned; checked (see
    `check_proportions`)."""
    given = p if p is None or isinstance(p, Tensor) else p(x, real)
    return check_proportions(name, given, x, real)


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | Learned | None,
    p_k: Tensor | Learned | None,
    key_mask: Tensor | None,
    state: LeapState,
    eps: float,
    feature_map: str,
    backend: str,
) -> tuple[Tensor, LeapState]:
    """y and the state after; arguments as those of `leap_attention`, checked but for proportions.

    In one call where the backend has it and nothing has to be recorded, else in torch's operators.
    """
    fused = STEPS.get(backend)
    leap_q, leap_k = _weights(p_q, q), _weights(p_k, k)
    if fused is None or _recorded(q, k, v, p_q, p_k, state.sums, *leap_q, *leap_k):
        fused, leap_q, leap_k = None, [], []
    if leap_q and leap_k:
        p_q = p_k = None
    else:
        p_q, p_k = proportions("p_q", p_q, q), proportions("p_k", p_k, k, key_mask)
        leap_q = leap_k = []
    if fused is None:
        return state.step_unchecked(q, k, v, p_q, p_k, key_mask, eps, feature_map)
    y, sums = fused(q, k, v, p_q, p_k, state.sums, eps, feature_map, leap_q, leap_k, key_mask)
    return y, LeapState(sums)


def _weights(p: Tensor | Learned | None, x: Tensor) -> list[Tensor]:
    """Of learned proportions, where they fit the tokens; else none."""
    if p is None or isinstance(p, Tensor):
        return []
    maps = p.weights()
    for w in maps:
        if w.dtype != x.dtype or w.device != x.device:
            return []
    return maps if maps and maps[0].shape[1] == x.shape[3] else []


def _recorded(*tensors: Tensor | Learned | None) -> bool:
    """Is there a derivative to keep, a transform of torch.func to serve, or a compiler that fuses
    by itself?"""
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active():
        return True
    if forward_ad._current_level >= 0:
        return True
    grad = torch.is_grad_enabled()
    return grad and any(isinstance(x, Tensor) and x.requires_grad for x in tensors)
