"""One step of decoding in one call: it gives what torch's operators do."""

import math
from dataclasses import dataclass

import pytest
import torch
from cases import FAST, native
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.autograd import forward_ad

from leapformer import LeaP, LeapState, leap_attention
from leapformer.ops import BACKENDS
from leapformer.ops import native_step as fused
from leapformer.ops.step import STEPS
from leapformer.timing import threads
from leapformer.zoo import attention_class

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
WIDTHS = (1, 2, 7, 8, 15, 16, 17, 31, 33, 64, 80, 150)


@dataclass
class Step:
    """Arguments of a step, in float64."""

    tensors: list[Tensor]
    proportions: list[Tensor | LeaP]
    key_mask: Tensor | None
    sums: Tensor
    options: dict

    def __call__(self, dtype=torch.float64, read=False, backend="native") -> list[Tensor]:
        """y and the sums after; `read`: LeaP runs in torch, not in the kernel."""
        q, k, v = (x.to(dtype) for x in self.tensors)
        leaps = [p.to(dtype) if isinstance(p, LeaP) else p for p in self.proportions]
        if read and leaps and isinstance(leaps[0], LeaP):
            leaps = [leaps[0](q), leaps[1](k, self.key_mask)]
        state = LeapState(self.sums.to(torch.float64 if dtype == torch.float64 else torch.float32))
        with torch.no_grad():
            y, after = leap_attention(
                *(q, k, v, *leaps),
                visible="causal",
                key_mask=self.key_mask,
                state=state,
                return_state=True,
                backend=backend,
                **self.options,
            )
        return [y, after.sums]


@st.composite
def cases(draw, kinds=("none", "given", "learned"), masked=None) -> Step:
    torch.manual_seed(draw(st.integers(0, 2**31)))
    batch, heads = draw(st.integers(1, 4)), draw(st.sampled_from((1, 2, 3, 40)))
    width, values = (draw(st.sampled_from(WIDTHS if heads < 40 else WIDTHS[:5])) for _ in range(2))
    layout = draw(st.sampled_from(("heads first", "tokens first", "spread")))

    def random(size: int) -> Tensor:
        if layout == "heads first":
            return torch.randn(batch, heads, 1, size, dtype=torch.float64)
        if layout == "tokens first":
            return torch.randn(batch, 1, heads, size, dtype=torch.float64).transpose(1, 2)
        return torch.randn(batch, size, heads, 2, dtype=torch.float64)[..., :1].permute(0, 2, 3, 1)

    kind, hidden = draw(st.sampled_from(kinds)), draw(st.sampled_from((1, 2, 4, 16, 21)))
    proportions: list = []
    if kind == "given":
        proportions = list(torch.rand(2, batch, heads, 1, dtype=torch.float64))
    if kind == "learned":
        proportions = [LeaP(width, hidden).double() for _ in range(2)]
    masked = draw(st.booleans()) if masked is None else masked
    rows = width * (2 if proportions else 1)
    return Step(
        tensors=[random(width), random(width), random(values)],
        proportions=proportions,
        key_mask=torch.rand(batch, 1) > 0.5 if masked else None,
        sums=torch.rand(batch, heads, rows, values + 1, dtype=torch.float64),
        options={
            "feature_map": draw(st.sampled_from(("relu", "elu"))),
            "eps": draw(st.sampled_from((1e-6, 0.1, 5.0))),
        },
    )


@pytest.fixture
def calls(monkeypatch):
    """How often the kernel was called."""
    seen = []
    loaded = fused.kernel()

    def spy(record):
        seen.append(record)
        return loaded.step(record)

    monkeypatch.setattr(fused, "kernel", lambda: loaded._replace(step=spy))
    return seen


