"""The laws of the attention (docs/attention.md), over generated cases, for every backend."""

import math
import subprocess
import sys
from itertools import pairwise

import pytest
import torch
from cases import BACKENDS, FAST, LENGTHS, cases, gradients, put
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from leapformer import LeapState, Visible, leap_attention
from leapformer.bench.peers import quadratic
from leapformer.ops import visible_counts
from leapformer.timing import peak_bytes


def close(a: Tensor, b: Tensor, tolerance: float = 1e-9) -> bool:
    return a.shape == b.shape and bool(((a - b).abs() <= tolerance * (1 + b.abs())).all())


def test_reference_is_the_formula_written_with_loops():
    B, H, N, S, D, E = 2, 2, 4, 5, 3, 2
    q, k, v = torch.randn(B, H, N, D), torch.randn(B, H, S, D), torch.randn(B, H, S, E)
    p_q, p_k, mask = torch.rand(B, H, N), torch.rand(B, H, S), torch.rand(B, S) > 0.3
    counts = [1, 1, 3, 5]
    expected = torch.zeros(B, H, N, E)
    for b, h, i in torch.cartesian_prod(*(torch.arange(n) for n in (B, H, N))).tolist():
        numerator, total = torch.zeros(E), 0.0
        for j in range(counts[i]):
            if mask[b, j]:
                match = float(q[b, h, i].relu() @ k[b, h, j].relu())
                w = match * math.cos(math.pi / 2 * float(p_q[b, h, i] - p_k[b, h, j]))
                numerator, total = numerator + w * v[b, h, j], total + w
        expected[b, h, i] = numerator / max(total, 1e-6)
    y = leap_attention(
        q, k, v, p_q, p_k, visible=torch.tensor(counts), key_mask=mask, backend="reference"
    )
    assert close(y, expected, 1e-5)


@pytest.mark.parametrize("backend", FAST)
@given(case=cases())
def test_1_backends_agree_with_the_reference_forward_and_every_gradient(backend, case):
    for ours, reference in zip(gradients(case, backend), gradients(case, "reference"), strict=True):
        assert close(ours, reference)
    assert close(case(backend), case("reference"))


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("visible", ["causal", Visible.wait_k(0, 2)])
@given(case=cases(lengths=(0, 1)))
def test_1_also_for_one_token_or_none(backend, visible, case):
    case.visible = visible
    for ours, reference in zip(gradients(case, backend), gradients(case, "reference"), strict=True):
        assert close(ours, reference)


