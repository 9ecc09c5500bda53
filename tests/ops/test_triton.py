"""The laws of docs/attention.md for Triton's kernels, in float32 and half precision.

On a GPU they run there, and otherwise in Triton's interpreter, which is slow: cases are few and
small. `test_gpu.py` has the large ones.
"""

import functools
import importlib.util
import math
import os
import subprocess
import sys
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from cases import Case, cases, gradients, plain_case, put
from hypothesis import given, settings
from hypothesis import strategies as st

from leapformer import LeaP, LeapState, Visible, leap_attention
from leapformer.bench.peers import quadratic
from leapformer.ops import choose_backend, triton_backend, visible_counts
from leapformer.ops.step import STEPS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="needs Triton, which is not installed"
)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LENGTHS = (100, 65, 63, 2, 1, 0)
"""The simplest case, which is tried first, is the first."""
RULES = ("all", "causal", Visible.chunks(20, 7), Visible.wait_k(2, 3), Visible.causal(9))
few = settings(max_examples=2)


def small(**options):
    """A case of few heads, in float64."""
    return cases(**{"lengths": LENGTHS, "rows": 2} | options)


def agree(case: Case, whole: bool = True, **options) -> None:
    """Output, state and every gradient are the reference's to float32: the error may be a few times
    that of the chunked backend in float32, where the case itself is ill-conditioned."""
    exact = gradients(case, "reference", whole, **options)
    plain = gradients(case.to(torch.float32), "chunked", whole, **options)
    ours = gradients(case.to(torch.float32, DEVICE), "triton", whole, **options)
    for our, other, right in zip(ours, plain, exact, strict=True):
        assert our.shape == right.shape
        error = (our.cpu() - right).norm()
        assert error <= 1e-5 * (1 + right.norm()) + 4 * (other - right).norm()


@pytest.mark.parametrize("visible", RULES)
@pytest.mark.parametrize(("queries", "keys"), [(100, 65), (65, 100)])
def test_1_it_agrees_with_the_reference_forward_and_every_gradient(visible, queries, keys):
    agree(replace(plain_case(1, 1, queries, keys), visible=visible))


@settings(max_examples=8)
@given(case=small(), whole=st.booleans())
def test_1_also_over_generated_cases(case, whole):
    agree(case, whole)


@pytest.mark.parametrize("kind", ["[N]", "[B, N]"])
@pytest.mark.parametrize(("queries", "keys"), [(100, 65), (63, 100)])
def test_1_also_for_counts_of_any_kind(kind, queries, keys):
    case = plain_case(2, 1, queries, keys)
    shape = (queries,) if kind == "[N]" else (2, queries)
    case.visible = torch.randint(0, keys + 1, shape).sort(-1).values
    agree(case)


@pytest.mark.parametrize(("queries", "keys"), [(0, 65), (65, 0), (0, 0), (1, 1)])
def test_1_also_for_no_queries_or_no_keys(queries, keys):
    case = plain_case(1, 1, queries, keys)
    agree(case)
    agree(replace(case, visible=torch.zeros(queries, dtype=torch.long)), whole=False)


@pytest.mark.parametrize("widths", [(33, 20), (64, 128)])
def test_1_also_for_other_widths(widths):
    agree(plain_case(1, 1, 70, 70, *widths))


@pytest.fixture(scope="module")
def rounding():
    """Make the interpreter round as a GPU does: to the nearest bfloat16 (it cuts off), and cutting
    factors of a tf32 product off after ten bits (it keeps all)."""
    if DEVICE == "cuda":
        yield
        return
    from triton.runtime import interpreter

    convert, product = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def nearest(x, given, wanted, mode):
        if (given.name, wanted.name) != ("fp32", "bf16"):
            return convert(x, given, wanted, mode)
        bits = torch.from_numpy(x.copy()).bfloat16().view(torch.int16).numpy()
        return bits.view("uint16")

    def cut(x):
        if x.dtype.name != "fp32":
            return x
        bits = torch.from_numpy(x.data.copy()).view(torch.int32) & ~0x1FFF
        return interpreter.TensorHandle(bits.view(torch.float32).numpy(), x.dtype)

    def tensor_core(self, a, b, added, precision, most):
        if str(precision).endswith("TF32"):
            a, b = cut(a), cut(b)
        return product(self, a, b, added, precision, most)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interpreter, "_convert_float", nearest)
        patch.setattr(interpreter.InterpreterBuilder, "create_dot", tensor_core)
        yield


