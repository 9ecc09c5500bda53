"""The GPU backend: the chunked algorithm of `triton_kernels`, behind the signature of the others."""

from typing import Any

import torch
import triton
from torch import Tensor

from . import triton_kernels as kernels
from .chunked import empty_output, refuse_second, refuse_tangents
from .features import full_precision

CHUNK = 64
WIDEST = 128
DTYPES = (torch.float32, torch.float16, torch.bfloat16)


def triton_attention(
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
    """As `chunked`, for float32, float16 and bfloat16 and heads up to 128 wide.

    Raises TypeError for float64 and ValueError for wider heads; `chunked` serves both.
    """
    refuse_tangents("triton", q, k, v, p_q, p_k, sums)
    if q.dtype not in DTYPES:
        raise TypeError(
            f'backend="triton" takes float32, float16 and bfloat16, and the inputs are {q.dtype}: '
            'use backend="chunked"'
        )
    if max(q.shape[-1], v.shape[-1]) > WIDEST:
        raise ValueError(
            f'backend="triton" takes heads up to {WIDEST} wide, and these are {q.shape[-1]} and '
            f'{v.shape[-1]}: use backend="chunked"'
        )
    if cu_seqlens is not None and counts.dim() == 2:
        counts = counts[0]  # packed documents are one row
    y, _, after = _forward(q, k, v, p_q, p_k, key_mask, sums, counts, cu_seqlens, eps, feature_map)
    return y, after


def _cut(bounds: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Segments with these bounds (int64 [G + 1]) in pieces of CHUNK: for each piece the segment it
    is of, its first row and the one behind its last; for each segment how many pieces."""
    pieces = (bounds.diff() + CHUNK - 1) // CHUNK
    of = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    within = torch.arange(len(of)) - (pieces.cumsum(0) - pieces)[of]
    first = bounds[of] + within * CHUNK
    return of, first, torch.minimum(first + CHUNK, bounds[of + 1]), pieces


class _Plan:
    """Tables of the tiles of a call, on its device; see the kernels for their columns."""

    def __init__(self, q: Tensor, k: Tensor, counts: Tensor, cu_seqlens: Tensor | None) -> None:
        queries, keys = q.shape[2], k.shape[2]
        q_bounds = torch.tensor([0, queries]) if cu_seqlens is None else cu_seqlens
        k_bounds = torch.tensor([0, keys]) if cu_seqlens is None else cu_seqlens
        q_of, q_first, q_last, q_pieces = _cut(q_bounds)
        k_of, k_first, k_last, k_pieces = _cut(k_bounds)
        # a segment of m pieces has m + 1 states
        q_states, k_states = (x.cumsum(0) - x + torch.arange(len(x)) for x in (q_pieces, k_pieces))
        q_state, k_state = (
            states[of] + torch.arange(len(of)) - (pieces.cumsum(0) - pieces)[of]
            for states, of, pieces in ((q_states, q_of, q_pieces), (k_states, k_of, k_pieces))
        )
        self.many_q, self.many_k = (int(x.sum()) + len(x) for x in (q_pieces, k_pieces))

        def table(*columns: Tensor) -> Tensor:
            return torch.stack(columns, -1).to(q.device, torch.int32)

        self.q_segments, self.k_segments = table(q_states, q_pieces), table(k_states, k_pieces)
        self.k_sums = table(k_first, k_last, k_state + 1)
        self.q_sums = table(q_first, q_last, q_state)
        self.q_tiles = table(q_first, q_last, k_bounds[q_of], k_states[q_of])
        self.k_tiles = table(k_first, k_last, q_bounds[k_of], q_bounds[k_of + 1], q_states[k_of])
        self.counts = counts.to(q.device, torch.int32).contiguous()
        rows = self.counts if counts.dim() == 2 else self.counts[None]
        first, last, low, high = (
            x.to(q.device, torch.int32).expand(len(rows), -1).contiguous()
            for x in (k_first, k_last, q_bounds[k_of], q_bounds[k_of + 1])
        )
        some = torch.searchsorted(rows, first, right=True).int()
        every = torch.searchsorted(rows, last).int()
        self.spans = torch.stack([x.clamp(low, high).int() for x in (some, every)], -1).contiguous()


def _block(width: int) -> int:
    return max(16, triton.next_power_of_2(width))


def _options(
    q: Tensor, v: Tensor, p_q: Tensor | None, key_mask: Tensor | None, counts: Tensor, elu: bool
) -> dict[str, Any]:
    """What is known when a kernel is compiled. Nothing depends on lengths."""
    return {
        "D": q.shape[-1],
        "E": v.shape[-1],
        "BLOCK_D": _block(q.shape[-1]),
        "BLOCK_E": _block(v.shape[-1]),
        "P": p_q is not None,
        "MASK": key_mask is not None,
        "ROWS": counts.dim() == 2,
        "ELU": elu,
        "PRECISION": "ieee" if q.dtype == torch.float32 else "tf32",
        "CHUNK": CHUNK,
    }


def _strides(*tensors: Tensor) -> list[int]:
    return [stride for x in tensors for stride in x.stride()[:3]]


def _rowwise(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The same tensors with the last axis dense."""
    return tuple(x if x.stride(-1) == 1 else x.contiguous() for x in tensors)


def _states(
    many: int, first: Tensor | None, segments: Tensor, like: Tensor, reverse: bool, fill: Any
) -> tuple[Tensor, Tensor]:
    """States [B * H, many, F, E + 1] before each chunk, and the sum over all, shaped as `like` (zeros
    where documents have none in common); the sums of the chunks are what `fill` puts there."""
    batch, heads, wide, width = like.shape
    states = like.new_empty(batch * heads, many, wide, width)
    last = torch.empty_like(like, memory_format=torch.contiguous_format)
    fill(states)
    size = wide * width
    block = 1024
    grid = (len(segments), batch * heads, triton.cdiv(size, block))
    kernels._scan[grid](
        states,
        last if first is None else first.contiguous(),
        last,
        segments,
        size,
        many,
        REVERSE=reverse,
        FIRST=first is not None,
        BLOCK=block,
    )
    return states, last if len(segments) == 1 else last.zero_()


@torch.library.custom_op("leapformer::triton_forward", mutates_args=())
@full_precision
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    key_mask: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    cu_seqlens: Tensor | None,
    eps: float,
    feature_map: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, H, N, E], sums of the weights [B, H, N] in float32, and the state after all keys.

    q [B, H, N, D], k [B, H, S, D], v [B, H, S, E], proportions [B, H, N] and [B, H, S] or None, the
    state before [B, H, F, E + 1], counts [N] or [B, N].
    """
    q, k, v = _rowwise(q, k, v)
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    p_q, p_k = (q if p is None else p.contiguous() for p in (p_q, p_k))
    plan = _Plan(q, k, counts, cu_seqlens)
    mask = q if key_mask is None else key_mask.contiguous().view(torch.uint8)
    options = _options(q, v, None if p_q is q else p_q, key_mask, counts, feature_map == "elu")
    states, after = _key_states(k, v, p_k, mask, sums, cu_seqlens, plan, eps, options)
    y = empty_output(q, v)
    total = q.new_empty(batch, heads, queries, dtype=torch.float32)
    if queries and batch * heads:
        kernels._forward[(len(plan.q_tiles), batch * heads)](
            *(q, k, v, p_q, p_k, mask, plan.counts, states, y, total, plan.q_tiles, eps),
            *_strides(q, k, v, y),
            *(queries, keys, heads, plan.many_k),
            **options,
        )
    return y, total, after


def _key_states(
    k: Tensor,
    v: Tensor,
    p_k: Tensor,
    mask: Tensor,
    sums: Tensor,
    cu_seqlens: Tensor | None,
    plan: _Plan,
    eps: float,
    options: dict[str, Any],
) -> tuple[Tensor, Tensor]:
    """States before each chunk of keys, and the one after all."""

    def fill(states: Tensor) -> None:
        if len(plan.k_sums) and len(states):
            chosen = {name: x for name, x in options.items() if name != "ROWS"}
            kernels._chunk_sums[(len(plan.k_sums), len(states))](
                *(k, p_k, v, v, v, mask, states, plan.k_sums, eps),
                *_strides(k, v, v),
                *(k.shape[2], k.shape[1], plan.many_k),
                GRAD=False,
                **chosen,
            )

    first = sums if cu_seqlens is None else None
    return _states(plan.many_k, first, plan.k_segments, sums, False, fill)


@torch.library.custom_op("leapformer::triton_backward", mutates_args=())
@full_precision
def _backward(
    grad_y: Tensor,
    grad_sums: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None,
    p_k: Tensor | None,
    key_mask: Tensor | None,
    sums: Tensor,
    counts: Tensor,
    cu_seqlens: Tensor | None,
    y: Tensor,
    total: Tensor,
    eps: float,
    feature_map: str,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, p_q, p_k (empty where there are none) and of `sums`."""
    q, k, v, grad_y, y = _rowwise(q, k, v, grad_y, y)
    batch, heads, queries, _ = q.shape
    keys = k.shape[2]
    rows = batch * heads
    p_q, p_k = (q if p is None else p.contiguous() for p in (p_q, p_k))
    plan = _Plan(q, k, counts, cu_seqlens)
    mask = q if key_mask is None else key_mask.contiguous().view(torch.uint8)
    options = _options(q, v, None if p_q is q else p_q, key_mask, counts, feature_map == "elu")
    dq, dk, dv = (x.new_empty(x.shape) for x in (q, k, v))
    d_pq, d_pk = (x.new_empty(x.shape if x is not q else 0) for x in (p_q, p_k))
    common = (queries, keys, heads)

    states, _ = _key_states(k, v, p_k, mask, sums, cu_seqlens, plan, eps, options)
    if queries and rows:
        kernels._backward_queries[(len(plan.q_tiles), rows)](
            *(q, k, v, p_q, p_k, mask, plan.counts, states, grad_y, y, total, dq, d_pq),
            *(plan.q_tiles, eps, *_strides(q, k, v, grad_y, y), *common, plan.many_k),
            **options,
        )
    del states

    def fill(found: Tensor) -> None:
        if len(plan.q_sums) and len(found):
            chosen = {name: x for name, x in options.items() if name not in ("ROWS", "MASK")}
            kernels._chunk_sums[(len(plan.q_sums), len(found))](
                *(q, p_q, grad_y, y, total, mask, found, plan.q_sums, eps),
                *_strides(q, grad_y, y),
                *(queries, heads, plan.many_q),
                GRAD=True,
                MASK=False,
                **chosen,
            )

    first = grad_sums if cu_seqlens is None else None
    found, d_sums = _states(plan.many_q, first, plan.q_segments, sums, True, fill)
    if keys and rows:
        kernels._backward_keys[(len(plan.k_tiles), rows)](
            *(q, k, v, p_q, p_k, mask, plan.counts, found, grad_y, y, total, dk, dv, d_pk),
            *(plan.k_tiles, plan.spans, eps, *_strides(q, k, v, grad_y, y), *common),
            plan.many_q,
            **options,
        )
    return dq, dk, dv, d_pq, d_pk, d_sums


@_forward.register_fake
def _(q, k, v, p_q, p_k, key_mask, sums, *rest):  # type: ignore[no-untyped-def]
    return (
        empty_output(q, v),
        q.new_empty(q.shape[:3], dtype=torch.float32),
        sums.new_empty(sums.shape),
    )


@_backward.register_fake
def _(grad_y, grad_sums, q, k, v, p_q, p_k, key_mask, sums, *rest):  # type: ignore[no-untyped-def]
    d_p = [q.new_empty(0) if p is None else p.new_empty(p.shape) for p in (p_q, p_k)]
    return *(x.new_empty(x.shape) for x in (q, k, v)), *d_p, sums.new_empty(sums.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.feature_map = inputs
    y, total, _ = output
    ctx.save_for_backward(*tensors, y, total)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, _: None, grad_sums: Tensor | None) -> Any:
    saved = ctx.saved_tensors
    grad_y = torch.zeros_like(saved[-2]) if grad_y is None else grad_y
    *found, d_pq, d_pk, d_sums = _backward(grad_y, grad_sums, *saved, ctx.eps, ctx.feature_map)
    has_p = saved[3] is not None
    return *found, d_pq if has_p else None, d_pk if has_p else None, None, d_sums, *[None] * 4


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse_second("triton"))
