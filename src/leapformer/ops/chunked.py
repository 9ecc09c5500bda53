"""Linear time, linear memory, any device: tiles over the sequence, a running state between them.

Merge queries and keys into one sequence in which each query stands right after the last key it may
see, and cut that sequence every `TILE` elements. Each piece is some queries and some keys, whatever
the visibility. A query of a tile sees all keys of the tiles before it, through the state, and some
of the keys of its own, through a small masked product. Causal attention is the case of 64 queries
beside 64 keys; "all" is keys first and queries after.

The backward pass runs the tiles once forwards for the gradients of the queries, which need the
state before them, and once backwards for those of the keys, which need the gradient of the state
after them. States are recomputed, never kept: memory does not grow with their number.

Documents packed into one row change nothing but what is carried from tile to tile: in a tile in
which a document begins, only the queries of the one before read the state, and only the keys of
the last one go on.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .features import (
    full_precision,
    normalise,
    real_keys,
    rotation,
    widen,
    widen_backward,
    with_ones,
)
from .visibility import documents, seen_by_any

TILE = 128
_MISSING = (
    "leap_attention has no {} derivative in its {} backend; "
    'use backend="reference" where one is needed'
)


def chunked(
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
    """Output [B, H, N, E] and the sums over the state and the keys (all keys only if `whole`).

    `counts` are the n_i, int64 [N] or [B, N]; `sums` [B, H, F, E + 1] is the state before;
    `cu_seqlens` are the bounds of packed documents.
    """
    refuse_tangents("chunked", q, k, v, p_q, p_k, sums)
    if cu_seqlens is not None and counts.dim() == 2:
        counts = counts[0]  # packed documents are one row
    if counts.dim() == 2:
        counts = counts.to(q.device)
        key_mask = key_mask if whole else seen_by_any(counts, key_mask, *k.shape[:3:2])
    rot_q = rotation(p_q, q)
    k, v, rot_k = real_keys(k, v, p_k, key_mask)
    if counts.dim() == 1:
        y, _, sums = _forward(
            q, k, v, rot_q, rot_k, sums, counts, cu_seqlens, eps, feature_map, whole
        )
        return y, sums

    # A visibility of its own for each row: build the merged sequences and attend causally.
    queries, keys = q.shape[2], k.shape[2]
    one_to_keys = torch.arange(keys, device=q.device).expand(len(counts), -1)
    q_place = counts + torch.arange(queries, device=q.device)
    k_place = one_to_keys + torch.searchsorted(counts, one_to_keys.contiguous(), right=True)
    merged = (_place(x, q_place, queries + keys) for x in (q, rot_q))
    q, rot_q = merged
    k, v, rot_k = (_place(x, k_place, queries + keys) for x in (k, v, rot_k))
    causal = torch.arange(1, queries + keys + 1)
    y, _, sums = _forward(q, k, v, rot_q, rot_k, sums, causal, None, eps, feature_map, whole)
    return y.gather(2, _index(q_place, y)), sums


def _index(place: Tensor, like: Tensor) -> Tensor:
    return place[:, None, :, None].expand(-1, like.shape[1], -1, like.shape[-1])


def _place(x: Tensor, place: Tensor, length: int) -> Tensor:
    """x [B, H, N, D] spread over `length` positions, zeros between."""
    spread = x.new_zeros(*x.shape[:2], length, x.shape[-1])
    return spread.scatter(2, _index(place, x), x)


class Turn(NamedTuple):
    """A document begins in the tile: `new_queries` [queries, 1] belong to it or to later ones and
    do not read the state; `old_keys` [keys, 1] belong to one that ends and leave none."""

    new_queries: Tensor
    old_keys: Tensor


class Tile(NamedTuple):
    """The queries and keys between two cuts. `hidden` [queries, keys] is True where a query must
    not see a key of its own tile; None where it may see them all, so that the state serves alone
    once the tile's keys are in it. `turn` is None where no document begins."""

    queries: slice
    keys: slice
    hidden: Tensor | None
    turn: Turn | None