@pytest.mark.usefixtures("rounding")
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("visible", ["all", "causal"])
@settings(max_examples=1)
@given(seed=st.integers(0, 2**31), length=st.sampled_from((65, 100)))
def test_2_half_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, visible, seed, length):
    torch.manual_seed(seed)
    q, k, v, seeds = torch.randn(4, 1, 2, length, 16, dtype=dtype)
    inputs = [q, k, v, *torch.rand(2, 1, 2, length)]

    def run(attend, convert) -> list[torch.Tensor]:
        leaves = [convert(x).requires_grad_() for x in inputs]
        y = attend(*leaves)
        grads = torch.autograd.grad(y, leaves, seeds.to(y.device, y.dtype))
        return [x.detach().cpu().double() for x in (y, *grads)]

    def ours(*x):
        return leap_attention(*x, visible=visible, backend="triton")

    def plain(*x):
        return quadratic(*x, visible == "causal")

    exact = run(plain, lambda x: x.double())
    torch_error = run(plain, lambda x: x.to(dtype, copy=True))
    for e, t, o in zip(exact, torch_error, run(ours, lambda x: x.clone().to(DEVICE)), strict=True):
        assert o.isfinite().all()
        assert not t.isfinite().all() or (o - e).norm() <= 2 * (t - e).norm()


def test_2_it_stays_finite_where_half_precision_overflows():
    q, k, v = (torch.full((1, 1, 70, 16), 60.0, dtype=torch.float16) for _ in range(3))
    leaves = [x.to(DEVICE).requires_grad_() for x in (q, k, v)]
    assert quadratic(q, k, v, *torch.zeros(2, 1, 1, 70).half(), True).isnan().any()
    y = leap_attention(*leaves, visible="causal", backend="triton")
    torch.testing.assert_close(y.cpu(), v, rtol=2e-3, atol=0)
    assert all(x.isfinite().all() for x in torch.autograd.grad(y.sum(), leaves))


@settings(max_examples=4)
@given(case=small())
def test_3_what_a_query_does_not_see_changes_nothing_bit_for_bit(case):
    (batch, _, queries), keys = case.q.shape[:3], case.k.shape[2]
    counts = visible_counts(case.visible, batch, queries, keys).expand(batch, -1)
    case = case.to(torch.float32)
    before = case.to(torch.float32, DEVICE)("triton").cpu()
    cut = int(torch.randint(0, keys + 1, ()))
    beyond = (torch.arange(keys) >= cut)[:, None]
    case.k = put(case.k, beyond, 7 * torch.randn_like(case.k))
    case.v = put(case.v, beyond, 7 * torch.randn_like(case.v))
    if case.p_k is not None:
        case.p_k = put(case.p_k, beyond[:, 0], torch.rand_like(case.p_k))
    untouched = (counts <= cut)[:, None, :, None].expand(before.shape)
    after = case.to(torch.float32, DEVICE)("triton").cpu()
    assert torch.equal(before[untouched], after[untouched])


