"""The front door of the attention: one signature for every visibility, device and backend."""

from collections.abc import Callable
from typing import Literal, overload

import torch
from torch import Tensor

from .checks import (
    check_cu_seqlens,
    check_eps,
    check_floating,
    check_keys,
    check_state,
    known,
)
from .chunked import chunked
from .features import FEATURE_MAPS, autocast
from .native import built, native
from .operator import Inputs
from .reference import reference
from .state import LeapState
from .step import Learned, proportions, step
from .triton_backend import refuses, triton
from .visibility import Visible, as_rule, visible_counts

Backend = Callable[[Inputs], tuple[Tensor, Tensor]]
BACKENDS: dict[str, Backend] = {
    "reference": reference,
    "chunked": chunked,
    "native": native,
    "triton": triton,
}


@overload
def leap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | Learned | None = None,
    p_k: Tensor | Learned | None = None,
    *,
    visible: str | Visible | Tensor = "all",
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: LeapState | None = None,
    return_state: Literal[False] = False,
    eps: float = 1e-6,
    feature_map: str = "relu",
    backend: str = "auto",
) -> Tensor: ...


@overload
def leap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | Learned | None = None,
    p_k: Tensor | Learned | None = None,
    *,
    visible: str | Visible | Tensor = "all",
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: LeapState | None = None,
    return_state: Literal[True],
    eps: float = 1e-6,
    feature_map: str = "relu",
    backend: str = "auto",
) -> tuple[Tensor, LeapState]: ...


