"""The operators of the GPU backend: what the kernels of `triton_kernels` are called with."""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import triton_kernels as kernels
from .operator import Inputs, Six, Three, empty_output, operator


def tuning(dtype: torch.dtype, width: int) -> dict[str, int]:
    """How a kernel is cut and compiled: by dtype and width alone, never by length.

    Products of float32 run on no tensor core and hold their factors in registers, hence the smaller
    chunk and more warps. Loops are short, so nothing is loaded ahead (num_stages), which keeps
    shared memory small: 99 KiB, what the smaller GPUs have, hold all kernels up to 64 wide.
    """
    single = dtype == torch.float32
    return {
        "CHUNK": 32 if single else 64,
        "num_warps": 8 if single or width > 64 else 4,
        "num_stages": 1,
    }


class _Plan(NamedTuple):
    """How rows are cut: the chunk, tiles and states of a row of queries and of keys, and of packed
    documents the tables of `triton_kernels._segment` and `_scan`."""

    chunk: int
    q_tiles: int
    k_tiles: int
    q_states: int
    k_states: int
    segments: int = 1
    tiles: Tensor | None = None
    runs: Tensor | None = None


def _plan(queries: int, keys: int, chunk: int, bounds: Tensor | None, like: Tensor) -> _Plan:
    """Documents have as many queries as keys, and one table serves both; the states of a document
    are one more than its tiles."""
    if bounds is None:
        q_tiles, k_tiles = triton.cdiv(queries, chunk), triton.cdiv(keys, chunk)
        return _Plan(chunk, q_tiles, k_tiles, q_tiles + 1, k_tiles + 1)
    pieces = (bounds.diff() + chunk - 1) // chunk
    of = torch.repeat_interleave(torch.arange(len(pieces)), pieces)
    before = pieces.cumsum(0) - pieces
    first = bounds[of] + (torch.arange(len(of)) - before[of]) * chunk
    states = before + torch.arange(len(pieces))
    tiles, runs = (
        torch.stack(columns, -1).to(like.device, torch.int32, non_blocking=True)
        for columns in ((first, bounds[of], bounds[of + 1], states[of]), (states, pieces))
    )
    many, segments = len(of), len(pieces)
    return _Plan(chunk, many, many, many + segments, many + segments, segments, tiles, runs)


class _Call:
    """What all kernels of a call share. A tensor that is not there is stood for by `q`."""

    def __init__(self, inputs: Inputs) -> None:
        q, k, v, p_q, p_k, sums, counts, key_mask, cu_seqlens, rule, *options = inputs
        eps, feature_map, self.whole = options
        self.q, self.k, self.v = rowwise(q), rowwise(k), rowwise(v)
        self.batch, self.heads, self.queries, width = q.shape
        self.keys, values = v.shape[2:]
        self.rows = self.batch * self.heads
        self.p_q, self.p_k = (q if p is None else p.contiguous() for p in (p_q, p_k))
        self.sums = sums.contiguous()
        self.mask = q if key_mask is None else key_mask.contiguous().view(torch.uint8)
        self.docs = cu_seqlens is not None
        tuned = tuning(q.dtype, max(width, values))
        self.plan = _plan(self.queries, self.keys, tuned["CHUNK"], cu_seqlens, q)
        self.table = q if self.plan.tiles is None else self.plan.tiles
        self.counts, by_rule = q, bool(rule) or not self.queries
        if not by_rule:
            self.counts = counts.to(q.device, torch.int32, non_blocking=True).contiguous()
        size, start, step, lookahead = rule or [1, 0, 0, 0]
        most = self.keys
        self.shared: dict[str, Any] = {
            "queries": self.queries,
            "heads": self.heads,
            "size": min(size, max(1, self.queries)),
            "start": min(start, most),
            "step": min(step, most),
            "lookahead": min(lookahead, most),
            "eps": eps,
            "D": width,
            "E": values,
            "BLOCK_D": block(width),
            "BLOCK_E": block(values),
            "P": p_q is not None,
            "MASK": key_mask is not None,
            "ROWS": not by_rule and counts.dim() == 2,
            "RULE": by_rule,
            "DOCS": self.docs,
            "ELU": feature_map == "elu",
            "PRECISION": precision(q.dtype),
            **tuned,
        }
        self.sum_in = tl.bfloat16 if q.dtype == torch.bfloat16 else tl.float32

    def states(self, before: Tensor | None, reverse: bool, **rows: Any) -> tuple[Tensor, Tensor]:
        """States before each chunk, and the sum over all, shaped as `sums`; by the rows of
        `_sum_chunks`: of keys, or of queries with `reverse`."""
        plan, shared = self.plan, {**self.shared}
        tiles, many = (plan.q_tiles, plan.q_states) if reverse else (plan.k_tiles, plan.k_states)
        _, _, wide, width = self.sums.shape
        states = self.sums.new_empty(self.rows, many, wide * width)
        if tiles and self.rows:
            if reverse:
                shared["MASK"] = False
            kernels._sum_chunks[(self.rows * tiles,)](
                mask=self.mask,
                counts=self.counts,
                table=self.table,
                states=states,
                length=self.queries if reverse else self.keys,
                tiles=tiles,
                many=many,
                GRAD=reverse,
                WHOLE=self.whole,
                **rows,
                **shared,
            )
        if before is None:
            before = torch.zeros_like(self.sums)
        after = torch.zeros_like(before) if self.docs else torch.empty_like(before)
        if self.rows:
            kernels._scan[(self.rows * plan.segments, triton.cdiv(wide * width, 128))](
                states,
                before,
                after,
                self.q if plan.runs is None else plan.runs,
                tiles,
                plan.segments,
                many,
                D=self.q.shape[-1],
                E=self.v.shape[-1],
                SIZE=wide * width,
                REVERSE=reverse,
                DOCS=self.docs,
                GROUP=16,
                BLOCK=128,
                num_warps=4,
            )
        return states, after

    def key_states(self) -> tuple[Tensor, Tensor]:
        """States before each chunk of keys, and the one after all."""
        k, v = self.k, self.v
        return self.states(
            self.sums,
            False,
            x=k,
            p=self.p_k,
            y=v,
            total=self.sums,
            along=self.sums,
            **strides("bhn", x=k, y=v),
        )

    def over(self, queries: bool) -> dict[str, Any]:
        """What a kernel over tiles of queries, or over chunks of keys, is called with besides."""
        plan = self.plan
        return {
            "q": self.q,
            "k": self.k,
            "v": self.v,
            "p_q": self.p_q,
            "p_k": self.p_k,
            "mask": self.mask,
            "counts": self.counts,
            "table": self.table,
            "keys": self.keys,
            "tiles": plan.q_tiles if queries else plan.k_tiles,
            "many": plan.k_states if queries else plan.q_states,
            "SUM": self.sum_in,
            **strides("bhn", q=self.q, k=self.k, v=self.v),
            **self.shared,
        }


