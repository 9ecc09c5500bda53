"""Others that compute the same: the quadratic form, and causal linear attention of two libraries.

The libraries know no proportions: they are fed widened queries and keys, [phi(x) cos; phi(x) sin],
made before the clock starts.
"""

import importlib
import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..ops import leap_attention
from ..ops.features import rotation, widen
from .cases import DECODER, inputs

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
ALLOWED = {torch.float32: 1e-3, torch.float16: 1e-2, torch.bfloat16: 5e-2}
"""The relative error of a peer's y and gradients; in float32 it may multiply in TF32."""


def quadratic(q: Tensor, k: Tensor, v: Tensor, p_q: Tensor, p_k: Tensor, causal: bool) -> Tensor:
    """The formula as one would write it first, in the inputs' dtype, every weight held."""
    angle = (p_q.unsqueeze(-1) - p_k.unsqueeze(-2)) * (math.pi / 2)
    weights = (q.relu() @ k.relu().mT) * angle.cos()
    if causal:
        weights = weights.tril()
    return (weights @ v) / weights.sum(-1, keepdim=True).clamp_min(1e-6)


def _flash_linear_attention() -> Attend:
    """flash-linear-attention, with its own normaliser. Axes there: [B, N, H, D]."""
    chunked = importlib.import_module("fla.ops.linear_attn").chunk_linear_attn

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (x.transpose(1, 2) for x in (q, k, v))
        y: Tensor = chunked(q, k, v, scale=1.0, normalize=True)[0]
        return y.transpose(1, 2)

    return attend


def _fast_transformers() -> Attend:
    """pytorch-fast-transformers: its product is the numerator."""
    product = importlib.import_module("fast_transformers.causal_product").causal_dot_product

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        y: Tensor = product(q, k, v)
        return y / (q * k.cumsum(2)).sum(-1, keepdim=True)

    return attend


PEERS: dict[str, tuple[str, Callable[[], Attend]]] = {
    "flash-linear-attention": ("cuda", _flash_linear_attention),
    "pytorch-fast-transformers": ("cpu", _fast_transformers),
}
"""name -> (the device it is measured on, what loads it)"""


def peers(device: torch.device, dtype: torch.dtype) -> tuple[dict[str, Attend], dict[str, str]]:
    """Those that are here and right, and why the others are not measured."""
    here, absent = {}, {}
    for name, (where, load) in PEERS.items():
        if device.type != where:
            absent[name] = f"measured on {where}"
            continue
        try:
            attend = load()
            error = _error(attend, device, dtype)
        except (ImportError, OSError, RuntimeError) as failure:
            absent[name] = f"{type(failure).__name__}: {failure}"
            continue
        if error <= ALLOWED[dtype]:
            here[name] = attend
        else:
            absent[name] = f"errs by {error:.1e} in {dtype}"
    return here, absent


def widened(q: Tensor, k: Tensor, v: Tensor, p_q: Tensor, p_k: Tensor) -> list[Tensor]:
    """What a peer takes in place of q, k, v and proportions; leaves."""
    pairs = ((q, p_q), (k, p_k))
    wide = [widen(x, rotation(p, x), "relu").to(x.dtype) for x, p in pairs]
    return [x.detach().contiguous().requires_grad_() for x in (*wide, v)]


def _error(attend: Attend, device: torch.device, dtype: torch.dtype) -> float:
    """Against the reference without proportions, on features so far from zero that its ReLU is the
    identity."""
    (q, k, v, p_q, p_k), grad = inputs(DECODER, 300, device, dtype)
    leaves = widened(q.abs() + 0.1, k.abs() + 0.1, v, 0.9 * p_q + 0.05, 0.9 * p_k + 0.05)
    exact = [x.detach().double().requires_grad_() for x in leaves]
    y = attend(*leaves)
    expected = leap_attention(*exact, visible="causal", backend="reference")
    pairs = zip(
        (y, *torch.autograd.grad(y, leaves, grad.to(y.dtype))),
        (expected, *torch.autograd.grad(expected, exact, grad.double())),
        strict=True,
    )
    return max(float((a - b).detach().norm() / b.detach().norm()) for a, b in pairs)
