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
from .operator import Inputs, Six, Three, empty_output, operator

DTYPES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
FEATURES = {"relu": 0, "elu": 1}


def native(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, E] and the sums over the state and all keys (nothing, [0], unless `whole`).

    On the CPU. Builds the kernel where it is not there yet.

    Raises RuntimeError where the kernel cannot be built.
    """
    p_q, p_k = inputs.p_q, inputs.p_k
    if p_q is not None and p_k is not None:
        dtype = inputs.sums.dtype
        inputs = inputs._replace(p_q=p_q.to(dtype), p_k=p_k.to(dtype))
    return _operator(inputs)


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


def _run(inputs: Inputs, backward: bool, tensors: dict[str, Tensor | None]) -> None:
    """Run the kernel. `tensors`, by their names in `Call`, are what it writes, and what it reads
    besides the inputs; those with rows have a dense last axis, the others are contiguous."""
    q, k, v, p_q, p_k, sums, counts, key_mask, cu_seqlens, _, eps, feature_map, whole = inputs
    call = _Call(*q.shape[:3], k.shape[2], k.shape[3], v.shape[3], DTYPES[q.dtype])
    call.feature, call.turned = FEATURES[feature_map], p_q is not None
    call.whole, call.eps, call.poison = whole, eps, poisoned()
    call.count_stride = counts.shape[-1] if counts.dim() == 2 else 0
    call.documents = 0 if cu_seqlens is None else len(cu_seqlens) - 1
    flat = {"counts": counts, "bounds": cu_seqlens, "mask": key_mask, "sums": sums}
    given: dict[str, Tensor | None] = {
        "q": dense(q),
        "k": dense(k),
        "v": dense(v),
        "p_q": p_q,
        "p_k": p_k,
        **{name: None if x is None else x.contiguous() for name, x in flat.items()},
        **tensors,
    }
    for name, x in given.items():
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


def _forward(inputs: Inputs) -> Three:
    """Output [B, H, N, E], sums of the weights [B, H, N] and, if `whole`, the state after the keys.

    Proportions are in the dtype of the state.
    """
    y, total, after = _outputs(inputs)
    written: dict[str, Tensor | None] = {"y": y, "total": total}
    _run(inputs, False, written | {"after": after if inputs.whole else None})
    return y, total, after


def _backward(
    inputs: Inputs,
    grad_y: Tensor,
    grad_sums: Tensor | None,
    y: Tensor,
    total: Tensor,
    of_state: bool,
) -> Six:
    """Gradients of q, k, v, p_q, p_k and, if `of_state`, of `sums`; what has none is [0]."""
    made = _gradients(inputs, of_state)
    dq, dk, dv = (dense(x) for x in made[:3])
    tensors = {
        "y": y,
        "total": total,
        "grad_y": dense(grad_y),
        "grad_after": None if grad_sums is None else grad_sums.contiguous(),
        "dq": dq,
        "dk": dk,
        "dv": dv,
        "dp_q": None if inputs.p_q is None else made[3],
        "dp_k": None if inputs.p_k is None else made[4],
        "grad_sums": made[5] if of_state else None,
    }
    _run(inputs, True, tensors)
    for x, written in zip(made, (dq, dk, dv), strict=False):
        if x is not written:
            x.copy_(written)
    return made


def _outputs(inputs: Inputs) -> Three:
    q, sums = inputs.q, inputs.sums
    after = torch.empty_like(sums, memory_format=torch.contiguous_format)
    return (
        empty_output(q, inputs.v),
        sums.new_empty(q.shape[:3]),
        after if inputs.whole else sums.new_empty(0),
    )


def _gradients(inputs: Inputs, of_state: bool) -> Six:
    q, k, v, p_q, p_k, sums, *_ = inputs
    like = torch.empty_like
    of_p = (sums.new_empty(0 if p is None else p.shape) for p in (p_q, p_k))
    of_sums = sums.new_empty(sums.shape if of_state else 0)
    return like(q), like(k), like(v), next(of_p), next(of_p), of_sums


_operator = operator("native", _forward, _backward, _outputs, _gradients)