def block(width: int) -> int:
    """The power of two that holds this width; a product needs 16."""
    return max(16, triton.next_power_of_2(width))


def precision(dtype: torch.dtype) -> str:
    """How factors of float32 are multiplied: as torch does, and for half-precision inputs on tensor
    cores."""
    exact = dtype == torch.float32 and not torch.backends.cuda.matmul.allow_tf32
    return "ieee" if exact else "tf32"


def rowwise(x: Tensor) -> Tensor:
    """x with a last axis that lies in one piece."""
    return x if x.stride(-1) == 1 else x.contiguous()


def strides(axes: str, **tensors: Tensor) -> dict[str, int]:
    """The strides of the first axes of each, as the kernels name them: qb, qh, qn for "bhn"."""
    return {
        name + axis: stride
        for name, x in tensors.items()
        for axis, stride in zip(axes, x.stride(), strict=False)
    }


def _forward(inputs: Inputs) -> Three:
    """Output [B, H, N, E], sums of the weights [B, H, N] and the state after the keys."""
    call, q = _Call(inputs), inputs.q
    y, total, _ = _outputs(inputs)
    with torch.cuda.device_of(q):
        states, after = call.key_states()
        if total.numel():
            kernels._forward[(call.rows * call.plan.q_tiles,)](
                states=states, y=y, total=total, **call.over(queries=True)
            )
    return y, total, after


def _backward(
    inputs: Inputs,
    grad_y: Tensor,
    grad_sums: Tensor | None,
    y: Tensor,
    total: Tensor,
    of_state: bool,
) -> Six:
    """Gradients of q, k, v, p_q, p_k ([0] where there are none) and, if `of_state`, of `sums`."""
    call = _Call(inputs)
    grad, y, total = rowwise(grad_y), rowwise(y), total.contiguous()
    along = torch.empty_like(total)
    dq, dk, dv, d_pq, d_pk, none = made = _gradients(inputs, False)
    with torch.cuda.device_of(inputs.q):
        states, _ = call.key_states()
        if total.numel():
            kernels._backward_queries[(call.rows * call.plan.q_tiles,)](
                states=states,
                grad=grad,
                y=y,
                total=total,
                dq=dq,
                dp=d_pq,
                along=along,
                **strides("bhn", g=grad, y=y),
                **call.over(queries=True),
            )
        del states
        before = None if grad_sums is None else grad_sums.contiguous()
        states, d_sums = call.states(
            before,
            True,
            x=call.q,
            p=call.p_q,
            y=grad,
            total=total,
            along=along,
            **strides("bhn", x=call.q, y=grad),
        )
        if call.keys and call.rows:
            kernels._backward_keys[(call.rows * call.plan.k_tiles,)](
                states=states,
                grad=grad,
                total=total,
                along=along,
                dk=dk,
                dv=dv,
                dp=d_pk,
                WHOLE=call.whole,
                **strides("bhn", g=grad),
                **call.over(queries=False),
            )
    return *made[:5], d_sums if of_state else none


def _outputs(inputs: Inputs) -> Three:
    q, sums = inputs.q, inputs.sums
    return empty_output(q, inputs.v), sums.new_empty(q.shape[:3]), sums.new_empty(sums.shape)


def _gradients(inputs: Inputs, of_state: bool) -> Six:
    q, k, v, p_q, p_k, sums, *_ = inputs
    of_p = (sums.new_empty(0) if p is None else p.new_empty(p.shape) for p in (p_q, p_k))
    dq, dk, dv = empty_output(q, q), empty_output(k, k), empty_output(k, v)
    return dq, dk, dv, next(of_p), next(of_p), sums.new_empty(sums.shape if of_state else 0)


attention = operator("triton", _forward, _backward, _outputs, _gradients)
