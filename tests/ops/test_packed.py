"""Documents packed into one row: each gives what it gives alone."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from cases import BACKENDS, FAST, Case, cases
from hypothesis import given
from hypothesis import strategies as st

from leapformer import Visible, leap_attention

SIZES = (0, 1, 2, 31, 32, 63, 64, 65, 130, 200)
RULES = ("all", "causal", Visible.chunks(7, 3), Visible.wait_k(2, 3), Visible.causal(4))


def rows(case: Case, part: slice) -> Case:
    """The tokens of one document."""
    names = ("q", "k", "v", "p_q", "p_k")
    cut = {name: x[:, :, part] for name in names if (x := getattr(case, name)) is not None}
    mask = None if case.key_mask is None else case.key_mask[:, part]
    visible = case.visible[part] if isinstance(case.visible, torch.Tensor) else case.visible
    return replace(case, key_mask=mask, visible=visible, **cut)


@st.composite
def packed(draw) -> tuple[Case, torch.Tensor]:
    """A row of documents and their bounds; some are empty."""
    sizes = draw(st.lists(st.sampled_from(SIZES), min_size=1, max_size=6))
    case = draw(cases(lengths=(sum(sizes),)))
    names = ("q", "k", "v", "p_q", "p_k", "key_mask")
    one = {name: x[:1] for name in names if (x := getattr(case, name)) is not None}
    visible = draw(st.sampled_from((*RULES, "tensor")))
    if visible == "tensor":
        visible = torch.cat([torch.randint(0, n + 1, (n,)).sort().values for n in sizes])
    case = replace(case, state=None, visible=visible, **one)
    return case, torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.parametrize("backend", BACKENDS)
@given(given=packed())
def test_packed_is_separate_forward_and_every_gradient(backend, given):
    case, bounds = given
    case = case.tracked()
    whole = case(backend, cu_seqlens=bounds.int())
    parts = [slice(a, b) for a, b in pairwise(bounds.tolist())]
    apart = torch.cat([rows(case, part)("reference") for part in parts], 2)
    torch.testing.assert_close(whole, apart, rtol=1e-9, atol=1e-9)
    seed = torch.randn_like(whole)
    grads = (
        torch.autograd.grad(y, case.leaves(), seed, materialize_grads=True) for y in (whole, apart)
    )
    for ours, expected in zip(*grads, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("visible", RULES)
@pytest.mark.parametrize("sizes", [(30, 40, 30), (200, 300, 131), (64, 64, 64, 64)])
def test_one_document_never_changes_another_bit_for_bit(backend, visible, sizes):
    torch.manual_seed(0)
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    inputs = torch.randn(3, 1, 2, sum(sizes), 4)
    place = slice(*bounds[1:3].tolist())
    changed = inputs.clone()
    changed[:, :, :, place] = torch.randn_like(changed[:, :, :, place])
    others = torch.ones(sum(sizes), dtype=torch.bool)
    others[place] = False
    before, after = (
        leap_attention(*x, visible=visible, cu_seqlens=bounds, backend=backend)
        for x in (inputs, changed)
    )
    assert torch.equal(before[:, :, others], after[:, :, others])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("backend", FAST)
def test_documents_far_away_may_hold_anything(backend):
    sizes = [128, 128, 128]
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    inputs = torch.randn(3, 1, 2, sum(sizes), 4)
    inputs[:, :, :, 128:256] = torch.nan
    y = leap_attention(*inputs, visible="causal", cu_seqlens=bounds, backend=backend)
    assert y[:, :, :128].isfinite().all()
    assert y[:, :, 256:].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("visible", RULES[:3])
def test_packed_rows_compile_whole_and_serve_other_bounds(backend, visible):
    torch._dynamo.reset()
    compiled = torch.compile(leap_attention, fullgraph=True, backend="aot_eager")
    q, k, v = torch.randn(3, 1, 2, 300, 4, requires_grad=True)
    for bounds in ([0, 10, 300], [0, 150, 151, 300]):
        cu_seqlens = torch.tensor(bounds)
        options = {"visible": visible, "cu_seqlens": cu_seqlens, "backend": backend}
        y, expected = (attend(q, k, v, **options) for attend in (compiled, leap_attention))
        torch.testing.assert_close(y, expected)
        got, wanted = (torch.autograd.grad(x.sum(), (q, k, v)) for x in (y, expected))
        for a, b in zip(got, wanted, strict=True):
            torch.testing.assert_close(a, b)


ROW = torch.zeros(3, 1, 1, 6, 2)
BAD = {
    "floats": (ROW, {"cu_seqlens": torch.tensor([0.0, 6])}, "float32: expected a tensor of int"),
    "a list": (ROW, {"cu_seqlens": [0, 6]}, "cu_seqlens is list"),
    "two axes": (ROW, {"cu_seqlens": torch.tensor([[0, 6]])}, r"\[1, 2\]: expected \[documents"),
    "no document": (ROW, {"cu_seqlens": torch.tensor([0])}, "expected .documents"),
    "late start": (ROW, {"cu_seqlens": torch.tensor([1, 6])}, "rise from 0 to N = 6"),
    "short": (ROW, {"cu_seqlens": torch.tensor([0, 5])}, "rise from 0 to N = 6"),
    "falling": (ROW, {"cu_seqlens": torch.tensor([0, 4, 3, 6])}, "rise from 0 to N = 6"),
    "two rows": (torch.zeros(3, 2, 1, 6, 2), {"cu_seqlens": torch.tensor([0, 6])}, "one row"),
    "a state": (
        ROW,
        {"cu_seqlens": torch.tensor([0, 6]), "return_state": True},
        "no state in common",
    ),
    "past the document": (
        ROW,
        {"cu_seqlens": torch.tensor([0, 2, 6]), "visible": torch.tensor([1, 3, 0, 0, 0, 0])},
        "counts leading keys",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD)
def test_bad_bounds_raise_and_say_what_to_do(name, backend):
    inputs, options, message = BAD[name]
    with pytest.raises((ValueError, TypeError), match=message):
        leap_attention(*inputs, backend=backend, **options)