def tiles(
    counts: Tensor, keys: int, device: torch.device, cu_seqlens: Tensor | None = None
) -> list[Tile]:
    """Cut the merged sequence of the queries with these n_i (int64 [N]) and of so many keys."""
    queries = len(counts)
    place = counts + torch.arange(queries, device=counts.device)
    cuts = torch.arange(0, queries + keys + TILE, TILE, device=counts.device)
    cuts.clamp_(max=queries + keys)
    q_cuts = torch.searchsorted(place, cuts).tolist()
    k_cuts = [cut - q for cut, q in zip(cuts.tolist(), q_cuts, strict=True)]
    least, counts = counts.tolist(), counts.to(device)
    which, last = counts, [0] * len(cuts)
    if cu_seqlens is not None:
        which = documents(cu_seqlens, queries).to(device)
        # the document before each cut: a token is two elements of the merged sequence
        before = (cuts - 1).clamp_min(0)
        last = (torch.searchsorted(2 * cu_seqlens, before, right=True) - 1).tolist()
    made = []
    for t in range(len(cuts) - 1):
        (q0, q1), (k0, k1), (ended, open_) = (x[t : t + 2] for x in (q_cuts, k_cuts, last))
        hidden = turn = None
        if q0 < q1 and least[q0] < k1:
            hidden = counts[q0:q1, None] <= torch.arange(k0, k1, device=device)
        if ended != open_:
            of_query, of_key = which[q0:q1, None], which[k0:k1, None]
            turn = Turn(of_query != ended, of_key != open_)
            apart = of_query != of_key.mT
            hidden = apart if hidden is None else hidden | apart
        made.append(Tile(slice(q0, q1), slice(k0, k1), hidden, turn))
    return made


def _plan(
    q: Tensor, k: Tensor, counts: Tensor, whole: bool, cu_seqlens: Tensor | None
) -> list[Tile]:
    """The tiles of a call; keys that no query sees are left out, unless the state is wanted."""
    keys = k.shape[2]
    if not whole and cu_seqlens is None:
        keys = int(counts[-1]) if len(counts) else 0
    return tiles(counts, keys, q.device, cu_seqlens)


def _read(rows: Tensor, state: Tensor, apart: Tensor | None) -> Tensor:
    """rows @ state; nothing for the rows of other documents than the state's."""
    found = torch.bmm(rows, state)
    return found if apart is None else found.masked_fill_(apart, 0)


def _carry(state: Tensor, rows: Tensor, columns: Tensor, apart: Tensor | None) -> None:
    """Add rows^T columns to the state. Where a document begins, only its own ones are carried."""
    if apart is not None:
        state.zero_()
        rows, columns = rows.masked_fill(apart, 0), columns.masked_fill(apart, 0)
    state.baddbmm_(rows.mT, columns)


