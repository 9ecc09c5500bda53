"""The front door of the attention: one signature for every visibility, device and backend."""

from typing import Literal, overload

import torch
from torch import Tensor

from .checks import known, require
from .chunked import chunked
from .features import FEATURE_MAPS, accumulator
from .reference import reference
from .state import LeapState
from .visibility import Visible, as_rule, visible_counts

BACKENDS = ("reference", "chunked")


@overload
def leap_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    p_q: Tensor | None = None,
    p_k: Tensor | None = None,
    *,
    visible: str | Visible | Tensor = "all",
    key_mask: Tensor | None = None,
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
    p_q: Tensor | None = None,
    p_k: Tensor | None = None,
    *,
    visible: str | Visible | Tensor = "all",
    key_mask: Tensor | None = None,
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
    p_q: Tensor | None = None,
    p_k: Tensor | None = None,
    *,
    visible: str | Visible | Tensor = "all",
    key_mask: Tensor | None = None,
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
            dtype. Learned: `LeaP`; static: `Ramp`. None, for both: plain linear attention.
        p_k: proportions of the keys, [B, H, S].
        visible: which of the S keys of this call query i sees: "all", "causal" (keys 0..i), a
            `Visible` rule, or an integer tensor [N] or [B, N] of how many leading keys.
        key_mask: bool [B, S], True where a key is real. What stands elsewhere never matters.
        state: a `LeapState` of what came before; every query sees all of it.
        return_state: also return the state after all S keys.
        eps: lower bound of the normaliser.
        feature_map: phi, "relu" (the paper's) or "elu" (elu + 1).
        backend: "chunked" (linear, every device), "reference" (quadratic, float64 inside), or
            "auto", which is `choose_backend`.

    Returns:
        y [B, H, N, E] in the dtype of v, and with `return_state` the `LeapState` after the call.
        Its sums are float32 (float64 for float64 inputs), also for half-precision inputs.

    Raises:
        ValueError: shapes that disagree, proportions outside [0, 1], a visibility that decreases,
            is negative or exceeds S, an unknown name. (While compiling, and on a GPU, the values
            are checked on the device and raise RuntimeError.)
        TypeError: a dtype that does not fit.
    """
    if torch.is_autocast_enabled(q.device.type) and q.is_floating_point():
        dtype = torch.get_autocast_dtype(q.device.type)
        q, k, v = (x if x.dtype == torch.float64 else x.to(dtype) for x in (q, k, v))
    _check_inputs(q, k, v, key_mask, eps, feature_map)
    if (p_q is None) != (p_k is None):
        raise ValueError("give proportions to both sides or to neither: p_q and p_k")
    if p_k is not None and key_mask is not None:
        p_k = p_k.expand(k.shape[:3]).masked_fill(~key_mask[:, None, :], 0)
    p_q, p_k = _proportions("p_q", p_q, q), _proportions("p_k", p_k, k)

    batch, heads, queries, key_width = q.shape
    keys, value_width = v.shape[-2:]
    empty = (batch, heads, key_width, value_width)
    if state is None:
        state = LeapState.empty(*empty, proportions=p_q is not None, dtype=q.dtype, device=q.device)
    else:
        _check_state(state, empty, p_q is not None, q)
    rule = as_rule(visible)

    if choose_backend(backend, q.device) == "reference":
        counts = visible_counts(visible, batch, queries, keys)
        y, sums = reference(q, k, v, p_q, p_k, counts, key_mask, state.sums, eps, feature_map)
        y, state = y.to(q.dtype), LeapState(sums.to(state.sums.dtype))
    elif rule is not None and queries == keys == 1:
        after = state.extend(k, v, p_k, key_mask=key_mask, feature_map=feature_map)
        seen = after if rule.count(0, 1) else state
        y, state = seen.read(q, p_q, eps=eps, feature_map=feature_map), after
    else:
        counts = visible_counts(visible, batch, queries, keys)
        if counts.dim() == 2 and not return_state:
            seen_by_any = torch.arange(keys, device=q.device) < counts[:, -1:].to(q.device)
            key_mask = seen_by_any if key_mask is None else key_mask & seen_by_any
        y, sums = chunked(
            q, k, v, p_q, p_k, counts, key_mask, state.sums, eps, feature_map, return_state
        )
        state = LeapState(sums)
    return (y, state) if return_state else y


def choose_backend(name: str, device: torch.device) -> str:
    """The backend that serves: `name` itself, or for "auto" the fastest one for the device."""
    known("backend", name, ("auto", *BACKENDS))
    return "chunked" if name == "auto" else name


def _proportions(name: str, p: Tensor | None, x: Tensor) -> Tensor | None:
    if p is None:
        return None
    if not p.is_floating_point():
        raise TypeError(f"{name} is {p.dtype}: proportions are floating point numbers in [0, 1]")
    try:
        p = p.expand(x.shape[:3])
    except RuntimeError:
        raise ValueError(
            f"{name} is {list(p.shape)}: expected [B, H, length] = {list(x.shape[:3])}"
        ) from None
    if p.numel():
        low, high = torch.aminmax(p.detach())
        require(
            (low >= 0) & (high <= 1),
            f"{name} leaves [0, 1]: proportions come from LeaP, from Ramp or from a sigmoid",
        )
    return p


def _check_inputs(
    q: Tensor, k: Tensor, v: Tensor, key_mask: Tensor | None, eps: float, feature_map: str
) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 4:
            raise ValueError(
                f"{name} is {list(x.shape)}: expected four axes, [batch, heads, length, width]"
            )
        if not x.is_floating_point():
            raise TypeError(f"{name} is {x.dtype}: expected floating point, convert with .float()")
        if x.dtype != q.dtype or x.device != q.device:
            raise TypeError(
                f"{name} is {x.dtype} on {x.device} and q is {q.dtype} on {q.device}: "
                "q, k and v share dtype and device"
            )
    if k.shape[:2] != q.shape[:2] or k.shape[-1] != q.shape[-1] or v.shape[:3] != k.shape[:3]:
        raise ValueError(
            f"q {list(q.shape)}, k {list(k.shape)} and v {list(v.shape)} disagree: "
            "expected q [B, H, N, D], k [B, H, S, D], v [B, H, S, E]"
        )
    if key_mask is not None:
        if key_mask.dtype != torch.bool:
            raise TypeError(f"key_mask is {key_mask.dtype}: expected bool, True = real key")
        if key_mask.shape != (k.shape[0], k.shape[2]):
            raise ValueError(
                f"key_mask is {list(key_mask.shape)}: "
                f"expected [B, S] = [{k.shape[0]}, {k.shape[2]}]"
            )
    if not eps > 0:
        raise ValueError(f"eps is {eps}: it bounds a divisor from below and must be positive")
    known("feature map", feature_map, FEATURE_MAPS)


def _check_state(
    state: LeapState, empty: tuple[int, int, int, int], proportions: bool, q: Tensor
) -> None:
    batch, heads, key_width, value_width = empty
    expected = (batch, heads, key_width * (2 if proportions else 1), value_width + 1)
    if state.sums.shape != expected:
        raise ValueError(
            f"the state's sums are {list(state.sums.shape)}: expected {list(expected)} here, "
            "[B, H, 2D with proportions or D without, E + 1]"
        )
    if state.sums.dtype != accumulator(q.dtype) or state.sums.device != q.device:
        raise TypeError(
            f"the state is {state.sums.dtype} on {state.sums.device}: inputs of {q.dtype} on "
            f"{q.device} continue a state of {accumulator(q.dtype)} there"
        )
