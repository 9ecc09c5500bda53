"""The native kernel where the laws' small cases do not reach: widths, threads, memory, choice."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import Case, cases, native
from hypothesis import given, settings
from hypothesis import strategies as st

from leapformer import LeapState, Visible, leap_attention
from leapformer.ops import FEATURE_MAPS, choose_backend
from leapformer.ops import native as fused
from leapformer.timing import threads

pytestmark = native
WIDTHS = [(16, 16), (20, 33), (32, 32), (33, 20), (64, 64), (80, 24), (128, 128)]


def inputs(length, width, values, dtype, heads=2, proportions=True):
    """q, k, v laid out as a layer's heads are, and proportions."""
    shapes = (width, width, values)
    x = [torch.randn(1, length, heads, n, dtype=dtype).transpose(1, 2) for n in shapes]
    return x + [torch.rand(1, heads, length, dtype=dtype) for _ in range(2 * proportions)]


def results(tensors, backend, **options):
    """Output and every gradient."""
    leaves = [x.detach().clone().requires_grad_() for x in tensors]
    y = leap_attention(*leaves, backend=backend, **options)
    torch.manual_seed(1)
    return [y, *torch.autograd.grad(y, leaves, torch.randn(y.shape).to(y.dtype))]


@pytest.mark.parametrize("visible", ["all", "causal", Visible.chunks(30, 7), Visible.wait_k(2, 3)])
@pytest.mark.parametrize("widths", WIDTHS)
@pytest.mark.parametrize("proportions", [True, False])
def test_every_width_agrees_with_the_reference(visible, widths, proportions):
    tensors = inputs(150, *widths, torch.float64, proportions=proportions)
    options = {"visible": visible, "key_mask": torch.rand(1, 150) > 0.2}
    expected = results(tensors, "reference", **options)
    for a, b in zip(results(tensors, "native", **options), expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    single = [x.float() for x in tensors]
    for a, b in zip(results(single, "native", **options), expected, strict=True):
        assert (a - b).norm() <= 2e-6 * b.norm()


def poisoned(case: Case, backend: str):
    """Every gradient, with NaN in all memory that is not written yet."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        return gradients(case, backend)
    finally:
        torch.use_deterministic_algorithms(False)


def gradients(case: Case, backend: str):
    case = case.tracked()
    y, after = case(backend, return_state=True)
    torch.manual_seed(1)
    seeds = [torch.randn(x.shape, dtype=x.dtype) for x in (y, after.sums)]
    grads = torch.autograd.grad((y, after.sums), case.leaves(), seeds, materialize_grads=True)
    return [y, after.sums, *grads, case(backend)]


@settings(max_examples=50)
@given(case=cases())
def test_nothing_is_read_before_it_is_written(case):
    for a, b in zip(gradients(case, "native"), poisoned(case, "native"), strict=True):
        assert torch.equal(a, b)


def test_poisoned_memory_reaches_the_kernel():
    case = Case(*torch.randn(3, 1, 1, 9, 4), None, None, "all", None, None, "relu", 1e-6)
    seen = []

    def spy(call, backward):
        seen.append(call.poison)
        return 0

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fused, "kernel", lambda: fused.Kernel(Path(), spy, None))
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            y = case("native")
        finally:
            torch.use_deterministic_algorithms(False)
    assert seen == [1]
    assert y.isnan().all()


@settings(max_examples=15)
@given(case=cases(lengths=(1200, 1500)), several=st.integers(2, 5))
def test_a_sequence_shared_by_threads_gives_the_same_within_rounding(case, several):
    """Fewer heads than threads: each sequence is cut into pieces whose states are found first."""
    names = ("q", "k", "v", "p_q", "p_k")
    for name in names:
        x = getattr(case, name)
        setattr(case, name, None if x is None else x[:1, :1])
    case.state = None
    case.key_mask = None if case.key_mask is None else case.key_mask[:1]
    if isinstance(case.visible, torch.Tensor) and case.visible.dim() == 2:
        case.visible = case.visible[:1]
    alone = gradients(case, "native")
    with threads(several):
        together = gradients(case, "native")
    for a, b in zip(alone, together, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


def test_heads_shared_by_threads_give_the_same_bit_for_bit():
    tensors = inputs(300, 16, 16, torch.float32, heads=4)
    alone = results(tensors, "native", visible="causal")
    with threads(2):
        together = results(tensors, "native", visible="causal")
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_any_memory_layout_serves(dtype):
    q, k, v, p_q, p_k = inputs(40, 12, 12, dtype)
    expected = results([x.contiguous() for x in (q, k, v, p_q, p_k)], "native")
    wide = [torch.stack([x, x], -1)[..., 0] for x in (q, k, v)]
    turned = [x.mT.contiguous().mT for x in (q, k, v)]
    for other in (wide, turned):
        assert other[0].stride(-1) != 1
        leaves = [x.detach().requires_grad_() for x in (*other, p_q, p_k)]
        y = leap_attention(*leaves, backend="native")
        torch.manual_seed(1)
        grads = torch.autograd.grad(y, leaves, torch.randn(y.shape).to(dtype))
        for a, b in zip((y, *grads), expected, strict=True):
            assert torch.equal(a, b)


def test_a_nan_is_seen_by_those_who_see_its_key_and_no_others():
    q, k, v, p_q, p_k = inputs(200, 8, 8, torch.float32)
    for x in (k, v):
        spoilt = [y.clone() for y in (q, k, v)]
        spoilt[1 if x is k else 2][:, :, 150] = torch.nan
        y = leap_attention(*spoilt, p_q, p_k, visible="causal", backend="native")
        assert y[:, :, :128].isfinite().all()
        assert y[:, :, 150:].isnan().any(-1).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_elu_of_any_number_is_exact(dtype):
    x = torch.cat([torch.linspace(-110, 5, 400), torch.tensor([-1e4, -0.0, 0.0, 1e4])]).to(dtype)
    state, none = torch.ones(1, 1, 1, 2, dtype=dtype), torch.zeros(1, 1, 0, 1, dtype=dtype)
    options = {"state": LeapState(state), "feature_map": "elu", "eps": 10001.0}
    y = leap_attention(x[None, None, :, None], none, none, backend="native", **options)
    x = x.double()
    expected = torch.where(x > 0, x + 1, x.exp()) / 10001
    rtol = 4 * torch.finfo(dtype).eps
    torch.testing.assert_close(y.flatten().double(), expected, rtol=rtol, atol=1e-40)


def test_every_feature_map_is_fused():
    assert fused.FEATURES.keys() == FEATURE_MAPS.keys()


def test_auto_takes_the_kernel_where_it_is_built_and_only_on_the_cpu(monkeypatch):
    cpu, meta = torch.device("cpu"), torch.device("meta")
    fused.kernel()
    assert choose_backend("auto", cpu) == "native"
    assert choose_backend("auto", meta) == "chunked"
    monkeypatch.setattr(fused, "_found", lambda: None)
    assert choose_backend("auto", cpu) == "chunked"


def test_elsewhere_than_on_the_cpu_it_is_refused():
    with pytest.raises(ValueError, match=r"runs on the CPU .* on cuda:0: use .*chunked"):
        choose_backend("native", torch.device("cuda:0"))


def test_the_first_call_loads_no_compiler():
    program = """
import sys, torch, leapformer
leapformer.leap_attention(*torch.rand(3, 1, 2, 70, 8), visible="causal")
print([name for name in ("torch.utils.cpp_extension", "setuptools") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