@native
@pytest.mark.parametrize("dtype", DTYPES)
@given(case=cases())
def test_it_is_what_torch_s_operators_give(dtype, case):
    exact = case(read=True, backend="reference")
    ours = case(dtype)
    if dtype == torch.float64:
        for a, b in zip(ours, exact, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
        return
    assert [x.dtype for x in ours] == [dtype, torch.float32]
    plain = case(dtype, read=True, backend="chunked")
    rounded = torch.finfo(dtype).eps
    for a, b, e in zip(ours, plain, exact, strict=True):
        assert (a - e).norm() <= 2 * (b - e).norm() + rounded * e.norm()


@native
@given(case=cases())
def test_it_is_what_the_reference_gives_for_a_step_of_the_same_dtype(case):
    for a, b in zip(case(torch.float32), case(torch.float32, backend="reference"), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@given(case=cases(masked=True))
def test_a_masked_key_may_hold_anything_and_leaves_the_state_as_it_was(backend, case):
    clean = case(backend=backend)
    masked = ~case.key_mask[:, 0]
    for x in case.tensors[1:]:
        x[masked] = torch.nan
    for a, b in zip(clean, case(backend=backend), strict=True):
        assert torch.equal(a, b)
    assert torch.equal(clean[1][masked], case.sums[masked])


@native
@given(case=cases())
def test_nothing_is_read_before_it_is_written(case):
    clean = case(torch.float32)
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        assert torch.empty(3).isnan().all()
        poisoned = case(torch.float32)
    finally:
        torch.use_deterministic_algorithms(False)
    for a, b in zip(clean, poisoned, strict=True):
        assert torch.equal(a, b)


@native
def test_poisoned_memory_reaches_the_kernel(calls):
    q, k, v = torch.randn(3, 1, 1, 1, 4)
    for poison in (False, True):
        torch.use_deterministic_algorithms(poison, warn_only=True)
        try:
            leap_attention(q, k, v, visible="causal", backend="native")
        finally:
            torch.use_deterministic_algorithms(False)
    assert [fused._RECORD.unpack(record)[7] for record in calls] == [0, 1]


@native
@given(case=cases())
def test_a_row_never_depends_on_its_batch_nor_on_the_number_of_threads(case):
    before = case(torch.float32)
    with threads(2):
        assert all(torch.equal(a, b) for a, b in zip(before, case(torch.float32), strict=True))
    for x in (*case.tensors, case.sums):
        x[1:] = torch.nan
    for a, b in zip(before, case(torch.float32), strict=True):
        assert torch.equal(a[0], b[0])


@native
def test_threads_share_the_heads_of_a_large_batch():
    """Larger than what one thread is given at least."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 16, 8, 1, 64)
    leaps, state = (LeaP(64), LeaP(64)), LeapState(torch.rand(16, 8, 128, 65))
    options = {"visible": "causal", "state": state, "backend": "native"}
    with torch.no_grad():
        alone = leap_attention(q, k, v, *leaps, **options)
        with threads(2):
            assert torch.equal(alone, leap_attention(q, k, v, *leaps, **options))
        one = leap_attention(
            *(x[9:10] for x in (q, k, v)),
            *leaps,
            **options | {"state": LeapState(state.sums[9:10])},
        )
    assert torch.equal(one, alone[9:10])


@native
@pytest.mark.parametrize("backend", ["native", "auto"])
def test_a_state_is_a_value(backend):
    """Beams go on from one state, and so may a text that was cut short."""
    q, k, v = torch.randn(3, 2, 3, 1, 8)
    leaps, state = (LeaP(8), LeaP(8)), LeapState(torch.rand(2, 3, 16, 9))
    kept = state.sums.clone()

    @torch.no_grad()
    def step():
        return leap_attention(
            *(q, k, v, *leaps), visible="causal", state=state, return_state=True, backend=backend
        )

    y, after = step()
    again, after_again = step()
    assert torch.equal(state.sums, kept)
    assert torch.equal(y, again)
    assert torch.equal(after.sums, after_again.sums)
    assert after.sums.data_ptr() != after_again.sums.data_ptr()


@native
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["leap", "cosformer", "linear"])
def test_a_step_of_a_layer_is_one_call_of_the_kernel(calls, name, masked):
    attention = attention_class(name)(2, 8, 100)
    q, k, v = torch.randn(3, 3, 2, 5, 8)
    view = {"visible": "causal", "return_state": True}
    expected, last = attention(q, k, v, **view)
    with torch.inference_mode():
        first = (x[:, :, :4] for x in (q, k, v))
        _, state = attention(*first, **view)
        if masked:
            view["key_mask"] = torch.ones(3, 1, dtype=torch.bool)
        token = (x[:, :, 4:] for x in (q, k, v))
        y, state = attention(*token, **view, state=state, positions=torch.tensor([4]))
    assert len(calls) == 1
    torch.testing.assert_close(y, expected[:, :, 4:], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(state.sums, last.sums, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("length", [1, 70])
@pytest.mark.parametrize("hidden", [1, 4])
def test_a_leap_stands_for_its_proportions(backend, length, hidden):
    """In the output, and in the gradients of tokens and weights."""
    q, k, v = torch.randn(3, 2, 3, length, 8, dtype=torch.float64).unbind()
    leaps = nn.ModuleList(LeaP(8, hidden).double() for _ in range(2))
    mask = torch.rand(2, length) > 0.2
    found = []
    for name, read in ((backend, False), ("reference", True)):
        leaves = [x.clone().requires_grad_() for x in (q, k, v)]
        p = [leaps[0](leaves[0]), leaps[1](leaves[1], mask)] if read else leaps
        y = leap_attention(*leaves, *p, visible="causal", key_mask=mask, backend=name)
        torch.manual_seed(0)
        wanted = [*leaves, *leaps.parameters()]
        found.append([y, *torch.autograd.grad(y, wanted, torch.randn(y.shape).double())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(a, b)


@native
def test_only_what_has_no_derivative_to_keep_goes_to_the_kernel(calls):
    leaps = LeaP(8), LeaP(8)
    state = LeapState(torch.rand(2, 3, 16, 9))

    def step(*x: Tensor) -> Tensor:
        return leap_attention(*x, *leaps, visible="causal", state=state)

    tensors = torch.randn(3, 2, 3, 1, 8).unbind()
    assert step(*tensors).requires_grad
    assert calls == []
    for leap in leaps:
        leap.requires_grad_(False)
    _, tangent = torch.func.jvp(step, tensors, tensors)
    assert calls == []
    ahead, behind = (step(*(x * (1 + sign * 1e-3) for x in tensors)) for sign in (1, -1))
    torch.testing.assert_close(tangent, (ahead - behind) / 2e-3, rtol=1e-2, atol=1e-2)
    calls.clear()
    assert not step(*tensors).requires_grad
    assert len(calls) == 1
    state.sums.requires_grad_()
    assert step(*tensors).requires_grad
    assert len(calls) == 1


@native
def test_transforms_of_torch_func_are_served_by_torch_s_operators(calls):
    q, k, v = torch.randn(3, 4, 2, 3, 1, 8)
    state = LeapState(torch.rand(2, 3, 8, 9))

    def step(*x: Tensor) -> Tensor:
        return leap_attention(*x, visible="causal", state=state)

    with torch.no_grad():
        y = torch.vmap(step)(q, k, v)
        grad = torch.func.grad(lambda x: step(x, k[0], v[0]).sum())(q[0])
        assert calls == []
        torch.testing.assert_close(y, torch.stack(list(map(step, q, k, v))))
    leaf = q[0].clone().requires_grad_()
    step(leaf, k[0], v[0]).sum().backward()
    torch.testing.assert_close(grad, leaf.grad)
    with forward_ad.dual_level():
        dual = forward_ad.make_dual(q[0], q[0])
        assert forward_ad.unpack_dual(step(dual, k[0], v[0])).tangent is not None


@native
def test_torch_compile_keeps_its_own_operators_and_agrees(calls):
    torch.manual_seed(0)
    leaps, state = (LeaP(8), LeaP(8)), LeapState(torch.rand(2, 3, 16, 9))
    tensors = torch.randn(3, 2, 3, 1, 8).unbind()

    @torch.no_grad()
    def step(*x: Tensor) -> Tensor:
        return leap_attention(*x, *leaps, visible="causal", state=state)

    y = torch.compile(step, fullgraph=True, backend="aot_eager")(*tensors)
    assert calls == []
    torch.testing.assert_close(y, step(*tensors))


@native
@pytest.mark.parametrize("learned", [False, True])
def test_the_operator_keeps_its_contract_with_torch(learned):
    q, k, v = torch.randn(3, 2, 3, 1, 8)
    maps = [[x.detach() for x in LeaP(8).weights()] if learned else [] for _ in range(2)]
    given_ = [None] * 2 if learned else list(torch.rand(2, 2, 3, 1))
    sums, mask = torch.rand(2, 3, 16, 9), torch.rand(2, 1) > 0.5
    arguments = (q, k, v, *given_, sums, 1e-6, "relu", *maps, mask)
    torch.library.opcheck(fused.native_step, arguments)


@native
def test_autocast_reads_leap_in_half_as_ever(calls):
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 3, 1, 8)
    leaps, state = (LeaP(8), LeaP(8)), LeapState(torch.rand(2, 3, 16, 9))
    options = {"visible": "causal", "state": state}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        y = leap_attention(q, k, v, *leaps, **options)
        p_q, p_k = leaps[0](q), leaps[1](k)
        assert torch.equal(y, leap_attention(q, k, v, p_q, p_k, **options))
    assert y.dtype == torch.bfloat16
    assert len(calls) == 2


@native
@pytest.mark.parametrize("logit", [-1e4, -100.0, -20.0, -0.1, 0.0, 3.0, 100.0, 1e4, math.nan])
def test_the_sigmoid_of_any_logit_is_exact(logit):
    """The state holds nothing; a key and a query with proportions p and 0 meet with cos(pi/2 p)."""
    leaps = LeaP(1, 1).double(), LeaP(1, 1).double()
    with torch.no_grad():
        for leap, bias in zip(leaps, (logit, -1e4), strict=True):
            leap.proportion.weight.zero_()
            leap.proportion.bias.fill_(bias)
        one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
        _, state = leap_attention(
            *(one, one, one, *reversed(leaps)), visible="causal", return_state=True
        )
    angle = torch.tensor(logit, dtype=torch.float64).sigmoid() * torch.pi / 2
    expected = torch.stack([angle.cos(), angle.sin()])
    torch.testing.assert_close(state.sums[0, 0, :, 1], expected, equal_nan=True, atol=1e-14, rtol=0)


class Adapted(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + 1


def watched(leap: LeaP, seen: list) -> None:
    leap.register_forward_hook(lambda *_: seen.append(1))


def watched_inside(leap: LeaP, seen: list) -> None:
    leap.proportion[0].register_forward_pre_hook(lambda *_: seen.append(1))


def replaced(leap: LeaP, seen: list) -> None:
    run = leap.forward

    def forward(*x):
        seen.append(1)
        return run(*x)

    leap.forward = forward


def adapted(leap: LeaP, seen: list) -> None:
    seen.append(1)
    leap.proportion[2] = Adapted(2, 1)


@native
@pytest.mark.parametrize("change", [watched, watched_inside, replaced, adapted])
def test_a_leap_that_does_more_than_the_formula_is_called(change):
    leaps, seen = (LeaP(8), LeaP(8)), []
    assert len(leaps[0].weights()) == 4
    change(leaps[0], seen)
    assert leaps[0].weights() == []
    q, k, v = torch.randn(3, 2, 3, 1, 8)
    with torch.no_grad():
        y = leap_attention(q, k, v, *leaps, visible="causal", backend="native")
        p_q, p_k = leaps[0](q), leaps[1](k)
        expected = leap_attention(q, k, v, p_q, p_k, visible="causal", backend="chunked")
    torch.testing.assert_close(y, expected)
    assert seen


@native
def test_a_leap_of_another_width_or_dtype_is_refused_as_ever():
    q, k, v = torch.randn(3, 2, 3, 1, 8)
    with torch.no_grad():
        with pytest.raises(ValueError, match="last axis of 6"):
            leap_attention(q, k, v, LeaP(6), LeaP(6), visible="causal")
        with pytest.raises(RuntimeError, match="dtype"):
            leap_attention(q, k, v, LeaP(8).double(), LeaP(8).double(), visible="causal")


def test_every_step_belongs_to_a_backend():
    assert STEPS.keys() <= BACKENDS.keys()
