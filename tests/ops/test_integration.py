"""The op inside PyTorch: compiled, under autocast, checkpointed, differentiated twice."""

import pytest
import torch
from cases import BACKENDS, FAST
from torch.utils.checkpoint import checkpoint

from leapformer import LeapState, Visible, leap_attention

NAMES = ("all", "causal", Visible.chunks(16, 3), Visible.wait_k(2, 3))


def inputs(length: int = 100, dtype: torch.dtype = torch.float32, grad: bool = True):
    tensors = [torch.randn(2, 3, length, 8, dtype=dtype) for _ in range(3)]
    tensors += [torch.rand(2, 3, length, dtype=dtype) for _ in range(2)]
    return [x.requires_grad_(grad) for x in tensors]


def run(attend, tensors):
    y = attend(*tensors)
    torch.manual_seed(2)
    return [y, *torch.autograd.grad(y, tensors, torch.randn(y.shape, dtype=y.dtype))]


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize(
    "visible", [*NAMES, torch.arange(100), torch.arange(100).expand(2, -1).contiguous()]
)
@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole_forward_and_backward(backend, visible, masked):
    torch._dynamo.reset()
    key_mask = torch.rand(2, 100) > 0.3 if masked else None

    def attend(q, k, v, p_q, p_k):
        q, v = q * 1.5, v + 1
        options = {"visible": visible, "key_mask": key_mask, "backend": backend}
        return leap_attention(q, k, v, p_q, p_k, **options) * 2

    tensors = inputs()
    compiled = torch.compile(attend, fullgraph=True, backend="aot_eager")
    for a, b in zip(run(attend, tensors), run(compiled, tensors), strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", FAST)
def test_compiles_with_inductor_also_a_step_of_decoding(backend):
    torch._dynamo.reset()

    def attend(q, k, v, p_q, p_k):
        return leap_attention(q.exp() - 1, k, v, p_q, p_k, visible="causal", backend=backend)

    tensors = inputs()
    compiled = torch.compile(attend, fullgraph=True)
    for a, b in zip(run(attend, tensors), run(compiled, tensors), strict=True):
        torch.testing.assert_close(a, b)

    def decode(q, k, v, p_q, p_k, sums):
        y, state = leap_attention(
            q, k, v, p_q, p_k, visible="causal", state=LeapState(sums), return_state=True
        )
        return y, state.sums

    step = [*inputs(1, grad=False), torch.rand(2, 3, 16, 9)]
    with torch.inference_mode():
        for a, b in zip(decode(*step), torch.compile(decode, fullgraph=True)(*step), strict=True):
            torch.testing.assert_close(a, b)


@pytest.mark.parametrize("backend", FAST)
def test_one_compilation_serves_every_length(backend):
    torch._dynamo.reset()

    def attend(*x):
        return leap_attention(*x, visible=Visible.chunks(16, 3), backend=backend)

    compiled = torch.compile(attend, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (50, 77, 130):
        tensors = inputs(length)
        for a, b in zip(run(attend, tensors), run(compiled, tensors), strict=True):
            torch.testing.assert_close(a, b)


def test_values_are_checked_also_when_compiled():
    torch._dynamo.reset()
    compiled = torch.compile(leap_attention, fullgraph=True, backend="aot_eager")
    q, k, v, p_q, p_k = inputs(grad=False)
    with pytest.raises(RuntimeError, match=r"p_q leaves \[0, 1\]"):
        compiled(q, k, v, p_q + 1, p_k)
    with pytest.raises(RuntimeError, match="visible decreases"):
        compiled(q, k, v, p_q, p_k, visible=torch.arange(100).flip(0))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("length", [1, 100])
def test_autocast_runs_in_half_with_sums_in_float32(backend, length):
    q, k, v, p_q, p_k = inputs(length)
    with torch.autocast("cpu", torch.bfloat16):
        y, state = leap_attention(
            q, k, v, p_q, p_k, visible="causal", return_state=True, backend=backend
        )
        y.float().sum().backward()
    assert (y.dtype, state.sums.dtype) == (torch.bfloat16, torch.float32)
    assert q.grad.dtype == torch.float32
    half = [x.detach().to(torch.bfloat16) for x in (q, k, v)]
    expected, expected_state = leap_attention(
        *half, p_q, p_k, visible="causal", return_state=True, backend="reference"
    )
    torch.testing.assert_close(y, expected, rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(state.sums, expected_state.sums, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("backend", FAST)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_its_dtype_and_a_float32_state(backend, dtype):
    q, k, v, p_q, p_k = inputs(50, dtype, grad=False)
    y, state = leap_attention(
        q, k, v, p_q, p_k, visible="causal", return_state=True, backend=backend
    )
    assert (y.dtype, state.sums.dtype) == (dtype, torch.float32)
    assert state.read(q, p_q).dtype == dtype


@pytest.mark.parametrize("backend", FAST)
def test_gradient_checkpointing_changes_nothing(backend):
    tensors = inputs()

    def attend(*x):
        return leap_attention(*x, visible="causal", backend=backend)

    def checkpointed(*x):
        return checkpoint(attend, *x, use_reentrant=False)

    for a, b in zip(run(attend, tensors), run(checkpointed, tensors), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", FAST)
def test_a_second_derivative_is_refused_and_the_reference_has_it(backend):
    tensors = inputs(5, torch.float64)
    y = leap_attention(*tensors, visible="causal", backend=backend)
    (grad,) = torch.autograd.grad(y.square().sum(), tensors[0], create_graph=True)
    with pytest.raises(RuntimeError, match=f"no second derivative in its {backend} backend"):
        grad.sum().backward()
    y = leap_attention(*tensors, visible="causal", backend="reference")
    (grad,) = torch.autograd.grad(y.square().sum(), tensors[0], create_graph=True)
    assert torch.autograd.grad(grad.square().sum(), tensors[1])[0].isfinite().all()


@pytest.mark.parametrize("backend", FAST)
def test_forward_mode_is_refused_and_the_reference_has_it(backend):
    q, *rest = inputs(5, torch.float64, grad=False)

    def attend(backend):
        return lambda x: leap_attention(x, *rest, visible="causal", backend=backend)

    with pytest.raises(RuntimeError, match="no forward-mode derivative"):
        torch.func.jvp(attend(backend), (q,), (q,))
    _, tangent = torch.func.jvp(attend("reference"), (q,), (q,))
    step = 1e-6 * q
    numeric = (attend("reference")(q + step) - attend("reference")(q - step)) / 2e-6
    torch.testing.assert_close(tangent, numeric)


@pytest.mark.parametrize("backend", FAST)
def test_inputs_are_left_as_they_were(backend):
    tensors = inputs(grad=False)
    state = LeapState(torch.rand(2, 3, 16, 9))
    copies = [x.clone() for x in (*tensors, state.sums)]
    leap_attention(*tensors, visible="causal", state=state, return_state=True, backend=backend)
    state.extend(*tensors[1:3], tensors[4])
    assert all(torch.equal(a, b) for a, b in zip(copies, (*tensors, state.sums), strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("visible", NAMES)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_everything_made_inside_follows_the_device_of_the_inputs(backend, visible, masked, whole):
    q, k, v = torch.empty(3, 2, 3, 10, 4, device="meta")
    key_mask = torch.ones(2, 10, dtype=torch.bool, device="meta") if masked else None
    y = leap_attention(
        q, k, v, visible=visible, key_mask=key_mask, return_state=whole, backend=backend
    )
    assert (y[0] if whole else y).device.type == "meta"