@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@few
@given(case=small(lengths=(65, 100)))
def test_3_masked_keys_may_hold_anything(poison, case):
    if case.key_mask is None:
        case.key_mask = torch.rand(case.k.shape[0], case.k.shape[2]) > 0.5
    case = case.to(torch.float32, DEVICE)
    clean = gradients(case, "triton")
    hidden = ~case.key_mask[:, None, :]
    case.k, case.v = (put(x, hidden[..., None], poison) for x in (case.k, case.v))
    case.p_k = None if case.p_k is None else put(case.p_k, hidden, poison)
    for a, b in zip(clean, gradients(case, "triton"), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("queries", [0, 30, 63])
def test_3_keys_that_no_query_sees_may_hold_anything(queries):
    case = replace(plain_case(1, 1, queries, 100), key_mask=None).to(torch.float32, DEVICE)
    clean = gradients(case, "triton", whole=False)
    unseen = (torch.arange(100, device=DEVICE) >= queries)[:, None]
    case.k, case.v = (put(x, unseen, math.nan) for x in (case.k, case.v))
    for a, b in zip(clean, gradients(case, "triton", whole=False), strict=True):
        assert torch.equal(a, b)


def test_3_a_nan_is_seen_by_those_who_see_its_key_and_no_others():
    q, k, v = torch.randn(3, 1, 1, 150, 8, device=DEVICE)
    for spoilt in (q, k, v):
        kept = spoilt[:, :, 110].clone()
        spoilt[:, :, 110] = math.nan
        y = leap_attention(q, k, v, visible="causal", backend="triton")
        spoilt[:, :, 110] = kept
        assert y[:, :, :64].isfinite().all()
        sees = y[:, :, 110:111] if spoilt is q else y[:, :, 110:]
        assert sees.isnan().any(-1).all()


@few
@given(case=small(proportions=True, lengths=(65,)))
def test_4_only_differences_of_proportions_matter(case):
    case = replace(case, state=None, p_q=case.p_q / 2, p_k=case.p_k / 2).to(torch.float32, DEVICE)
    before = case("triton")
    torch.testing.assert_close(case("triton", p_q=case.p_q + 0.4, p_k=case.p_k + 0.4), before)
    flat = case("triton", p_q=torch.zeros_like(case.p_q), p_k=torch.zeros_like(case.p_k))
    torch.testing.assert_close(flat, case("triton", p_q=None, p_k=None))


@few
@given(case=small(lengths=(65, 2)))
def test_5_every_output_is_a_convex_mixture_of_values(case):
    case = replace(case, state=None, eps=1e-6).to(torch.float32, DEVICE)
    constant = case("triton", v=torch.full_like(case.v, 3.0))
    matched = (case("triton", v=torch.ones_like(case.v)) > 0.999)[..., :1]
    torch.testing.assert_close(constant, torch.where(matched, 3.0, constant))
    y, (low, high) = case("triton"), torch.aminmax(case.v, dim=2, keepdim=True)
    assert (((y >= low - 1e-4) & (y <= high + 1e-4)) | ~matched).all()


@pytest.mark.parametrize("visible", ["all", "causal"])
def test_5_a_query_that_matches_nothing_returns_zeros_and_finite_gradients(visible):
    q, k, v = (torch.randn(1, 1, 70, 4, device=DEVICE, requires_grad=True) for _ in range(3))
    p = torch.rand(1, 1, 70, device=DEVICE, requires_grad=True)
    y = leap_attention(-q.abs(), k, v, p, p, visible=visible, backend="triton")
    blind = torch.zeros(70, dtype=torch.long, device=DEVICE)
    sees_none = leap_attention(q, k, v, p, p, visible=blind, backend="triton")
    assert torch.equal(y, torch.zeros_like(y))
    assert torch.equal(sees_none, y)
    for x in torch.autograd.grad((y + sees_none).sum(), (q, k, v, p)):
        assert x.isfinite().all()


@pytest.mark.parametrize("sizes", [(1, 1, 98), (63, 2, 35), (50, 50)])
def test_6_pieces_of_any_size_give_what_one_call_gives(sizes):
    case = plain_case(2, 1, 100, 100).to(torch.float32, DEVICE)
    whole, last = case("triton", return_state=True)
    state, pieces = case.state, []
    for start, end in pairwise(torch.tensor([0, *sizes]).cumsum(0).tolist()):
        names = ("q", "k", "v", "p_q", "p_k")
        part = {n: getattr(case, n)[:, :, start:end] for n in names}
        mask = case.key_mask[:, start:end]
        y, state = case("triton", return_state=True, state=state, key_mask=mask, **part)
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 2), whole)
    torch.testing.assert_close(state.sums, last.sums)


