"""The laws of docs/attention.md on a real GPU, at lengths that matter: `make gpu`.

`test_triton.py` has the same laws over generated cases; it too runs on the GPU where there is one.
"""

import pytest
import torch
from cases import gradients, plain_case

from leapformer import LeaP, LeapState, Visible, leap_attention
from leapformer.bench.peers import quadratic
from leapformer.ops import choose_backend
from leapformer.timing import peak_bytes

pytestmark = pytest.mark.gpu
GPU = "cuda"
RULES = ("all", "causal", Visible.chunks(100, 30), Visible.wait_k(3, 2))
WIDTHS = (32, 64, 128)


def inputs(length: int, width: int, dtype: torch.dtype = torch.float32, heads: int = 4):
    q, k, v = (torch.randn(2, length, heads, width, device=GPU).transpose(1, 2) for _ in range(3))
    p_q, p_k = torch.rand(2, 2, heads, length, device=GPU)
    return [x.to(dtype).requires_grad_() for x in (q, k, v)] + [
        p.requires_grad_() for p in (p_q, p_k)
    ]


def both(attend, leaves, dtype: torch.dtype | None = None):
    """Output and every gradient, in float64."""
    leaves = [x.detach().to(dtype or x.dtype).requires_grad_() for x in leaves]
    y = attend(*leaves)
    torch.manual_seed(1)
    seed = torch.randn(y.shape, device=GPU, dtype=torch.float16).to(y.dtype)
    return [x.detach().double() for x in (y, *torch.autograd.grad(y, leaves, seed))]


@pytest.mark.parametrize("visible", [*RULES, "[N]", "[B, N]"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", [1000, 4096])
def test_it_agrees_with_the_reference(visible, width, length):
    case = plain_case(1, 2, length, length, width, width).to(torch.float64, GPU)
    if visible in ("[N]", "[B, N]"):
        shape = (length,) if visible == "[N]" else (1, length)
        visible = torch.randint(0, length + 1, shape).sort(-1).values.to(GPU)
    case.visible = visible
    exact = gradients(case, "reference")
    single = case.to(torch.float32, GPU)
    plain = gradients(single, "chunked")
    for ours, torchs, right in zip(gradients(single, "triton"), plain, exact, strict=True):
        error = (ours - right).norm()
        assert error <= 1e-5 * (1 + right.norm()) + 4 * (torchs - right).norm()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("visible", ["all", "causal"])
@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("length", [300, 4096])
def test_half_precision_errs_at_most_twice_as_much_as_plain_torch(dtype, visible, width, length):
    leaves = inputs(length, width, dtype, heads=1)

    def plain(*x):
        return quadratic(*x, visible == "causal")

    def attend(*x):
        return leap_attention(*x, visible=visible, backend="triton")

    exact = both(plain, leaves, torch.float64)
    torchs, ours = both(plain, leaves, dtype), both(attend, leaves)
    for e, t, o in zip(exact, torchs, ours, strict=True):
        assert o.isfinite().all()
        assert not t.isfinite().all() or (o - e).norm() <= 2 * (t - e).norm()


@pytest.mark.parametrize("visible", RULES)
def test_what_a_query_does_not_see_changes_nothing_bit_for_bit(visible):
    leaves = [x.detach() for x in inputs(2000, 64)]
    rule = {"all": Visible.all(), "causal": Visible.causal()}.get(visible, visible)
    seen = rule.counts(2000, 2000) <= 1500
    before = leap_attention(*leaves, visible=visible, backend="triton")
    for x in leaves[1:3]:
        x[:, :, 1500:] = torch.randn_like(x[:, :, 1500:])
    after = leap_attention(*leaves, visible=visible, backend="triton")
    assert torch.equal(before[:, :, seen], after[:, :, seen])


@pytest.mark.parametrize("visible", RULES)
def test_packed_documents_agree_with_separate_ones(visible):
    sizes = [700, 1, 64, 1500]
    q, k, v, p_q, p_k = (x[:1] for x in inputs(sum(sizes), 64))
    bounds = torch.tensor([0, *sizes]).cumsum(0)

    def packed(*x):
        return leap_attention(*x, visible=visible, cu_seqlens=bounds, backend="triton")

    def apart(*x):
        parts = zip(*(y.split(sizes, 2) for y in x), strict=True)
        done = [leap_attention(*part, visible=visible, backend="reference") for part in parts]
        return torch.cat(done, 2)

    exact = both(apart, (q, k, v, p_q, p_k), torch.float64)
    for a, b in zip(both(packed, (q, k, v, p_q, p_k)), exact, strict=True):
        assert (a - b).norm() <= 1e-4 * b.norm()


def test_pieces_give_what_one_call_gives():
    leaves = [x.detach() for x in inputs(3000, 64)]
    whole = leap_attention(*leaves, visible="causal", backend="triton")
    state, pieces = None, []
    for part in torch.arange(3000).split([1, 999, 63, 1, 1936]):
        piece = [x[:, :, part] for x in leaves]
        y, state = leap_attention(
            *piece, visible="causal", state=state, return_state=True, backend="triton"
        )
        pieces.append(y)
    torch.testing.assert_close(torch.cat(pieces, 2), whole, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("visible", RULES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nothing_waits_for_the_device(visible, dtype):
    leaves = inputs(1000, 64, dtype)

    def train() -> None:
        y = leap_attention(*leaves, visible=visible)
        torch.autograd.grad(y.float().sum(), leaves)

    train()
    torch.cuda.set_sync_debug_mode("error")
    try:
        train()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_it_compiles_with_inductor():
    torch._dynamo.reset()
    leaves = inputs(1000, 64)

    def attend(*x):
        return leap_attention(x[0] * 1.5, *x[1:], visible="causal") + 1

    compiled = torch.compile(attend, fullgraph=True)
    for a, b in zip(both(attend, leaves), both(compiled, leaves), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", WIDTHS)
def test_memory_is_linear_in_length(width):
    def training(length: int) -> int:
        leaves = inputs(length, width)

        def train() -> None:
            y = leap_attention(*leaves, visible="causal", backend="triton")
            torch.autograd.grad(y.sum(), leaves)

        return peak_bytes(train)

    small, double, eightfold = (training(n) for n in (2048, 4096, 16384))
    assert double < 2.05 * small
    assert eightfold < 8.2 * small


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("width", WIDTHS)
def test_a_step_of_decoding_is_a_step_of_the_state(dtype, width):
    from leapformer.ops.triton_step import step

    q, k, v = torch.randn(3, 8, 4, 1, width, device=GPU, dtype=dtype)
    leap_q, leap_k = LeaP(width).to(GPU), LeaP(width).to(GPU)
    state = LeapState(torch.rand(8, 4, 2 * width, width + 1, device=GPU))
    with torch.no_grad():
        p_q, p_k = leap_q(q.float()), leap_k(k.float())
        weights = ([*leap_q.parameters()], [*leap_k.parameters()])
        expected, after = state.step_unchecked(q, k, v, p_q, p_k, None, 1e-6, "relu")
        y, sums = step(q, k, v, None, None, state.sums, 1e-6, "relu", *weights)
    torch.testing.assert_close(y, expected)
    torch.testing.assert_close(sums, after.sums, rtol=1e-4, atol=1e-4)


def test_auto_takes_it():
    assert choose_backend("auto", torch.device(GPU)) == "triton"
    assert choose_backend("auto", torch.device(GPU), torch.float64) == "chunked"
