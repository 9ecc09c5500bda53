"""What must hold of a backend, in the run that times it, before its speed is told."""

import torch
from torch import Tensor

from ..ops import LeapState, leap_attention
from ..proportion import LeaP
from .cases import CASES, DECODER, Case, inputs
from .peers import quadratic

LENGTH = 300
SINGLE = 1e-5
"""The relative error that float32 explains."""
HALF = 2.0
"""How much more than plain torch a backend may err in half precision."""
HALVES = {"bfloat16": torch.bfloat16, "float16": torch.float16}


def errors(backend: str, device: torch.device) -> dict[str, float]:
    """How far a backend is off, at worst, of y and every gradient against the float64 reference.

    "float32" and "step" (of decoding) are relative errors; "bfloat16" and "float16" are multiples
    of the error of plain torch in that dtype.

    Raises FloatingPointError where one is more than allowed.
    """
    small = [Case(1, 2, case.width, case.causal) for case in CASES]
    found = {"float32": max(_single(case, backend, device) for case in small)}
    found["step"] = _step(backend, device)
    for name, dtype in HALVES.items():
        found[name] = max(_half(case, backend, device, dtype) for case in small)
    for name, error in found.items():
        if not error <= (HALF if name in HALVES else SINGLE):
            of = " times plain torch's error" if name in HALVES else ""
            raise FloatingPointError(f"{backend} errs by {error:.1e}{of} ({name}): it is not timed")
    return found


def _exact(case: Case, given: list[Tensor], grad: Tensor) -> list[Tensor]:
    return _run(case, "reference", [x.double() for x in given], grad.double())


def _run(case: Case, backend: str, given: list[Tensor], grad: Tensor) -> list[Tensor]:
    """y and every gradient."""
    leaves = [x.detach().clone().requires_grad_() for x in given]
    q, k, v, p_q, p_k = leaves
    if backend == "quadratic":
        y = quadratic(q, k, v, p_q, p_k, case.causal)
    else:
        y = leap_attention(q, k, v, p_q, p_k, visible=case.visible, backend=backend)
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, leaves, grad))]


def _single(case: Case, backend: str, device: torch.device) -> float:
    given, grad = inputs(case, LENGTH, device)
    pairs = zip(_run(case, backend, given, grad), _exact(case, given, grad), strict=True)
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def _half(case: Case, backend: str, device: torch.device, dtype: torch.dtype) -> float:
    given, grad = inputs(case, LENGTH, device, dtype)
    ours = _run(case, backend, given, grad)
    plain = _run(case, "quadratic", [x.to(dtype) for x in given], grad)
    exact = _exact(case, given, grad)
    return max(
        float((a - e).norm() / (b - e).norm()) for a, b, e in zip(ours, plain, exact, strict=True)
    )


@torch.no_grad()
def _step(backend: str, device: torch.device) -> float:
    """The last token as a step with learned proportions, against the reference over all."""
    q, k, v = (x.detach() for x in inputs(DECODER, LENGTH, device)[0][:3])
    leap_q, leap_k = (LeaP(DECODER.width).to(device) for _ in range(2))
    before, last = slice(None, -1), slice(-1, None)
    empty = LeapState.empty(1, DECODER.heads, DECODER.width, DECODER.width, device=device)
    state = empty.extend(k[:, :, before], v[:, :, before], leap_k(k[:, :, before]))
    y = leap_attention(
        q[:, :, last],
        k[:, :, last],
        v[:, :, last],
        leap_q,
        leap_k,
        visible="causal",
        state=state,
        backend=backend,
    )
    whole = [x.double() for x in (q, k, v, leap_q(q), leap_k(k))]
    exact = leap_attention(*whole, visible="causal", backend="reference")[:, :, last]
    return float((y - exact).norm() / exact.norm())
