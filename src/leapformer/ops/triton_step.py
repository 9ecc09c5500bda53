"""A step of decoding in one launch on a GPU: from the projected q, k, v of one token to its output.

What a step costs is the number of its operations, so this one takes LeaP in as well: proportions of
query and key, k'^T [v, 1] added to the state, and q' read from it. A program has one head and some
columns of the values, all rows of which pass through it once.
"""

from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from .triton_kernels import _cos_sin, _phi
from .triton_launch import block, rowwise, strides

COLUMNS = 32


def step(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    sums: Tensor,
    eps: float,
    feature_map: str,
    leap_q: Sequence[Tensor] = (),
    leap_k: Sequence[Tensor] = (),
    key_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Output [B, H, 1, E] and the sums after: `LeapState.step_unchecked`, without gradients.

    Args:
        q: the query [B, H, 1, D], like k [B, H, 1, D] and v [B, H, 1, E] of one dtype: float32,
            float16 or bfloat16.
        p_q: the query's proportion [B, H, 1], and the key's p_k; None where LeaP gives it, or
            where there are none.
        sums: the state before, float32 [B, H, F, E + 1]; it is left as it was.
        leap_q: LeaP's parameters for queries, in their order: W1 [r, D], b1 [r], W2 [1, r], b2 [1],
            or of a single linear map W [1, D], b [1]; likewise leap_k. They work in float32.
    """
    batch, heads, _, width = q.shape
    values = v.shape[-1]
    q, k, v, sums = rowwise(q), rowwise(k), rowwise(v), sums.contiguous()
    y, after = q.new_empty(batch, heads, 1, values), torch.empty_like(sums)
    given = p_q is not None
    weights: dict[str, Any] = {}
    for side, leap in (("q", leap_q), ("k", leap_k)):
        parameters = [x.contiguous() for x in leap] + [q] * (4 - len(leap))
        names = (name + side for name in ("w1", "b1", "w2", "b2"))
        weights.update(zip(names, parameters, strict=True))
    hidden = len(leap_q[0]) if len(leap_q) == 4 else 0
    with torch.cuda.device_of(q):
        _step[(batch * heads, triton.cdiv(values, COLUMNS))](
            q=q,
            k=k,
            v=v,
            p_q=q if p_q is None else p_q.contiguous(),
            p_k=q if p_k is None else p_k.contiguous(),
            mask=q if key_mask is None else key_mask.contiguous().view(torch.uint8),
            before=sums,
            after=after,
            y=y,
            eps=eps,
            **strides("bh", q=q, k=k, v=v),
            heads=heads,
            D=width,
            E=values,
            R=hidden,
            BLOCK_D=block(width),
            BLOCK_E=COLUMNS,
            BLOCK_R=block(hidden),
            P=given,
            MASK=key_mask is not None,
            LEAP=bool(leap_q),
            ELU=feature_map == "elu",
            num_warps=4,
            **weights,
        )
    return y, after


@triton.jit
def _proportion(
    x, w1, b1, w2, b2, D: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_R: tl.constexpr,
):  # fmt: skip
    """LeaP of one token x [1, BLOCK_D]; R is 0 for a single linear map."""
    columns = tl.arange(0, BLOCK_D)[None, :]
    x = _phi(x, D, BLOCK_D, False)
    if R == 0:
        w = tl.load(w1 + columns, mask=columns < D, other=0.0).to(tl.float32)
        logit = tl.sum(tl.sum(w * x, 1), 0) + tl.load(b1).to(tl.float32)
    else:
        rows = tl.arange(0, BLOCK_R)
        keep = (rows[:, None] < R) & (columns < D)
        w = tl.load(w1 + rows[:, None] * D + columns, mask=keep, other=0.0)
        inner = tl.sum(w.to(tl.float32) * x, 1)
        inner += tl.load(b1 + rows, mask=rows < R, other=0.0).to(tl.float32)
        inner = tl.where(inner < 0, 0.0, inner)
        w = tl.load(w2 + rows, mask=rows < R, other=0.0).to(tl.float32)
        logit = tl.sum(w * inner, 0) + tl.load(b2).to(tl.float32)
    return 1.0 / (1.0 + tl.exp(-logit))


@triton.jit
def _token(x, D: tl.constexpr, BLOCK: tl.constexpr):
    """One row [1, BLOCK], in float32."""
    columns = tl.arange(0, BLOCK)[None, :]
    return tl.load(x + columns, mask=columns < D, other=0.0).to(tl.float32)


@triton.jit(do_not_specialize=["heads"])
def _step(
    q, k, v, p_q, p_k, mask, w1q, b1q, w2q, b2q, w1k, b1k, w2k, b2k, before, after, y, eps,
    qb, qh, kb, kh, vb, vh, heads,
    D: tl.constexpr, E: tl.constexpr, R: tl.constexpr, BLOCK_D: tl.constexpr,
    BLOCK_E: tl.constexpr, BLOCK_R: tl.constexpr, P: tl.constexpr, MASK: tl.constexpr,
    LEAP: tl.constexpr, ELU: tl.constexpr,
):  # fmt: skip
    """One head's columns: their part of the state after, and of the output."""
    row = tl.program_id(0).to(tl.int64)
    b, h = row // heads, row % heads
    columns = tl.program_id(1) * BLOCK_E + tl.arange(0, BLOCK_E)
    rows = tl.arange(0, BLOCK_D)
    inside = rows < D
    raw_q, raw_k = _token(q + b * qb + h * qh, D, BLOCK_D), _token(k + b * kb + h * kh, D, BLOCK_D)
    there = columns < E
    values = tl.load(v + b * vb + h * vh + columns, mask=there, other=0.0).to(tl.float32)
    real = 1.0
    if MASK:
        real = tl.load(mask + b).to(tl.float32)
        raw_k, values = tl.where(real > 0, raw_k, 0.0), tl.where(real > 0, values, 0.0)
    x = tl.sum(_phi(raw_q, D, BLOCK_D, ELU), 0)
    z = tl.sum(_phi(raw_k, D, BLOCK_D, ELU), 0) * real
    found = tl.zeros((BLOCK_E,), tl.float32)
    weight = 0.0
    TURNED: tl.constexpr = P or LEAP
    if LEAP:
        cos_q, sin_q = _cos_sin(_proportion(raw_q, w1q, b1q, w2q, b2q, D, R, BLOCK_D, BLOCK_R))
        cos_k, sin_k = _cos_sin(_proportion(raw_k, w1k, b1k, w2k, b2k, D, R, BLOCK_D, BLOCK_R))
    elif P:
        cos_q, sin_q = _cos_sin(tl.load(p_q + row).to(tl.float32))
        place = tl.load(p_k + row).to(tl.float32)
        cos_k, sin_k = _cos_sin(tl.where(real > 0, place, 0.0) if MASK else place)
    for half in tl.static_range(2 if TURNED else 1):
        wide_q, wide_k = x, z
        if TURNED:
            wide_q = x * (sin_q if half else cos_q)
            wide_k = z * (sin_k if half else cos_k)
        at = row * ((2 if TURNED else 1) * D * (E + 1)) + (half * D + rows) * (E + 1)
        keep = inside[:, None] & there[None, :]
        places = at[:, None] + columns[None, :]
        held = tl.load(before + places, mask=keep, other=0.0) + wide_k[:, None] * values[None, :]
        tl.store(after + places, held, mask=keep)
        found += tl.sum(wide_q[:, None] * held, 0)
        norm = tl.load(before + at + E, mask=inside, other=0.0) + wide_k
        if tl.program_id(1) == 0:
            tl.store(after + at + E, norm, mask=inside)
        weight += tl.sum(wide_q * norm, 0)
    tl.store(y + row * E + columns, found / tl.maximum(weight, eps), mask=there)