@torch.library.custom_op("leapformer::chunked_forward", mutates_args=())
@full_precision
def _forward(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rot_q: Tensor,
    rot_k: Tensor,
    sums: Tensor,
    counts: Tensor,
    cu_seqlens: Tensor | None,
    eps: float,
    feature_map: str,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Output [B, H, N, E], sums of the weights [B, H, N, 1] and the state after the keys.

    q [B, H, N, D], k [B, H, S, D], v [B, H, S, E], rotations [B, H, N or S, R], counts [N], and the
    state before, `sums` [B, H, R * D, E + 1]. An operator of its own, so that torch.compile takes
    the loop as one node.
    """
    batch, heads = q.shape[:2]
    y = empty_output(q, v)
    total = sums.new_empty(*q.shape[:3], 1)
    state = sums.flatten(0, 1).clone()
    for i, j, hidden, turn in _plan(q, k, counts, whole, cu_seqlens):
        wide_k = widen(k[:, :, j], rot_k[:, :, j], feature_map).flatten(0, 1)
        values = with_ones(v[:, :, j], sums.dtype).flatten(0, 1)
        if hidden is None:
            state.baddbmm_(wide_k.mT, values)
        wide_q = widen(q[:, :, i], rot_q[:, :, i], feature_map).flatten(0, 1)
        found = _read(wide_q, state, turn and turn.new_queries)
        if hidden is not None:
            weights = torch.bmm(wide_q, wide_k.mT).masked_fill_(hidden, 0)
            found.baddbmm_(weights, values)
            _carry(state, wide_k, values, turn and turn.old_keys)
        found = found.unflatten(0, (batch, heads))
        y[:, :, i] = normalise(found, eps)
        total[:, :, i] = found[..., -1:]
    return y, total, state.view_as(sums)


@torch.library.custom_op("leapformer::chunked_backward", mutates_args=())
@full_precision
def _backward(
    grad_y: Tensor,
    grad_sums: Tensor | None,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    rot_q: Tensor,
    rot_k: Tensor,
    sums: Tensor,
    counts: Tensor,
    cu_seqlens: Tensor | None,
    y: Tensor,
    total: Tensor,
    eps: float,
    feature_map: str,
    whole: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of q, k, v, rot_q, rot_k and `sums`, from those of y and of the state after."""
    batch, heads = q.shape[:2]
    plan = _plan(q, k, counts, whole, cu_seqlens)
    dq, dk, dv = torch.empty_like(q), torch.zeros_like(k), torch.zeros_like(v)
    d_rot_q, d_rot_k = torch.empty_like(rot_q), torch.zeros_like(rot_k)

    def grad_found(i: slice) -> Tensor:
        """Gradient of numerator and total side by side: that of `normalise`."""
        weight = total[:, :, i]
        numerator = grad_y[:, :, i] / weight.clamp_min(eps)
        along = (numerator * y[:, :, i]).sum(-1, keepdim=True)
        return torch.cat([numerator, along.masked_fill_(weight < eps, 0).neg_()], -1).flatten(0, 1)

    def keys_and_values(j: slice) -> tuple[Tensor, Tensor]:
        wide = widen(k[:, :, j], rot_k[:, :, j], feature_map).flatten(0, 1)
        return wide, with_ones(v[:, :, j], sums.dtype).flatten(0, 1)

    state = sums.flatten(0, 1).clone()
    for i, j, hidden, turn in plan:
        wide_k, values = keys_and_values(j)
        if hidden is None:
            state.baddbmm_(wide_k.mT, values)
        found = grad_found(i)
        wide = _read(found, state.mT, turn and turn.new_queries)
        if hidden is not None:
            wide.baddbmm_(torch.bmm(found, values.mT).masked_fill_(hidden, 0), wide_k)
            _carry(state, wide_k, values, turn and turn.old_keys)
        dq[:, :, i], d_rot_q[:, :, i] = widen_backward(
            wide.unflatten(0, (batch, heads)), q[:, :, i], rot_q[:, :, i], feature_map
        )

    state = (torch.zeros_like(sums) if grad_sums is None else grad_sums).flatten(0, 1).clone()
    for i, j, hidden, turn in reversed(plan):
        wide_q = widen(q[:, :, i], rot_q[:, :, i], feature_map).flatten(0, 1)
        found = grad_found(i)
        if hidden is None:
            state.baddbmm_(wide_q.mT, found)
        wide_k, values = keys_and_values(j)
        grad_values = _read(wide_k, state, turn and turn.old_keys)
        wide = _read(values, state.mT, turn and turn.old_keys)
        if hidden is not None:
            weights = torch.bmm(wide_q, wide_k.mT).masked_fill_(hidden, 0)
            grad_weights = torch.bmm(found, values.mT).masked_fill_(hidden, 0)
            grad_values.baddbmm_(weights.mT, found)
            wide.baddbmm_(grad_weights.mT, wide_q)
            _carry(state, wide_q, found, turn and turn.new_queries)
        dv[:, :, j] = grad_values.unflatten(0, (batch, heads))[..., :-1]
        dk[:, :, j], d_rot_k[:, :, j] = widen_backward(
            wide.unflatten(0, (batch, heads)), k[:, :, j], rot_k[:, :, j], feature_map
        )
    return dq, dk, dv, d_rot_q, d_rot_k, state.view_as(sums)


def empty_output(q: Tensor, v: Tensor) -> Tensor:
    """[B, H, N, E] laid out as [B, N, H, E]: merging the heads then copies nothing."""
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)


@_forward.register_fake
def _(q, k, v, rot_q, rot_k, sums, *rest):  # type: ignore[no-untyped-def]
    return empty_output(q, v), sums.new_empty(*q.shape[:3], 1), torch.empty_like(sums)


@_backward.register_fake
def _(grad_y, grad_sums, q, k, v, rot_q, rot_k, sums, *rest):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(x) for x in (q, k, v, rot_q, rot_k, sums))


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.eps, ctx.feature_map, ctx.whole = inputs
    y, total, _ = output
    ctx.save_for_backward(*tensors, y, total)
    ctx.set_materialize_grads(False)


def _differentiate(ctx: Any, grad_y: Tensor | None, _: None, grad_sums: Tensor | None) -> Any:
    saved = ctx.saved_tensors
    grad_y = torch.zeros_like(saved[-2]) if grad_y is None else grad_y
    options = (ctx.eps, ctx.feature_map, ctx.whole)
    return *_backward(grad_y, grad_sums, *saved, *options), None, None, None, None, None


def refuse_second(backend: str) -> Callable[..., None]:
    """What stands for the backward of a backward operator."""

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(_MISSING.format("second", backend))

    return refuse


def refuse_tangents(backend: str, *tensors: Tensor | None) -> None:
    """An operator of torch.library drops tangents of forward-mode differentiation; say so."""
    if torch.compiler.is_compiling():
        return
    for x in tensors:
        if x is not None and unpack_dual(x).tangent is not None:
            raise RuntimeError(_MISSING.format("forward-mode", backend))


_forward.register_autograd(_differentiate, setup_context=_save)
_backward.register_autograd(refuse_second("chunked"))
