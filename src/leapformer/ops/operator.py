"""What every backend is given, and how its two passes become one differentiable operator of torch.

An operator is one node to torch.compile, whatever loops and kernels stand behind it, and autograd
calls its backward pass, which is an operator too.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.autograd.forward_ad import unpack_dual

from .features import full_precision


class Inputs(NamedTuple):
    """The arguments of `leap_attention`, checked.

    q [B, H, N, D], k [B, H, S, D], v [B, H, S, E] and the proportions p_q [B, H, N], p_k [B, H, S],
    both or none; `sums` [B, H, F, E + 1], the state before; `counts`, the n_i, int64 [N], or [B, N]
    where each row has its own; `key_mask` bool [B, S]; `cu_seqlens`, the bounds of packed
    documents, which have no state (`sums` are zeros without a gradient); `whole`: are the sums
    after all keys wanted? Triton's kernels count by the `rule` (the numbers of a `Visible`) where
    there is one, and `counts` are then [0].
    """

    q: Tensor
    k: Tensor
    v: Tensor
    p_q: Tensor | None
    p_k: Tensor | None
    sums: Tensor
    counts: Tensor
    key_mask: Tensor | None
    cu_seqlens: Tensor | None
    rule: list[int]
    eps: float
    feature_map: str
    whole: bool


Three = tuple[Tensor, Tensor, Tensor]
Six = tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]

_INPUTS = (
    "Tensor q, Tensor k, Tensor v, Tensor? p_q, Tensor? p_k, Tensor sums, Tensor counts, "
    "Tensor? key_mask, Tensor? cu_seqlens, int[] rule, float eps, str feature_map, bool whole"
)
_FORWARD = f"({_INPUTS}) -> (Tensor, Tensor, Tensor)"
_BACKWARD = (
    f"(Tensor grad_y, Tensor? grad_sums, Tensor y, Tensor total, bool of_state, {_INPUTS})"
    " -> (Tensor, Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_TENSORS = Inputs._fields.index("rule")


def operator(
    backend: str,
    forward: Callable[[Inputs], Three],
    backward: Callable[[Inputs, Tensor, Tensor | None, Tensor, Tensor, bool], Six],
    outputs: Callable[[Inputs], Three],
    gradients: Callable[[Inputs, bool], Six],
) -> Callable[[Inputs], tuple[Tensor, Tensor]]:
    """Inputs to the output [B, H, N, E] and the sums after (of all keys only if `whole`).

    Args:
        forward: the output, the sums of its weights, and the sums after.
        backward: from the inputs, the gradients of y and of the sums after, y, the sums of the
            weights, and whether the gradient of the state before is wanted, to the gradients of q,
            k, v, p_q, p_k and that state; what is not there or not wanted is [0].
        outputs: new tensors as `forward` returns them.
        gradients: new tensors as `backward` returns them, by whether that of the state is wanted.
    """

    def differentiate(ctx: Any, grad_y: Tensor | None, _: None, grad_sums: Tensor | None) -> Any:
        *tensors, y, total = ctx.saved_tensors
        grad_y = torch.zeros_like(y) if grad_y is None else grad_y
        given = Inputs(*tensors, *ctx.options)
        wanted = ctx.needs_input_grad[:6]
        grad_sums = grad_sums if given.whole else None
        made = run_backward(grad_y, grad_sums, y, total, wanted[5], *given)
        kept = (
            x if need and of is not None else None
            for x, need, of in zip(made, wanted, given, strict=False)
        )
        return *kept, *[None] * (len(given) - 6)

    def refuse(ctx: Any, *grads: Any) -> None:
        raise RuntimeError(_missing("second", backend))

    run_forward = _define(
        f"leapformer::{backend}_forward",
        _FORWARD,
        lambda *given: forward(Inputs(*given)),
        lambda *given: outputs(Inputs(*given)),
    )
    run_backward = _define(
        f"leapformer::{backend}_backward",
        _BACKWARD,
        lambda grad_y, grad_sums, y, total, of_state, *given: backward(
            Inputs(*given), grad_y, grad_sums, y, total, of_state
        ),
        lambda grad_y, grad_sums, y, total, of_state, *given: gradients(Inputs(*given), of_state),
    )
    torch.library.register_autograd(run_forward, differentiate, setup_context=_save)
    torch.library.register_autograd(run_backward, refuse)

    def run(inputs: Inputs) -> tuple[Tensor, Tensor]:
        _refuse_tangents(backend, inputs)
        y, _, after = run_forward(*inputs)
        return y, after

    return run


def _define(
    name: str, schema: str, function: Callable[..., Any], fake: Callable[..., Any]
) -> OpOverload[..., Any]:
    torch.library.define(name, schema, tags=torch.Tag.pt2_compliant_tag)
    torch.library.impl(name, "default", full_precision(function))
    torch.library.register_fake(name, fake)
    space, _, own = name.partition("::")
    found: OpOverload[..., Any] = getattr(getattr(torch.ops, space), own).default
    return found


def _save(ctx: Any, inputs: tuple[Any, ...], output: Three) -> None:
    y, total, _ = output
    ctx.save_for_backward(*inputs[:_TENSORS], y, total)
    ctx.options = inputs[_TENSORS:]
    ctx.set_materialize_grads(False)


def _refuse_tangents(backend: str, inputs: Inputs) -> None:
    """An operator of torch.library drops tangents of forward-mode differentiation; say so."""
    if torch.compiler.is_compiling():
        return
    for x in inputs[:6]:
        if x is not None and unpack_dual(x).tangent is not None:
            raise RuntimeError(_missing("forward-mode", backend))


def _missing(derivative: str, backend: str) -> str:
    return (
        f"leap_attention has no {derivative} derivative in its {backend} backend; "
        'use backend="reference" where one is needed'
    )


def empty_output(q: Tensor, v: Tensor) -> Tensor:
    """[B, H, N, E] laid out as [B, N, H, E]: merging the heads then copies nothing."""
    batch, heads, queries, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[-1]).transpose(1, 2)