@pytest.mark.parametrize("backend", FAST)
@settings(max_examples=5)
@given(case=cases(lengths=(1000,)))
def test_1_also_at_a_thousand(backend, case):
    for ours, reference in zip(gradients(case, backend), gradients(case, "reference"), strict=True):
        assert close(ours, reference, 1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("visible", ["all", "causal", Visible.wait_k(1, 2)])
def test_1_gradients_are_those_of_finite_differences(backend, visible):
    q, k = torch.rand(2, 1, 2, 5, 3, dtype=torch.float64) + 0.1
    v = torch.randn(1, 2, 5, 2, dtype=torch.float64)
    p_q, p_k = torch.rand(2, 1, 2, 5, dtype=torch.float64) * 0.9 + 0.05
    sums = torch.rand(1, 2, 6, 3, dtype=torch.float64)

    def attend(q, k, v, p_q, p_k, sums):
        y, state = leap_attention(
            q,
            k,
            v,
            p_q,
            p_k,
            visible=visible,
            state=LeapState(sums),
            return_state=True,
            backend=backend,
        )
        return y, state.sums

    inputs = [x.clone().requires_grad_() for x in (q, k, v, p_q, p_k, sums)]
    assert torch.autograd.gradcheck(attend, inputs)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("visible", ["all", "causal"])
@given(seed=st.integers(0, 2**31), length=st.sampled_from((65, 200, 500)))
def test_2_half_precision_errs_at_most_twice_as_much_as_plain_torch(
    backend, dtype, visible, seed, length
):
    torch.manual_seed(seed)
    q, k, v, seeds = torch.randn(4, 2, 2, length, 16, dtype=dtype)
    p_q, p_k = torch.rand(2, 2, 2, length)
    inputs = [q, k, v, p_q, p_k]

    def run(attend, convert) -> list[Tensor]:
        leaves = [convert(x).requires_grad_() for x in inputs]
        y = attend(*leaves)
        grads = torch.autograd.grad(y, leaves, seeds.to(y.dtype))
        return [x.detach().double() for x in (y, *grads)]

    def ours(*x: Tensor) -> Tensor:
        return leap_attention(*x, visible=visible, backend=backend)

    def plain(*x: Tensor) -> Tensor:
        return quadratic(*x, visible == "causal")

    exact = run(plain, lambda x: x.double())
    torch_error = run(plain, lambda x: x.to(dtype, copy=True))
    our_error = run(ours, lambda x: x.clone())
    for e, t, o in zip(exact, torch_error, our_error, strict=True):
        assert o.isfinite().all()
        assert not t.isfinite().all() or (o - e).norm() <= 2 * (t - e).norm()


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
def test_3_what_a_query_does_not_see_changes_nothing_bit_for_bit(backend, case):
    (batch, _, queries), keys = case.q.shape[:3], case.k.shape[2]
    counts = visible_counts(case.visible, batch, queries, keys).expand(batch, -1)
    before = case(backend)
    cut = int(torch.randint(0, keys + 1, ()))
    beyond = (torch.arange(keys) >= cut)[:, None]
    case.k = put(case.k, beyond, 7 * torch.randn_like(case.k))
    case.v = put(case.v, beyond, 7 * torch.randn_like(case.v))
    if case.p_k is not None:
        case.p_k = put(case.p_k, beyond[:, 0], torch.rand_like(case.p_k))
    untouched = (counts <= cut)[:, None, :, None].expand(before.shape)
    assert torch.equal(before[untouched], case(backend)[untouched])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
@given(case=cases())
def test_3_masked_keys_may_hold_anything(backend, poison, case):
    if case.key_mask is None:
        case.key_mask = torch.rand(case.k.shape[0], case.k.shape[2]) > 0.5
    clean = gradients(case, backend)
    hidden = ~case.key_mask[:, None, :]
    case.k, case.v = (put(x, hidden[..., None], poison) for x in (case.k, case.v))
    case.p_k = None if case.p_k is None else put(case.p_k, hidden, poison)
    for a, b in zip(clean, gradients(case, backend), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(lengths=LENGTHS[1:]))
def test_3_keys_that_no_query_sees_may_hold_anything(backend, case):
    (batch, _, queries), keys = case.q.shape[:3], case.k.shape[2]
    counts = visible_counts(case.visible, batch, queries, keys).expand(batch, -1)
    clean = case(backend)
    unseen = (torch.arange(keys) >= counts[:, -1:])[:, None, :, None]
    case.k, case.v = (put(x, unseen, math.nan) for x in (case.k, case.v))
    assert torch.equal(clean, case(backend))


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(proportions=True))
def test_4_only_differences_of_proportions_matter(backend, case):
    case.state = None
    case.p_q, case.p_k = case.p_q / 2, case.p_k / 2
    before = case(backend)
    shift = float(torch.rand(())) / 2
    case.p_q, case.p_k = case.p_q + shift, case.p_k + shift
    assert close(case(backend), before)


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(proportions=True))
def test_4_equal_proportions_are_plain_linear_attention(backend, case):
    case.state = None
    case.p_q, case.p_k = torch.zeros_like(case.p_q), torch.zeros_like(case.p_k)
    assert close(case(backend), case(backend, p_q=None, p_k=None))


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases())
def test_5_every_output_is_a_convex_mixture_of_values(backend, case):
    case.state, case.eps = None, 1e-6
    constant = case(backend, v=torch.full_like(case.v, 3.0))
    matched = (case(backend, v=torch.ones_like(case.v)) > 0.999)[..., :1]
    assert close(constant, torch.where(matched, 3.0, constant))
    if case.v.numel():
        lowest, highest = case.v.amin(2, keepdim=True), case.v.amax(2, keepdim=True)
        y = case(backend)
        assert (((y >= lowest - 1e-9) & (y <= highest + 1e-9)) | ~matched).all()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("visible", ["all", "causal"])
