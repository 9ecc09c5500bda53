"""Linear time, linear memory, on the CPU: one fused C++ kernel, `native.cpp`.

It cuts the sequence as the chunked backend does (`chunked.py`, docs/attention.md), in tiles of 64
queries and 64 keys, and takes whole heads one by one, so that a tile's scratch stays in the cache
of its core. Here are its operators, its library's functions and what they are called with.
"""

import ctypes
import functools
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .build import INSTEAD, build, find
from .chunked import empty_output, refuse_second, refuse_tangents
from .features import full_precision

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
FEATURES = {"relu": 0, "elu": 1}


def native(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    counts: Tensor,
    key_mask: Tensor | None,
    sums: Tensor,
    eps: float,
    feature_map: str,
    whole: bool,
    cu_seqlens: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, E] and the sums over the state and all keys (nothing, [0], unless `whole`).

    Arguments as `chunked`'s, on the CPU. Builds the kernel where it is not there yet.

    Raises RuntimeError where the kernel cannot be built.
    """
    refuse_tangents("native", q, k, v, p_q, p_k, sums)
    if p_q is not None and p_k is not None:
        p_q, p_k = p_q.to(sums.dtype), p_k.to(sums.dtype)
    y, _, sums = _forward(
        q, k, v, p_q, p_k, sums, counts, key_mask, cu_seqlens, eps, feature_map, whole
    )
    return y, sums


class _View(ctypes.Structure):
    _fields_ = [("data", ctypes.c_void_p), *((n, ctypes.c_int64) for n in ("batch", "head", "row"))]


_SIZES = ("batch", "heads", "queries", "keys", "width", "values")
_OPTIONS = ("type", "feature", "turned", "documents", "count_stride", "whole", "poison")
_VIEWS = ("q", "k", "v", "p_q", "p_k", "y", "total", "grad_y", "dq", "dk", "dv", "dp_q", "dp_k")
_POINTERS = ("counts", "bounds", "mask", "sums", "grad_after", "after", "grad_sums")


class _Call(ctypes.Structure):
    """`Call` of native.cpp."""

    _fields_ = [
        *((name, ctypes.c_int64) for name in (*_SIZES, *_OPTIONS)),
        ("eps", ctypes.c_double),
        *((name, _View) for name in _VIEWS),
        *((name, ctypes.c_void_p) for name in _POINTERS),
    ]


class Kernel(NamedTuple):
    """`run(call, backward)` and `step(record)` of the library at `path`: 0, or 1 where memory ran
    out."""

    path: Path
    run: Any
    step: Any


@functools.cache
def _load(path: Path) -> Kernel:
    library = ctypes.CDLL(str(path))
    run, step = library.leapformer_attention, library.leapformer_step
    run.argtypes = [ctypes.POINTER(_Call), ctypes.c_int]
    step.argtypes = [ctypes.c_char_p]
    return Kernel(path, run, step)


@functools.cache
def _found() -> Kernel | None:
    """The kernel, where it was built before and can be loaded; else None."""
    path = find()
    try:
        return None if path is None else _load(path)
    except OSError:  # `kernel` says why
        return None


def built() -> bool:
    """Is the kernel there, without compiling?"""
    return _found() is not None


# All that torch.compiler.assume_constant_result does, which would load torch's compiler here.
built._dynamo_marked_constant = True  # type: ignore[attr-defined]


def kernel() -> Kernel:
    """The kernel, built where it is not there.

    Raises RuntimeError where it cannot be built or loaded.
    """
    found = _found()
    if found is None:
        path = build()
        try:
            found = _load(path)
        except OSError as error:
            raise RuntimeError(f"the native kernel cannot be loaded: {error}; {INSTEAD}") from error
        _found.cache_clear()
    return found


def _call(
    backward: bool,
    tensors: dict[str, Tensor | None],
    counts: Tensor,
    cu_seqlens: Tensor | None,
    eps: float,
    feature_map: str,
    whole: bool,
) -> None:
    """Run the kernel. `tensors` by their names in `Call`; those with rows have a dense last axis,
    the others are contiguous."""
    q, k, v = tensors["q"], tensors["k"], tensors["v"]
    assert q is not None
    assert k is not None
    assert v is not None
    call = _Call(*q.shape[:3], k.shape[2], k.shape[3], v.shape[3], DTYPES[q.dtype])
    call.feature, call.turned = FEATURES[feature_map], tensors["p_q"] is not None
    call.whole, call.eps, call.poison = whole, eps, poisoned()
    counts = counts.contiguous()
    call.counts = counts.data_ptr()
    call.count_stride = counts.shape[-1] if counts.dim() == 2 else 0
    if cu_seqlens is not None:
        cu_seqlens = cu_seqlens.contiguous()
        call.documents, call.bounds = len(cu_seqlens) - 1, cu_seqlens.data_ptr()
    for name, x in tensors.items():
        if x is None:
            continue
        if name in _POINTERS:
            setattr(call, name, x.data_ptr())
        else:
            setattr(call, name, _View(x.data_ptr(), *x.stride()[:3]))
    if kernel().run(call, backward):
        raise MemoryError("the native kernel found no memory for its scratch")


def poisoned() -> bool:
    """Fill scratch with NaN, where torch fills new tensors with it (a debugging aid of torch)."""
    if not torch.are_deterministic_algorithms_enabled():
        return False
    return bool(torch.utils.deterministic.fill_uninitialized_memory)  # type: ignore[attr-defined]


def dense(x: Tensor) -> Tensor:
    """x with a last axis that lies in one piece."""
    return x if x.stride(-1) == 1 or x.shape[-1] < 2 else x.contiguous()


def _both_passes(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    y: Tensor,
    total: Tensor,
    key_mask: Tensor | None,
    sums: Tensor,
) -> dict[str, Tensor | None]:
    """What the kernel is given in both passes, by its name in `Call`."""
    return {
        "q": dense(q),
        "k": dense(k),
        "v": dense(v),
        "p_q": p_q,
        "p_k": p_k,
        "y": y,
        "total": total,
        "mask": None if key_mask is None else key_mask.contiguous(),
        "sums": sums.contiguous(),
    }


@torch.library.custom_op("leapformer::native_forward", mutates_args=())
@full_precision
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    eps: float,
    feature_map: str,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, H, N, E], sums of the weights [B, H, N] and, if `whole`, the state after the keys.

    q [B, H, N, D], k [B, H, S, D], v [B, H, S, E], proportions [B, H, N or S] in the dtype of the
    state before, `sums` [B, H, R * D, E + 1]; counts [N] or [B, N], key_mask [B, S].
    """
    y, total, after = _outputs(q, v, sums, whole)
    tensors = _both_passes(q, k, v, p_q, p_k, y, total, key_mask, sums)
    tensors["after"] = after if whole else None
    _call(False, tensors, counts, cu_seqlens, eps, feature_map, whole)
    return y, total, after