def leap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | Learned | None = None,
    p_k: Tensor | Learned | None = None,
    *,
    visible: str | Visible | Tensor = "all",
    key_mask: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    state: LeapState | None = None,
    return_state: bool = False,
    eps: float = 1e-6,
    feature_map: str = "relu",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, LeapState]:
    """Linear attention re-weighted by proportions (LeaPformer, arXiv 2405.13046, eq. 5-8).

        w_ij = phi(q_i) . phi(k_j) * cos(pi/2 * (p_q[i] - p_k[j]))    for the keys j that i may see
        y_i  = sum_j w_ij v_j / max(sum_j w_ij, eps)

    Time and memory are linear in N + S. A query that matches nothing returns zeros.

    Args:
        q: queries [B, H, N, D]; float16, bfloat16, float32 or float64, like k and v.
        k: keys [B, H, S, D].
        v: values [B, H, S, E].
        p_q: proportions of the queries in [0, 1], [B, H, N] or what broadcasts to it; any floating
            dtype. Learned: a `LeaP`, which is then read, or what it gives; static: `Ramp`'s. None,
            for both: plain linear attention.
        p_k: proportions of the keys, [B, H, S].
        visible: which of the S keys of this call query i sees: "all", "causal" (keys 0..i), a
            `Visible` rule, or an integer tensor [N] or [B, N] of how many leading keys.
        key_mask: bool [B, S], True where a key is real. What stands elsewhere never matters.
        cu_seqlens: documents packed into one row (B = 1, N = S) that do not see each other, as
            FlashAttention bounds them: int [documents + 1], rising from 0 to N, best on the CPU.
            `visible` then counts within each document; there is no state.
        state: a `LeapState` of what came before; every query sees all of it.
        return_state: also return the state after all S keys.
        eps: lower bound of the normaliser.
        feature_map: phi, "relu" (the paper's) or "elu" (elu + 1).
        backend: "chunked" (linear, every device), "native" (the same in one C++ kernel for the CPU,
            built at its first use), "triton" (the same in Triton kernels for an NVIDIA GPU),
            "reference" (quadratic, float64 inside), or "auto", which is `choose_backend`.

    Returns:
        y [B, H, N, E] in the dtype of v, and with `return_state` the `LeapState` after the call.
        Its sums are float32 (float64 for float64 inputs), also for half-precision inputs.

    Raises:
        ValueError: shapes that disagree, proportions outside [0, 1], a visibility that decreases,
            is negative or exceeds S, bounds that do not rise from 0 to N, an unknown name, a
            backend that does not serve these inputs. (While compiling, and on a GPU, the values
            are checked on the device and raise RuntimeError.)
        TypeError: a dtype that does not fit.
    """
    q, k, v = autocast(q), autocast(k), autocast(v)
    check_floating(q=q, k=k, v=v)
    check_keys(k, v, key_mask)
    check_eps(eps)
    known("feature map", feature_map, FEATURE_MAPS)
    if k.shape[:2] != q.shape[:2] or k.shape[-1] != q.shape[-1]:
        raise ValueError(
            f"q is {list(q.shape)} and k is {list(k.shape)}: "
            "expected [B, H, N, D] and [B, H, S, D] with the same B, H and D"
        )
    for name, p in (("p_q", p_q), ("p_k", p_k)):
        if not (p is None or isinstance(p, Tensor) or hasattr(p, "weights")):
            raise TypeError(f"{name} is {type(p).__name__}: expected a tensor, a LeaP or None")
    if (p_q is None) != (p_k is None):
        raise ValueError("give proportions to both sides or to neither: p_q and p_k")
    if cu_seqlens is not None:
        stateful = state is not None or return_state
        cu_seqlens = check_cu_seqlens(cu_seqlens, q, k, stateful)

    batch, heads, queries, key_width = q.shape
    keys, value_width = v.shape[-2:]
    if state is None:
        state = LeapState.empty(
            batch,
            heads,
            key_width,
            value_width,
            proportions=p_q is not None,
            dtype=q.dtype,
            device=q.device,
        )
    if not isinstance(state, LeapState):
        raise TypeError(f"state is {type(state).__name__}: expected a LeapState")
    check_state(state.sums, q, p_q is not None, value_width)
    backend = choose_backend(backend, q.device, q.dtype, max(key_width, value_width))
    rule = as_rule(visible)
    sees_itself = queries == keys == 1 and rule is not None and rule.count(0, 1) == 1
    if sees_itself and backend != "reference":
        y, state = step(q, k, v, p_q, p_k, key_mask, state, eps, feature_map, backend)
        return (y, state) if return_state else y

    p_q = proportions("p_q", p_q, q)
    p_k = proportions("p_k", p_k, k, key_mask)
    # Triton's kernels count by the rule themselves: no numbers to make and to copy to the GPU
    numbers = rule.numbers() if rule is not None and backend == "triton" else []
    if numbers:
        counts = torch.empty(0, dtype=torch.int64)
    else:
        counts = visible_counts(visible, batch, queries, keys, cu_seqlens)
    y, sums = BACKENDS[backend](
        Inputs(
            *(q, k, v, p_q, p_k, state.sums, counts, key_mask, cu_seqlens, numbers),
            eps=float(eps),
            feature_map=feature_map,
            whole=return_state,
        )
    )
    return (y, LeapState(sums)) if return_state else y


def choose_backend(
    name: str, device: torch.device, dtype: torch.dtype = torch.float32, width: int = 1
) -> str:
    """The backend that serves inputs of this dtype, whose keys and values are at most so wide:
    `name` itself, or for "auto" the fastest one that is there. That is "triton" on a GPU where
    Triton is installed and serves them, "native" on a CPU for which it was built (`leapformer
    build`), and else "chunked".

    Raises ValueError for an unknown name and for one that cannot serve, saying why.
    """
    known("backend", name, ("auto", *BACKENDS))
    if name == "auto":
        if device.type == "cuda" and not refuses(device, dtype, width):
            return "triton"
        return "native" if device.type == "cpu" and built() else "chunked"
    why = ""
    if name == "triton":
        why = refuses(device, dtype, width)
    elif name == "native" and device.type not in ("cpu", "meta"):
        why = f"runs on the CPU and the inputs are on {device}"
    if why:
        raise ValueError(
            f'backend="{name}" {why}: use backend="chunked", which runs on every device'
        )
    return name
