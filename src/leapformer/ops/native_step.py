"""One step of decoding on the CPU: from projections to output and new state in one C++ call.

A step is a handful of microseconds, so what surrounds the call counts: an operator defined by its
schema costs half of what `torch.library.custom_op` does, and the arguments go over as one packed
record.
"""

import struct

import torch
from torch import Tensor

from .native import DTYPES, FEATURES, dense, kernel, poisoned
from .operator import empty_output

_RECORD = struct.Struct("8q d 24q 10q 3q")
"""`Step` of native.cpp: sizes and options, eps, six views, two `Leap`s, three pointers."""
_NO_VIEW = (0, 0, 0, 0)
_NO_LEAP = (0, 0, 0, 0, 0)

torch.library.define(
    "leapformer::native_step",
    "(Tensor q, Tensor k, Tensor v, Tensor? p_q, Tensor? p_k, Tensor sums, float eps, "
    "str feature_map, Tensor[] leap_q, Tensor[] leap_k, Tensor? key_mask) -> (Tensor, Tensor)",
)


@torch.library.impl("leapformer::native_step", "cpu")
def _step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    sums: Tensor,
    eps: float,
    feature_map: str,
    leap_q: list[Tensor],
    leap_k: list[Tensor],
    key_mask: Tensor | None,
) -> tuple[Tensor, Tensor]:
    batch, heads, _, width = q.shape
    q, k, v, sums = dense(q), dense(k), dense(v), sums.contiguous()
    if p_q is not None and p_k is not None:
        p_q, p_k = p_q.to(sums.dtype), p_k.to(sums.dtype)
    leap_q, leap_k = ([x.contiguous() for x in maps] for maps in (leap_q, leap_k))
    mask = None if key_mask is None else key_mask.contiguous()
    y, after = empty_output(q, v), torch.empty_like(sums)
    record = _RECORD.pack(
        *(batch, heads, width, v.shape[3], DTYPES[q.dtype], FEATURES[feature_map]),
        *(p_q is not None or bool(leap_q), poisoned(), eps),
        *(*_view(q), *_view(k), *_view(v), *_view(p_q), *_view(p_k), *_view(y)),
        *(*_leap(leap_q), *_leap(leap_k)),
        *(0 if mask is None else mask.data_ptr(), sums.data_ptr(), after.data_ptr()),
    )
    if kernel().step(record):
        raise MemoryError("the native kernel found no memory for its scratch")
    return y, after


def _view(x: Tensor | None) -> tuple[int, ...]:
    return _NO_VIEW if x is None else (x.data_ptr(), *x.stride()[:3])


def _leap(maps: list[Tensor]) -> tuple[int, ...]:
    if not maps:
        return _NO_LEAP
    places = [x.data_ptr() for x in maps]
    return (*places, *(0,) * (4 - len(maps)), maps[0].shape[0])


@torch.library.register_fake("leapformer::native_step")
def _(q, k, v, p_q, p_k, sums, eps, feature_map, leap_q, leap_k, key_mask):  # type: ignore[no-untyped-def]
    return empty_output(q, v), torch.empty_like(sums, memory_format=torch.contiguous_format)


native_step = torch.ops.leapformer.native_step.default