@torch.library.custom_op("leapformer::native_backward", mutates_args=())
@full_precision
def _backward(
    grad_y: Tensor,
    grad_sums: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    key_mask: Tensor | None,
    cu_seqlens: Tensor | None,
    y: Tensor,
    total: Tensor,
    eps: float,
    feature_map: str,
    whole: bool,
    of_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, p_q, p_k and, if `of_state`, of `sums`; what has none is [0]."""
    made = _gradients(q, k, v, p_q, p_k, sums, of_state)
    dq, dk, dv = (dense(x) for x in made[:3])
    tensors = {
        **_both_passes(q, k, v, p_q, p_k, y, total, key_mask, sums),
        "grad_y": dense(grad_y),
        "grad_after": None if grad_sums is None else grad_sums.contiguous(),
        "dq": dq,
        "dk": dk,
        "dv": dv,
        "dp_q": None if p_q is None else made[3],
        "dp_k": None if p_k is None else made[4],
        "grad_sums": made[5] if of_state else None,
    }
    _call(True, tensors, counts, cu_seqlens, eps, feature_map, whole)
    for x, written in zip(made, (dq, dk, dv), strict=False):
        if x is not written:
            x.copy_(written)
    return made


def _outputs(q: Tensor, v: Tensor, sums: Tensor, whole: bool) -> tuple[Tensor, Tensor, Tensor]:
    after = torch.empty_like(sums, memory_format=torch.contiguous_format)
    return (
        empty_output(q, v),
        sums.new_empty(q.shape[:3]),
        after if whole else sums.new_empty(0),
    )


def _gradients(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    sums: Tensor,
    of_state: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    like = torch.empty_like
    of_p = (sums.new_empty(0 if p is None else p.shape) for p in (p_q, p_k))
    of_sums = sums.new_empty(sums.shape if of_state else 0)
    return like(q), like(k), like(v), next(of_p), next(of_p), of_sums


@_forward.register_fake
def _(q, k, v, p_q, p_k, sums, counts, mask, bounds, eps, feature_map, whole):  # type: ignore[no-untyped-def]
    return _outputs(q, v, sums, whole)


@_backward.register_fake
def _(grad_y, grad_sums, q, k, v, p_q, p_k, sums, *rest):  # type: ignore[no-untyped-def]
    return _gradients(q, k, v, p_q, p_k, sums, rest[-1])


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.feature_map, ctx.whole = inputs
    y, total, _ = output
    ctx.save_for_backward(*tensors, y, total)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, _: None, grad_sums: Tensor | None) -> Any:
    saved = ctx.saved_tensors
    grad_y = torch.zeros_like(saved[-2]) if grad_y is None else grad_y
    if not ctx.whole:
        grad_sums = None
    wanted = ctx.needs_input_grad[:6]
    made = _backward(
        grad_y, grad_sums, *saved, ctx.eps, ctx.feature_map, ctx.whole, bool(wanted[5])
    )
    given = (
        x if needed and of is not None else None
        for x, needed, of in zip(made, wanted, saved, strict=False)
    )
    return *given, None, None, None, None, None, None


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse_second("native"))
