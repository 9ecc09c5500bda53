"""What a query and a key become before they meet: phi(x), turned by an angle.

The weight of a key in a query's sum (LeaPformer, arXiv 2405.13046, eq. 5-7) is

    w_ij = phi(q_i) . phi(k_j) * cos(a_i - b_j),    a = pi/2 * p_q,  b = pi/2 * p_k

and because cos(a - b) = cos a cos b + sin a sin b it is one dot product of two widened vectors,

    w_ij = q'_i . k'_j,    x' = [phi(x) cos a ; phi(x) sin a].

`rotation` makes the pair (cos a, sin a), `widen` makes x'. Without proportions the pair is the
single number 1, x' is phi(x), and all that follows is plain linear attention.
"""

import functools
import math
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor

_P = ParamSpec("_P")
_R = TypeVar("_R")
_CAST = (torch.float16, torch.bfloat16, torch.float32)


def _elu_plus_one(x: Tensor) -> Tensor:
    return torch.nn.functional.elu(x) + 1


def _relu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return torch.ops.aten.threshold_backward(grad, x, 0)


def _elu_backward(grad: Tensor, x: Tensor) -> Tensor:
    return grad * x.clamp_max(0).exp()


# name -> (phi, its backward); phi is non-negative, so that every weight is
FEATURE_MAPS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor, Tensor], Tensor]]] = {
    "relu": (torch.relu, _relu_backward),
    "elu": (_elu_plus_one, _elu_backward),
}


def rotation(p: Tensor | None, like: Tensor) -> Tensor:
    """The factors (cos, sin) of pi/2 * p: [B, H, N] -> [B, H, N, 2]; ones [B, H, N, 1] without p.

    `like` [B, H, N, D] gives the shape; the result has the accumulation dtype (`accumulator`).
    """
    dtype = accumulator(like.dtype)
    if p is None:
        return like.new_ones(1, dtype=dtype).expand(*like.shape[:-1], 1)
    angle = p.to(dtype) * (math.pi / 2)
    return torch.stack([angle.cos(), angle.sin()], -1)


def real_keys(
    k: Tensor, v: Tensor, p_k: Tensor | None, key_mask: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """k, v and the keys' rotation, all three zero where `key_mask` [B, S] is False.

    A rotation of zeros gives k' = 0 for any feature map: such a key weighs nothing. That k and v
    are zero too keeps whatever stood there (NaN, Inf) out of every product.
    """
    if key_mask is None:
        return k, v, rotation(p_k, k)
    padding = ~key_mask[:, None, :, None]
    k, v, rot = (x.masked_fill(padding, 0) for x in (k, v, rotation(p_k, k)))
    return k, v, rot


def widen(x: Tensor, rot: Tensor, feature_map: str) -> Tensor:
    """x' of the module's docstring: x [..., N, D], rot [..., N, R] -> [..., N, R * D]."""
    phi = FEATURE_MAPS[feature_map][0](x.to(rot.dtype))
    return torch.cat([factor * phi for factor in rot.split(1, -1)], -1)


def widen_backward(grad: Tensor, x: Tensor, rot: Tensor, feature_map: str) -> tuple[Tensor, Tensor]:
    """Gradients of `widen` for x and rot, given that of its result."""
    phi, phi_backward = FEATURE_MAPS[feature_map]
    x = x.to(rot.dtype)
    parts, factors = grad.split(x.shape[-1], -1), rot.split(1, -1)
    grad_phi = parts[0] * factors[0]
    for part, factor in zip(parts[1:], factors[1:], strict=True):
        grad_phi.addcmul_(part, factor)
    features = phi(x)
    grad_rot = torch.stack([(part * features).sum(-1) for part in parts], -1)
    return phi_backward(grad_phi, x), grad_rot


def with_ones(v: Tensor, dtype: torch.dtype) -> Tensor:
    """Values with a column of ones, [..., E] -> [..., E + 1]: it sums the weights as they pass."""
    return torch.nn.functional.pad(v.to(dtype), (0, 1), value=1.0)


def normalise(sums: Tensor, eps: float) -> Tensor:
    """sum_j w_ij v_j / max(sum_j w_ij, eps), from [..., E + 1] -> [..., E]."""
    return sums[..., :-1] / sums[..., -1:].clamp_min(eps)


def autocast(x: Tensor) -> Tensor:
    """x in the dtype that autocast asks for, where it is on; float64 stays."""
    if not isinstance(x, Tensor) or x.dtype not in _CAST or x.device.type == "meta":
        return x
    if not torch.is_autocast_enabled(x.device.type):
        return x
    return x.to(torch.get_autocast_dtype(x.device.type))


def full_precision(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Sums are sums of many terms: keep autocast out of the function that adds them up."""

    @functools.wraps(function)
    def run(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        device = next(x.device.type for x in (*args, *kwargs.values()) if isinstance(x, Tensor))
        if device == "meta" or not torch.is_autocast_enabled(device):
            return function(*args, **kwargs)
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return run


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The dtype of sums and states: float64 for float64, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32
