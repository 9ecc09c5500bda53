"""What must hold of the arguments, and the one sentence that says so where it does not."""

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor

from .features import accumulator

FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name`, if it is one of the names; else ValueError with the nearest and all of them."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown {kind} {name!r}{hint}: choose from {', '.join(names)}")
    return name


def forbid(fails: Tensor | bool, message: str) -> None:
    """Raise ValueError if `fails`, a bool or a tensor of one.

    On CUDA and under torch.compile nothing may wait for the value of a tensor: there the device
    itself checks, and raises RuntimeError later.
    """
    if isinstance(fails, Tensor) and not _may_look(fails):
        torch._assert_async(~fails, message)
    elif fails:
        raise ValueError(message)


def _may_look(x: Tensor) -> bool:
    return x.device.type != "cuda" and not torch.compiler.is_compiling()


def check_floating(**tensors: Tensor) -> None:
    """All have four axes, are floating point, and share dtype and device."""
    first_name, first = next(iter(tensors.items()))
    for name, x in tensors.items():
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} is {type(x).__name__}: expected a tensor")
        if x.dim() != 4:
            raise ValueError(
                f"{name} is {list(x.shape)}: expected four axes, [batch, heads, length, width]"
            )
        if x.dtype not in FLOATS:
            raise TypeError(f"{name} is {x.dtype}: expected floating point, convert with .float()")
        if x.dtype != first.dtype or x.device != first.device:
            raise TypeError(
                f"{name} is {x.dtype} on {x.device} and {first_name} is {first.dtype} on "
                f"{first.device}: they must share dtype and device"
            )


def check_keys(k: Tensor, v: Tensor, key_mask: Tensor | None) -> None:
    """Values and mask belong to the keys."""
    if v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"k is {list(k.shape)} and v is {list(v.shape)}: expected [B, H, S, D] and [B, H, S, E]"
        )
    if key_mask is None:
        return
    if not isinstance(key_mask, Tensor) or key_mask.dtype != torch.bool:
        kind = getattr(key_mask, "dtype", type(key_mask).__name__)
        raise TypeError(f"key_mask is {kind}: expected a bool tensor, True where a key is real")
    if key_mask.shape != (k.shape[0], k.shape[2]):
        raise ValueError(
            f"key_mask is {list(key_mask.shape)}: expected [B, S] = [{k.shape[0]}, {k.shape[2]}]"
        )


def check_cu_seqlens(cu_seqlens: Tensor, q: Tensor, k: Tensor, stateful: bool) -> Tensor:
    """Boundaries of the documents in a row q, k [1, H, N, D]; as int64 on the CPU. `stateful`: a
    state is given or asked for."""
    if stateful:
        raise ValueError("packed documents have no state in common: give no state, ask for none")
    if not isinstance(cu_seqlens, Tensor) or cu_seqlens.dtype not in (torch.int32, torch.int64):
        kind = getattr(cu_seqlens, "dtype", type(cu_seqlens).__name__)
        raise TypeError(f"cu_seqlens is {kind}: expected a tensor of int32 or int64")
    if cu_seqlens.dim() != 1 or len(cu_seqlens) < 2:
        raise ValueError(f"cu_seqlens is {list(cu_seqlens.shape)}: expected [documents + 1]")
    if len(q) != 1 or q.shape[2] != k.shape[2]:
        raise ValueError(
            f"q is {list(q.shape)} and k is {list(k.shape)}: documents are packed into one row, "
            "[1, H, N, D], of as many queries as keys"
        )
    bounds = cu_seqlens.cpu().long()
    wrong = (bounds[0] != 0) | (bounds[-1] != q.shape[2]) | (bounds.diff() < 0).any()
    forbid(wrong, f"cu_seqlens must rise from 0 to N = {q.shape[2]}: it says where documents begin")
    return bounds


def check_proportions(
    name: str, p: Tensor | None, x: Tensor, real: Tensor | None = None
) -> Tensor | None:
    """Proportions p of the tokens x [B, H, N, D], as [B, H, N], in [0, 1]; None stays None.

    Where `real` [B, N] is False they may be anything, and become 0. NaN passes, as through all of
    torch: a model that diverged is seen at its loss.
    """
    if p is None:
        return None
    if not p.is_floating_point():
        raise TypeError(f"{name} is {p.dtype}: proportions are floating point numbers in [0, 1]")
    if p.device != x.device:
        raise TypeError(f"{name} is on {p.device} and its tokens are on {x.device}")
    try:
        p = p.expand(x.shape[:3])
    except RuntimeError:
        raise ValueError(
            f"{name} is {list(p.shape)}: expected [B, H, length] = {list(x.shape[:3])}"
        ) from None
    if real is not None:
        p = p.masked_fill(~real[:, None, :], 0)
    if p.numel():
        low, high = torch.aminmax(p.detach())
        look = _may_look(p)
        forbid(
            low.item() < 0 or high.item() > 1 if look else (low < 0) | (high > 1),
            f"{name} leaves [0, 1]: proportions come from LeaP, from Ramp or from a sigmoid",
        )
    return p


def check_state(sums: Tensor, x: Tensor, proportions: bool, value_width: int) -> None:
    """A state's sums fit queries or keys x [B, H, N, D] and values of that width."""
    batch, heads, _, width = x.shape
    expected = (batch, heads, width * (2 if proportions else 1), value_width + 1)
    if sums.shape != expected:
        raise ValueError(
            f"the state's sums are {list(sums.shape)} and {list(expected)} is expected here, "
            "[B, H, 2D with proportions or D without, E + 1]: "
            "see LeapState.empty(..., proportions=...)"
        )
    dtype = accumulator(x.dtype)
    if sums.dtype != dtype or sums.device != x.device:
        raise TypeError(
            f"the state is {sums.dtype} on {sums.device}: inputs of {x.dtype} on {x.device} "
            f"need one of {dtype} there"
        )


def check_eps(eps: float) -> None:
    """eps bounds a divisor from below, in float32."""
    if not eps >= torch.finfo(torch.float32).tiny:
        raise ValueError(f"eps is {eps}: it bounds a divisor from below and must be positive")