@pytest.mark.parametrize("visible", ["causal", Visible.wait_k(2, 3)])
def test_8_a_sequence_never_depends_on_its_batch(visible):
    case = replace(plain_case(2, 1, 100, 65), visible=visible).to(torch.float32, DEVICE)
    before = case("triton")
    for name in ("q", "k", "v"):
        getattr(case, name)[1:] = torch.randn_like(getattr(case, name)[1:])
    assert torch.equal(case("triton")[0], before[0])


def packed(sizes: list[int], visible, proportions: bool = True) -> tuple[Case, torch.Tensor]:
    case = plain_case(1, 1, sum(sizes), sum(sizes))
    if visible is None:
        visible = torch.cat([torch.randint(0, n + 1, (n,)).sort().values for n in sizes])
    case = replace(case, state=None, visible=visible)
    if not proportions:
        case = replace(case, p_q=None, p_k=None)
    return case, torch.tensor([0, *sizes]).cumsum(0)


@pytest.mark.parametrize("visible", [*RULES, None])
@pytest.mark.parametrize("sizes", [[0, 40, 1, 33, 0], [64, 32, 5]])
def test_packed_documents_agree_with_the_reference(visible, sizes):
    case, bounds = packed(sizes, visible, sizes[0] == 0)
    agree(case, whole=False, cu_seqlens=bounds)


@pytest.mark.parametrize("visible", RULES)
def test_one_document_never_changes_another_bit_for_bit(visible):
    case, bounds = packed([30, 40, 30], visible)
    case = case.to(torch.float32, DEVICE)
    before = case("triton", cu_seqlens=bounds)
    case.k[:, :, 30:70] = torch.randn_like(case.k[:, :, 30:70])
    case.v[:, :, 30:70] = math.nan
    after = case("triton", cu_seqlens=bounds)
    assert torch.equal(before[:, :, :30], after[:, :, :30])
    assert torch.equal(before[:, :, 70:], after[:, :, 70:])
    assert not torch.equal(before, after)


@pytest.mark.parametrize("whole", [False, True])
@few
@given(case=small(lengths=(65,)))
def test_nothing_is_read_before_it_is_written(whole, case):
    case = case.to(torch.float32, DEVICE)
    clean = gradients(case, "triton", whole)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        poisoned = gradients(case, "triton", whole)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)


def test_any_memory_layout_serves():
    case = replace(plain_case(1, 2, 40, 40), key_mask=None).to(torch.float32, DEVICE)
    expected = gradients(case, "triton")
    names = ("q", "k", "v")
    strided = {n: torch.stack([getattr(case, n)] * 2, -1)[..., 0] for n in names}
    turned = {n: getattr(case, n).mT.contiguous().mT for n in names}
    for other in (strided, turned):
        assert other["q"].stride(-1) != 1
        leaves = {n: x.requires_grad_() for n, x in other.items()}
        y, after = replace(case, **leaves)("triton", return_state=True)
        torch.manual_seed(1)
        seeds = [torch.randn(x.shape, dtype=torch.float64).to(x) for x in (y, after.sums)]
        seeds[0] = seeds[0].mT.contiguous().mT
        grads = torch.autograd.grad((y, after.sums), list(leaves.values()), seeds)
        for a, b in zip((y, after.sums, *grads), expected, strict=False):
            assert torch.equal(a, b)


