"""What torch asks of an operator, of each backend's two."""

import importlib.util

import pytest
import torch
from cases import FAST, plain_case

from leapformer import Visible
from leapformer.ops import visible_counts
from leapformer.ops.features import rotation
from leapformer.ops.operator import Inputs

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed"
)
BOUNDS = torch.tensor([0, 15, 40])


def inputs(backend: str, visible: Visible, masked: bool, bounds: torch.Tensor | None) -> Inputs:
    """What the operator of a backend is given, of 40 tokens."""
    single, place = torch.float32, DEVICE if backend == "triton" else "cpu"
    case = plain_case(1 if bounds is not None else 2, 2, 40, 40).to(single, place).tracked()
    p_q, p_k, mask = case.p_q, case.p_k, case.key_mask if masked else None
    counts = visible_counts(visible, len(case.q), 40, 40, bounds)
    rule = visible.numbers() if backend == "triton" else []
    if backend == "chunked":
        mask, p_q, p_k = None, *(rotation(p, case.q).detach().requires_grad_() for p in (p_q, p_k))
    sums = case.state.sums if bounds is None else torch.zeros_like(case.state.sums)
    return Inputs(
        *(case.q, case.k, case.v, p_q, p_k, sums, counts, mask, bounds, rule),
        eps=1e-6,
        feature_map="relu",
        whole=bounds is None,
    )


@pytest.mark.parametrize("backend", [*FAST, pytest.param("triton", marks=needs_triton)])
@pytest.mark.parametrize("visible", [Visible.causal(), Visible.wait_k(2, 3)])
@pytest.mark.parametrize(("masked", "bounds"), [(False, None), (True, None), (True, BOUNDS)])
def test_operators_keep_their_contract_with_torch(backend, visible, masked, bounds):
    if backend == "triton":
        importlib.import_module("leapformer.ops.triton_launch")
    forward, backward = (
        getattr(torch.ops.leapformer, f"{backend}_{way}").default for way in ("forward", "backward")
    )
    given = inputs(backend, visible, masked, bounds)
    torch.library.opcheck(forward, tuple(given))
    y, total, after = (x.detach() for x in forward(*given))
    fixed = [x.detach() if isinstance(x, torch.Tensor) else x for x in given]
    grads = (torch.ones_like(y), after if given.whole else None)
    for of_state in {False, given.sums.requires_grad}:
        torch.library.opcheck(backward, (*grads, y, total, of_state, *fixed))
