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

from typing import NamedTuple

import torch
from torch import Tensor

from .features import (
    normalise,
    real_keys,
    rotation,
    widen,
    widen_backward,
    with_ones,
)
from .operator import Inputs, Six, Three, empty_output, operator
from .visibility import documents, seen_by_any

TILE = 128


def chunked(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """Output [B, H, N, E] and the sums over the state and the keys (all keys only if `whole`)."""
    q, counts, key_mask = inputs.q, inputs.counts, inputs.key_mask
    if counts.dim() == 2:
        counts = counts.to(q.device)
        if not inputs.whole:
            key_mask = seen_by_any(counts, key_mask, *inputs.k.shape[:3:2])
    rot_q = rotation(inputs.p_q, q)
    k, v, rot_k = real_keys(inputs.k, inputs.v, inputs.p_k, key_mask)
    if counts.dim() == 1:
        return _operator(inputs._replace(k=k, v=v, p_q=rot_q, p_k=rot_k, key_mask=None))

    # A visibility of its own for each row: build the merged sequences and attend causally.
    queries, keys = q.shape[2], k.shape[2]
    one_to_keys = torch.arange(keys, device=q.device).expand(len(counts), -1)
    q_place = counts + torch.arange(queries, device=q.device)
    k_place = one_to_keys + torch.searchsorted(counts, one_to_keys.contiguous(), right=True)
    q, rot_q = (_place(x, q_place, queries + keys) for x in (q, rot_q))
    k, v, rot_k = (_place(x, k_place, queries + keys) for x in (k, v, rot_k))
    causal = torch.arange(1, queries + keys + 1)
    y, sums = _operator(
        inputs._replace(q=q, k=k, v=v, p_q=rot_q, p_k=rot_k, counts=causal, key_mask=None)
    )
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


def _plan(inputs: Inputs) -> list[Tile]:
    """The tiles of a call; keys that no query sees are left out, unless the state is wanted."""
    counts, keys = inputs.counts, inputs.k.shape[2]
    if not inputs.whole and inputs.cu_seqlens is None:
        keys = int(counts[-1]) if len(counts) else 0
    return tiles(counts, keys, inputs.q.device, inputs.cu_seqlens)


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


def _forward(inputs: Inputs) -> Three:
    """Output [B, H, N, E], sums of the weights [B, H, N, 1] and the state after the keys.

    In place of proportions there are rotations here, [B, H, N or S, R], those of padding zero.
    """
    q, k, v, rot_q, rot_k, sums, *_, eps, feature_map, _ = inputs
    assert rot_q is not None
    assert rot_k is not None
    batch, heads = q.shape[:2]
    y, total, _ = _outputs(inputs)
    state = sums.flatten(0, 1).clone()
    for i, j, hidden, turn in _plan(inputs):
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


def _backward(
    inputs: Inputs,
    grad_y: Tensor,
    grad_sums: Tensor | None,
    y: Tensor,
    total: Tensor,
    of_state: bool,
) -> Six:
    """Gradients of q, k, v, rot_q, rot_k and `sums`, from those of y and of the state after."""
    q, k, v, rot_q, rot_k, sums, *_, eps, feature_map, _ = inputs
    assert rot_q is not None
    assert rot_k is not None
    batch, heads = q.shape[:2]
    plan = _plan(inputs)
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
    d_sums = state.view_as(sums) if of_state else sums.new_empty(0)
    return dq, dk, dv, d_rot_q, d_rot_k, d_sums


def _outputs(inputs: Inputs) -> Three:
    q, v, sums = inputs.q, inputs.v, inputs.sums
    return empty_output(q, v), sums.new_empty(*q.shape[:3], 1), torch.empty_like(sums)


def _gradients(inputs: Inputs, of_state: bool) -> Six:
    q, k, v, rot_q, rot_k, sums, *_ = inputs
    assert rot_q is not None
    assert rot_k is not None
    like = torch.empty_like
    d_sums = like(sums) if of_state else sums.new_empty(0)
    return like(q), like(k), like(v), like(rot_q), like(rot_k), d_sums


_operator = operator("chunked", _forward, _backward, _outputs, _gradients)