@pytest.mark.parametrize("visible", ["causal", torch.arange(70).expand(2, -1).contiguous()])
def test_it_compiles_whole_forward_and_backward(visible):
    torch._dynamo.reset()
    case = replace(plain_case(2, 1, 70, 70), state=None).to(torch.float32, DEVICE)
    mask = case.key_mask

    def attend(*x):
        where = visible.to(DEVICE) if isinstance(visible, torch.Tensor) else visible
        return 2 * leap_attention(*x, visible=where, key_mask=mask, backend="triton")

    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    leaves = [x.requires_grad_() for x in case.leaves()]
    for a, b in zip(
        *((y := f(*leaves), *torch.autograd.grad(y.sum(), leaves)) for f in (attend, compiled)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_a_second_and_a_forward_mode_derivative_are_refused():
    case = replace(plain_case(1, 1, 5, 5), key_mask=None, state=None).to(torch.float32, DEVICE)
    leaves = [x.requires_grad_() for x in case.leaves()]
    y = leap_attention(*leaves, visible="causal", backend="triton")
    (grad,) = torch.autograd.grad(y.square().sum(), leaves[0], create_graph=True)
    with pytest.raises(RuntimeError, match="no second derivative in its triton backend"):
        grad.sum().backward()
    q, *rest = [x.detach() for x in leaves]
    with pytest.raises(RuntimeError, match="no forward-mode derivative in its triton backend"):
        torch.func.jvp(lambda x: leap_attention(x, *rest, backend="triton"), (q,), (q,))


def test_autocast_runs_in_half_with_sums_in_float32():
    case = replace(plain_case(1, 2, 40, 40, 16, 16), state=None).to(torch.float32, DEVICE).tracked()
    with torch.autocast(DEVICE, torch.bfloat16):
        y, state = case("triton", return_state=True)
        y.float().sum().backward()
    assert (y.dtype, state.sums.dtype) == (torch.bfloat16, torch.float32)
    assert case.q.grad.dtype == torch.float32
    half = case.to(torch.bfloat16, DEVICE)
    expected, after = half("reference", return_state=True, p_q=case.p_q, p_k=case.p_k)
    torch.testing.assert_close(y, expected, rtol=2e-2, atol=2e-2)
    assert (state.sums - after.sums).norm() <= 5e-4 * after.sums.norm()


SHAPES = [(5, 7, None), (32, 40, None), (16, 16, 1)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("feature_map", ["relu", "elu"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("width", "values", "hidden"), SHAPES)
def test_a_step_of_decoding_is_one_launch_also_with_leap(
    dtype, feature_map, masked, width, values, hidden, monkeypatch
):
    launched = []
    spy = functools.partial(note, launched, STEPS["triton"])
    monkeypatch.setitem(STEPS, "triton", spy)
    q, k = torch.randn(2, 2, 1, 3, width, device=DEVICE, dtype=dtype).transpose(2, 3)
    v = torch.randn(2, 3, 1, values, device=DEVICE, dtype=dtype)
    leap_q, leap_k = (LeaP(width, hidden).to(DEVICE, dtype) for _ in range(2))
    key_mask = torch.tensor([[True], [False]], device=DEVICE) if masked else None
    with torch.no_grad():
        p_q = leap_q.float()(q.float())
        p_k = leap_k.float()(k.float())
        leap_q, leap_k = leap_q.to(dtype), leap_k.to(dtype)
        for places, rows in ((None, 1), ((p_q, p_k), 2), ((leap_q, leap_k), 2)):
            sums = torch.rand(2, 3, rows * width, values + 1, device=DEVICE)
            state, kept = LeapState(sums), sums.clone()
            given_ = (p_q, p_k) if rows == 2 else (None, None)
            expected, after = state.step_unchecked(q, k, v, *given_, key_mask, 1e-6, feature_map)
            if masked:
                k[1], v[1] = torch.nan, torch.nan
            y, found = leap_attention(
                *(q, k, v, *(places or ())),
                visible="causal",
                key_mask=key_mask,
                state=state,
                return_state=True,
                feature_map=feature_map,
                backend="triton",
            )
            torch.testing.assert_close(y, expected)
            torch.testing.assert_close(found.sums, after.sums)
            assert torch.equal(sums, kept)
            assert len(launched) == 1
            assert bool(launched.pop()[8]) == isinstance((places or (None,))[0], LeaP)


def note(calls: list, function, *arguments):
    """Call the function, and keep with what."""
    calls.append(arguments)
    return function(*arguments)


ONE = torch.zeros(3, 1, 1, 6, 2)
REFUSED = {
    "float64": (
        ONE.double(),
        "takes float32, float16 and bfloat16, and the inputs are torch.float64",
    ),
    "wide heads": (torch.zeros(3, 1, 1, 2, 129), "takes heads up to 128 wide, and these are 129"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_it_does_not_serve_is_refused_and_says_what_to_do(name):
    inputs, message = REFUSED[name]
    with pytest.raises(ValueError, match=f'{message}: use backend="chunked"'):
        leap_attention(*inputs.to(DEVICE), backend="triton")


def test_without_triton_it_says_so(monkeypatch):
    monkeypatch.setattr(triton_backend, "_installed", lambda: False)
    with pytest.raises(ValueError, match=r"not installed \(pip install triton\): use .*chunked"):
        leap_attention(*ONE.to(DEVICE), backend="triton")


def test_on_a_cpu_outside_the_interpreter_it_says_so():
    program = """
import torch, leapformer
try:
    leapformer.leap_attention(*torch.zeros(3, 1, 1, 6, 2), backend="triton")
except ValueError as error:
    print(error)
"""
    plain = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, env=plain
    )
    assert "on a CPU only in Triton's interpreter (TRITON_INTERPRET=1" in done.stdout, done.stderr


def test_auto_takes_it_on_a_gpu_that_it_serves_and_never_on_a_cpu(monkeypatch):
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(triton_backend, "_capable", lambda index: True)
    monkeypatch.setattr(triton_backend, "_roomy", lambda index: True)
    assert choose_backend("auto", gpu) == "triton"
    assert choose_backend("auto", gpu, torch.bfloat16, 128) == "triton"
    assert choose_backend("auto", gpu, torch.float64, 64) == "chunked"
    assert choose_backend("auto", gpu, torch.float32, 129) == "chunked"
    assert choose_backend("auto", torch.device("cpu")) != "triton"
    assert choose_backend("auto", torch.device("meta")) == "chunked"
    monkeypatch.setattr(triton_backend, "_roomy", lambda index: False)
    assert choose_backend("auto", gpu, torch.bfloat16, 64) == "triton"
    assert choose_backend("auto", gpu, torch.bfloat16, 65) == "chunked"
    monkeypatch.setattr(triton_backend, "_installed", lambda: False)
    assert choose_backend("auto", gpu) == "chunked"
    monkeypatch.undo()
    monkeypatch.setattr(triton_backend, "_capable", lambda index: False)
    assert choose_backend("auto", gpu) == "chunked"
    with pytest.raises(ValueError, match=r"compute capability 8\.0 or later: use .*chunked"):
        choose_backend("triton", gpu)


def test_the_compiler_takes_every_kernel_as_it_is_launched(tmp_path):
    """What the interpreter lets pass, types that change in a loop, say, the compiler does not. It
    needs no GPU to compile for one."""
    program = Path(__file__).with_name("triton_compile.py")
    plain = {name: x for name, x in os.environ.items() if name != "TRITON_INTERPRET"}
    plain["TRITON_CACHE_DIR"] = str(tmp_path)
    done = subprocess.run([sys.executable, program], capture_output=True, text=True, env=plain)
    assert done.returncode == 0, done.stderr
    kernels = {"_sum_chunks", "_scan", "_forward", "_backward_queries", "_backward_keys", "_step"}
    assert set(done.stdout.split()) == kernels
