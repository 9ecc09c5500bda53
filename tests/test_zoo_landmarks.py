"""Laws of Linformer, Nystromformer, Informer and Skyformer beyond those of every mechanism."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import NystromformerConfig
from transformers.models.nystromformer.modeling_nystromformer import NystromformerSelfAttention

from leapformer.zoo import ATTENTIONS
from leapformer.zoo.informer import peakedness
from leapformer.zoo.landmarks import inverse_times, random_draws, sampled_places, segment_means

NAMES = ["linformer", "nystromformer", "informer", "skyformer"]
SAMPLING = ["informer", "skyformer"]
HEADS, WIDTH, LENGTH = 2, 8, 12
LAWFUL = settings(max_examples=60, deadline=None, derandomize=True, database=None)


def make(name, seed=0, length=LENGTH, **options):
    torch.manual_seed(seed)
    return ATTENTIONS[name](HEADS, WIDTH, length, **options).double()


def make_inputs(length=LENGTH, batch=2, scale=1.0):
    torch.manual_seed(1)
    return [scale * torch.randn(batch, HEADS, length, WIDTH).double() for _ in range(3)]


def error(found, expected):
    return ((found - expected).norm() / expected.norm()).item()


# What each becomes where it leaves nothing out


def test_linformer_that_sums_single_tokens_is_softmax():
    attention, inputs = make("linformer", features=LENGTH), make_inputs()
    with torch.no_grad():
        attention.projection.copy_(torch.eye(LENGTH))
    torch.testing.assert_close(attention(*inputs), make("softmax")(*inputs))


def test_nystromformer_whose_landmarks_are_all_tokens_tends_to_softmax_with_its_steps():
    inputs = make_inputs()
    exact = make("softmax")(*inputs)
    errors = [
        error(make("nystromformer", features=20, steps=steps)(*inputs), exact)
        for steps in (3, 6, 12, 30)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8


def test_informer_of_all_queries_is_softmax():
    inputs = make_inputs()
    torch.testing.assert_close(make("informer", features=LENGTH)(*inputs), make("softmax")(*inputs))


def test_skyformer_of_all_rows_tends_to_kernelized_as_its_ridge_goes_to_zero():
    inputs = make_inputs()
    exact = make("kernelized")(*inputs)
    errors = [
        error(make("skyformer", features=2 * LENGTH, ridge=ridge, steps=40)(*inputs), exact)
        for ridge in (1e-1, 1e-3, 1e-5, 1e-7)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_skyformer_comes_nearer_to_kernelized_with_its_rows_and_steps():
    inputs = make_inputs(length=200, scale=0.5)
    exact = make("kernelized")(*inputs)
    by_rows = [
        error(make("skyformer", features=m, ridge=1e-3)(*inputs), exact) for m in (8, 32, 99)
    ]
    by_steps = [
        error(make("skyformer", features=99, ridge=1e-3, steps=n)(*inputs), exact)
        for n in (2, 6, 20)
    ]
    assert by_rows == sorted(by_rows, reverse=True)
    assert by_steps == sorted(by_steps, reverse=True)
    assert by_steps[-1] < 0.3


# Peers and particulars


@pytest.mark.parametrize("batch", [1, 3])
def test_nystromformer_equals_that_of_transformers(batch):
    heads, landmarks, length = 2, 8, 40
    config = NystromformerConfig(
        hidden_size=heads * WIDTH,
        num_attention_heads=heads,
        num_landmarks=landmarks,
        segment_means_seq_len=length,
        attention_probs_dropout_prob=0.0,
    )
    peer = NystromformerSelfAttention(config).double()
    peer.conv_kernel_size, peer.init_option = None, "of each matrix"
    for layer in (peer.query, peer.key, peer.value):
        layer.weight.data = torch.eye(heads * WIDTH).double()
        layer.bias.data.zero_()
    torch.manual_seed(0)
    x = torch.randn(batch, length, heads * WIDTH).double()
    split = x.unflatten(2, (heads, WIDTH)).transpose(1, 2)
    found = make("nystromformer", features=landmarks)(split, split, split)
    torch.testing.assert_close(found.transpose(1, 2).flatten(2), peer(x)[0])


def test_linformer_trains_the_columns_of_the_tokens_there_are():
    attention, inputs = make("linformer", features=4), make_inputs(length=7)
    attention(*inputs).square().sum().backward()
    gradient = attention.projection.grad
    assert gradient[..., :7].ne(0).all()
    assert gradient[..., 7:].eq(0).all()


def test_linformer_starts_with_sums_as_large_as_a_token():
    attention = make("linformer", length=2500, features=16)
    assert attention.projection.std().item() == pytest.approx(0.02, rel=0.02)


@pytest.mark.parametrize("features", [1, 5, 30])
def test_informer_gives_the_mean_to_all_but_its_chosen_queries_and_chooses_no_padding(features):
    attention = make("informer", features=features)
    q, k, v = make_inputs(length=40, batch=30)
    lengths = torch.arange(2, 32)
    real = torch.arange(40) < lengths[:, None]
    y = attention(q, k, v, key_mask=real)
    for found, values, n in zip(y, v, lengths.tolist(), strict=True):
        mean = values[:, :n].mean(1, keepdim=True)
        as_mean = torch.isclose(found[:, :n], mean).all(-1).sum(-1)
        assert as_mean.tolist() == [max(n - features, 0)] * HEADS


# The options, and what a checkpoint holds


@pytest.mark.parametrize("name", NAMES)
def test_the_budget_is_128_and_at_least_one(name):
    attention = make(name)
    held = {"linformer": lambda: attention.projection.shape[1]} | {
        name: lambda: len(attention.draws) for name in SAMPLING
    }
    assert held.get(name, lambda: attention.features)() == 128
    with pytest.raises(ValueError, match="features is 0"):
        make(name, features=0)
    make(name, features=1)(*make_inputs())


@pytest.mark.parametrize("name", ["nystromformer", "skyformer"])
def test_an_inverse_of_no_steps_is_refused(name):
    with pytest.raises(ValueError, match="steps is 0"):
        make(name, steps=0)


@pytest.mark.parametrize("ridge", [-0.1, float("nan")])
def test_a_ridge_below_zero_is_refused(ridge):
    with pytest.raises(ValueError, match="ridge is"):
        make("skyformer", ridge=ridge)


@pytest.mark.parametrize("name", ["linformer", *SAMPLING])
def test_a_checkpoint_restores_what_was_drawn(name):
    inputs = make_inputs(length=40)
    first, second = (make(name, seed, length=40, features=7) for seed in (0, 1))
    assert not torch.allclose(first(*inputs), second(*inputs))
    second.load_state_dict(first.state_dict())
    assert torch.equal(first(*inputs), second(*inputs))


@pytest.mark.parametrize("name", NAMES)
def test_evaluation_repeats_and_draws_nothing(name):
    attention, inputs = make(name, length=40, features=7), make_inputs(length=40)
    before = torch.get_rng_state()
    assert torch.equal(attention(*inputs), attention(*inputs))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", SAMPLING)
def test_what_was_drawn_outlives_a_cast(name):
    attention = make(name)
    before = attention.draws.clone()
    assert torch.equal(attention.bfloat16().double().draws, before)


# Precision, and the device


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("how", ["bfloat16", "autocast"])
def test_low_precision_stays_near(name, how):
    attention, inputs = make(name, length=100, features=100), make_inputs(length=100)
    real = torch.arange(100) < torch.tensor([[100], [37]])
    expected = attention(*inputs, key_mask=real)
    if how == "autocast":
        inputs = [x.float().requires_grad_() for x in inputs]
        with torch.autocast("cpu", torch.bfloat16):
            found = attention.float()(*inputs, key_mask=real)
    else:
        inputs = [x.bfloat16().requires_grad_() for x in inputs]
        found = attention.bfloat16()(*inputs, key_mask=real)
    assert found.dtype == torch.bfloat16
    shown = real[:, None, :, None]
    assert error(found.double() * shown, expected * shown) < 0.03
    for gradient in torch.autograd.grad(found.float().square().sum(), inputs):
        assert gradient.isfinite().all()


@pytest.mark.parametrize(
    "function",
    [
        lambda a, b: inverse_times(a.softmax(-1), b, 6),
        lambda a, b: make("skyformer").solve(a, torch.ones(1, LENGTH, dtype=torch.bool), b),
        peakedness,
    ],
    ids=["inverse_times", "solve", "peakedness"],
)
def test_inverses_and_peaks_are_worked_out_in_full_precision(function):
    a, b = torch.randn(2, 1, HEADS, LENGTH, LENGTH)
    expected = function(a, b)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(function(a, b), expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_nothing_waits_for_the_value_of_a_tensor(name, dtype):
    attention = make(name, length=40, features=7).to("meta", dtype)
    x = torch.empty(2, HEADS, 40, WIDTH, device="meta", dtype=dtype)
    y = attention.mix(x, x, x, torch.ones(2, 40, device="meta", dtype=torch.bool))
    assert (y.shape, y.dtype) == (x.shape, dtype)


# The rows that stand for all


@LAWFUL
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(1, 20))
def test_sampled_places_are_different_and_one_of_each_part(available, count):
    draws = random_draws(count)
    places, counts = sampled_places(draws, torch.tensor(available))
    for n, row, held in zip(available, places, counts, strict=True):
        used = min(n, count)
        assert held.tolist() == [slot < used for slot in range(count)]
        chosen = row[:used].tolist()
        assert len(set(chosen)) == used
        for slot, place in enumerate(chosen):
            assert n * slot // used <= place < n * (slot + 1) // used
        assert row[used:].eq(max(n - 1, 0)).all()


def test_sampled_places_reach_every_place():
    torch.manual_seed(0)
    seen = {
        place
        for _ in range(100)
        for place in sampled_places(random_draws(3), torch.tensor([10]))[0][0].tolist()
    }
    assert seen == set(range(10))


@LAWFUL
@given(st.lists(st.integers(0, 50), min_size=1, max_size=5), st.integers(1, 20))
def test_segments_share_out_all_tokens_nearly_equally(lengths, count):
    longest = max(*lengths, 1)
    real = torch.arange(longest) < torch.tensor(lengths)[:, None]
    one_hot = torch.eye(longest).double().expand(len(lengths), 1, -1, -1) * real[:, None, :, None]
    means, filled = segment_means(one_hot, real, count)
    for n, shares, held in zip(lengths, means[:, 0], filled, strict=True):
        used = min(n, count)
        assert held.tolist() == [slot < used for slot in range(count)]
        members = shares.ne(0)
        assert members[used:].eq(0).all()
        assert members.sum(0).tolist() == [1] * n + [0] * (longest - n)
        sizes = members[:used].sum(1)
        assert used == 0 or sizes.max() - sizes.min() <= 1
        torch.testing.assert_close(shares[:used].sum(1), torch.ones(used).double())