def test_5_a_query_that_matches_nothing_returns_zeros_and_finite_gradients(backend, visible):
    q, k, v = (torch.randn(1, 2, 70, 4, requires_grad=True) for _ in range(3))
    p = torch.rand(1, 2, 70, requires_grad=True)
    never = -q.abs()
    y = leap_attention(never, k, v, p, p, visible=visible, backend=backend)
    assert torch.equal(y, torch.zeros_like(y))
    sees_none = leap_attention(
        q, k, v, p, p, visible=torch.zeros(70, dtype=torch.long), backend=backend
    )
    assert torch.equal(sees_none, torch.zeros_like(y))
    for x in torch.autograd.grad((y + sees_none).sum(), (q, k, v, p)):
        assert x.isfinite().all()


@pytest.mark.parametrize("backend", BACKENDS)
@given(data=st.data())
def test_6_pieces_of_any_size_give_what_one_call_gives(backend, data):
    case = data.draw(cases(lengths=(1, 2, 63, 65, 129), visible="causal"))
    length = case.q.shape[2]
    case.k, case.v = (x[:, :, :length] for x in (case.k, case.v))
    if case.k.shape[2] < length:
        case.k, case.v = (
            torch.randn(*x.shape[:2], length, x.shape[-1], dtype=x.dtype) for x in (case.k, case.v)
        )
    case.p_k = None if case.p_q is None else torch.rand_like(case.p_q)
    case.key_mask = torch.rand(case.q.shape[0], length) > 0.2
    whole, last = case(backend, return_state=True)

    sizes = st.lists(st.integers(1, 70), max_size=length)
    cuts = [0]
    for size in data.draw(sizes) + [1] * length:
        if cuts[-1] < length:
            cuts.append(min(length, cuts[-1] + size))
    state, pieces = case.state, []
    for start, end in pairwise(cuts):
        part = slice(start, end)
        names = ("q", "k", "v", "p_q", "p_k")
        given_ = {n: getattr(case, n) for n in names}
        y, state = case(
            backend,
            return_state=True,
            state=state,
            key_mask=case.key_mask[:, part],
            **{n: None if x is None else x[:, :, part] for n, x in given_.items()},
        )
        pieces.append(y)
    assert close(torch.cat(pieces, 2), whole)
    assert close(state.sums, last.sums)


@given(case=cases(visible="all"))
def test_6_extending_and_reading_a_state_is_attending(case):
    empty = LeapState.empty(
        *case.q.shape[:2],
        case.q.shape[-1],
        case.v.shape[-1],
        proportions=case.p_q is not None,
        dtype=torch.float64,
    )
    state = (case.state or empty).extend(
        case.k, case.v, case.p_k, key_mask=case.key_mask, feature_map=case.feature_map
    )
    y = state.read(case.q, case.p_q, eps=case.eps, feature_map=case.feature_map)
    expected, last = case("reference", return_state=True)
    assert close(y, expected)
    assert close(state.sums, last.sums)


@pytest.mark.parametrize("backend", FAST)
@given(chunk=st.integers(1, 40), lookahead=st.integers(0, 20), length=st.integers(1, 150))
def test_6_a_streaming_encoder_is_the_chunked_visibility(backend, chunk, lookahead, length):
    torch.manual_seed(length)
    q, k, v = torch.randn(3, 1, 2, length, 4, dtype=torch.float64)
    p_q, p_k = torch.rand(2, 1, 2, length, dtype=torch.float64)
    rule = Visible.chunks(chunk, lookahead)
    whole = leap_attention(q, k, v, p_q, p_k, visible=rule, backend=backend)
    state, heard, pieces = LeapState.empty(1, 2, 4, 4, dtype=torch.float64), 0, []
    for start in range(0, length, chunk):
        end = min(length, start + chunk)
        until = min(length, start + chunk + lookahead)
        new = slice(heard, until)
        state, heard = state.extend(k[:, :, new], v[:, :, new], p_k[:, :, new]), until
        pieces.append(state.read(q[:, :, start:end], p_q[:, :, start:end]))
    assert close(torch.cat(pieces, 2), whole)


@pytest.mark.parametrize("backend", FAST)
@given(k=st.integers(0, 9), ratio=st.integers(1, 9), queries=st.integers(1, 40))
def test_6_a_simultaneous_translator_is_the_wait_k_visibility(backend, k, ratio, queries):
    keys = 100
    torch.manual_seed(queries)
    q = torch.randn(1, 2, queries, 4, dtype=torch.float64)
    ks, vs = torch.randn(2, 1, 2, keys, 4, dtype=torch.float64)
    p_q, p_k = (torch.rand(1, 2, n, dtype=torch.float64) for n in (queries, keys))
    rule = Visible.wait_k(k, ratio)
    whole = leap_attention(q, ks, vs, p_q, p_k, visible=rule, backend=backend)
    state, heard = LeapState.empty(1, 2, 4, 4, dtype=torch.float64), 0
    for i in range(queries):
        new = slice(heard, rule.count(i, keys))
        state, heard = state.extend(ks[:, :, new], vs[:, :, new], p_k[:, :, new]), new.stop
        assert close(state.read(q[:, :, i : i + 1], p_q[:, :, i : i + 1]), whole[:, :, i : i + 1])


@pytest.mark.parametrize("backend", FAST)
def test_7_training_memory_is_linear_and_streaming_memory_constant(backend):
    def training(length: int) -> int:
        q, k, v = (torch.randn(1, 2, length, 16, requires_grad=True) for _ in range(3))
        p = torch.rand(1, 2, length, requires_grad=True)

        def step() -> None:
            y = leap_attention(q, k, v, p, p, visible="causal", backend=backend)
            torch.autograd.grad(y.sum(), (q, k, v, p))

        return peak_bytes(step)

    def streaming(length: int) -> int:
        q, k, v = torch.randn(3, 1, 2, 64, 16)
        p = torch.rand(1, 2, 64)

        @torch.inference_mode()
        def run() -> None:
            state = LeapState.empty(1, 2, 16, 16)
            for _ in range(length // 64):
                _, state = leap_attention(
                    q,
                    k,
                    v,
                    p,
                    p,
                    visible="causal",
                    state=state,
                    return_state=True,
                    backend=backend,
                )

        return peak_bytes(run)

    small, double, eightfold = (training(n) for n in (2048, 4096, 16384))
    assert double < 2.05 * small
    assert eightfold < 8.2 * small
    assert streaming(4096) == streaming(512)


@pytest.mark.parametrize("backend", FAST)
def test_7_a_hundred_thousand_tokens_train_in_under_four_gigabytes(backend):
    program = """
import resource, sys, torch
from leapformer import leap_attention
q, k, v = (torch.randn(1, 8, 131_072, 64, requires_grad=True) for _ in range(3))
p_q, p_k = (torch.rand(1, 8, 131_072, requires_grad=True) for _ in range(2))
y = leap_attention(q, k, v, p_q, p_k, visible="causal", backend=sys.argv[1])
y.backward(torch.ones(1, 8, 131_072, 64))
assert all(x.grad.isfinite().all() for x in (q, k, v, p_q, p_k))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""
    done = subprocess.run([sys.executable, "-c", program, backend], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    kibibytes = int(done.stdout) if sys.platform == "linux" else int(done.stdout) // 1024
    assert kibibytes * 1024 < 4e9


@pytest.mark.parametrize("backend", BACKENDS)
@given(case=cases(lengths=LENGTHS[1:]))
def test_8_a_sequence_never_depends_on_its_batch(backend, case):
    before = case(backend)
    for name in ("q", "k", "v"):
        getattr(case, name)[1:] = torch.randn_like(getattr(case, name)[1:])
    assert torch.equal(case(backend)[0], before[0])
