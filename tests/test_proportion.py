"""Laws of the proportions: LeaP (learned) and Ramp (static)."""

import pytest
import torch

from leapformer import LeaP, LengthLeaP, Ramp
from leapformer.zoo import ATTENTIONS


@pytest.mark.parametrize(
    ("layers", "head_dim", "hidden", "published"),
    [
        pytest.param(2, 32, 16, 2_180, id="long-range-arena"),
        pytest.param(16, 128, None, 133_152, id="language-model"),
        pytest.param(24, 32, None, 13_104, id="speech-translation"),
    ],
)
def test_leap_has_the_published_number_of_parameters(layers, head_dim, hidden, published):
    pair = [LeaP(head_dim, hidden), LeaP(head_dim, hidden)]
    attention = ATTENTIONS["leap"](8, head_dim, hidden=hidden)
    for modules in (pair, [attention]):
        count = sum(p.numel() for module in modules for p in module.parameters())
        assert layers * count == published


def test_leap_gives_one_proportion_in_0_1_per_head_and_token():
    torch.manual_seed(0)
    p = LeaP(8)(100 * torch.randn(2, 3, 5, 8))
    assert p.shape == (2, 3, 5)
    assert p.min() >= 0
    assert p.max() <= 1
    assert p.std() > 0


def test_leap_is_sigmoid_of_two_linear_maps_of_the_features():
    torch.manual_seed(0)
    leap, x = LeaP(8, 3).double(), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    weight_1, bias_1, weight_2, bias_2 = leap.parameters()
    hidden = (x.relu() @ weight_1.T + bias_1).relu()
    assert hidden.shape[-1] == 3
    expected = (1 + (-(hidden @ weight_2.T + bias_2)).exp()) ** -1
    torch.testing.assert_close(leap(x), expected.squeeze(-1))


def test_leap_of_width_1_is_a_single_linear_map():
    torch.manual_seed(0)
    leap, x = LeaP(8, 1).double(), torch.randn(2, 3, 5, 8, dtype=torch.float64)
    weight, bias = leap.parameters()
    assert weight.shape == (1, 8)
    torch.testing.assert_close(leap(x), (x.relu() @ weight[0] + bias).sigmoid())


@pytest.mark.parametrize(("head_dim", "width"), [(32, 8), (7, 1), (2, 1)])
def test_leap_steps_down_by_4(head_dim, width):
    assert [p.shape for p in LeaP(head_dim).parameters()] == [
        p.shape for p in LeaP(head_dim, width).parameters()
    ]


def test_leap_depends_on_the_features_only():
    torch.manual_seed(0)
    leap, x = LeaP(8), torch.randn(2, 3, 5, 8)
    other = torch.where(x < 0, 7 * x - 1, x)
    assert torch.equal(leap(x), leap(other))
    assert not torch.equal(leap(x), leap(x + 1))


def test_leap_gives_a_token_the_same_proportion_at_whatever_position():
    torch.manual_seed(0)
    leap, x = LeaP(8).double(), torch.randn(2, 3, 9, 8, dtype=torch.float64)
    order = torch.randperm(9)
    torch.testing.assert_close(leap(x[:, :, order]), leap(x)[:, :, order])
    torch.testing.assert_close(leap(x[:, :, 4:5]), leap(x)[:, :, 4:5])


def test_leap_takes_its_sigmoid_in_float32_under_autocast_and_for_bfloat16():
    torch.manual_seed(0)
    leap, x = LeaP(8), torch.randn(2, 3, 5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logit = leap.proportion(x.relu()).squeeze(-1)
        p = leap(x)
    assert logit.dtype == torch.bfloat16
    assert p.dtype == torch.float32
    assert torch.equal(p, logit.float().sigmoid())

    half = leap.bfloat16()
    logit = half.proportion(x.bfloat16().relu()).squeeze(-1)
    p = half(x.bfloat16())
    assert p.dtype == torch.float32
    assert torch.equal(p, logit.float().sigmoid())
    assert not torch.equal(p, logit.sigmoid().float())


def test_leap_keeps_float64():
    assert LeaP(8).double()(torch.randn(1, 1, 3, 8, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("hidden", [0, -1])
def test_leap_refuses_a_width_below_1(hidden):
    with pytest.raises(ValueError, match="at least 1"):
        LeaP(8, hidden)


def test_leap_refuses_tokens_of_another_width():
    with pytest.raises(ValueError, match=r"\[1, 2, 3, 4\].*last axis of 8"):
        LeaP(8)(torch.zeros(1, 2, 3, 4))


def test_ramp_is_position_over_maximum_length():
    ramp, x = Ramp(8), torch.zeros(2, 3, 5, 4)
    torch.testing.assert_close(ramp(x), torch.tensor([0, 1, 2, 3, 4]) / 8)
    torch.testing.assert_close(ramp(x, torch.arange(3, 8)), torch.tensor([3, 4, 5, 6, 7]) / 8)


@pytest.mark.parametrize(
    ("dtype", "result"),
    [
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_ramp_has_at_least_float32(dtype, result):
    assert Ramp(8)(torch.zeros(1, 1, 5, 4, dtype=dtype)).dtype == result


def test_ramp_refuses_positions_beyond_its_maximum_length():
    ramp = Ramp(8)
    assert len(ramp(torch.zeros(1, 1, 8, 4))) == 8
    with pytest.raises(ValueError, match=r"0..8 leave .* max_length is 8"):
        ramp(torch.zeros(1, 1, 9, 4))
    with pytest.raises(ValueError, match=r"8..8 leave .* max_length is 8"):
        ramp(torch.zeros(1, 1, 1, 4), torch.tensor([8]))


@pytest.mark.parametrize("max_length", [0, -1])
def test_ramp_refuses_a_length_below_1(max_length):
    with pytest.raises(ValueError, match="positive length"):
        Ramp(max_length)


def test_ramp_takes_positions_of_each_row():
    positions = torch.tensor([[0, 0, 1], [5, 6, 7]])
    p = Ramp(8)(torch.zeros(2, 3, 3, 4), positions)
    torch.testing.assert_close(p, positions.unsqueeze(1) / 8)


def test_ramp_refuses_positions_that_are_none():
    with pytest.raises(ValueError, match=r"-1\.\.0 leave"):
        Ramp(8)(torch.zeros(1, 1, 2, 4), torch.tensor([-1, 0]))
    with pytest.raises(TypeError, match="float32: expected whole numbers"):
        Ramp(8)(torch.zeros(1, 1, 2, 4), torch.tensor([0.0, 1.0]))


def test_padding_stays_out_of_proportions_and_gradients():
    leap, x = LeaP(8), torch.randn(2, 3, 5, 8)
    mask = torch.tensor([[True] * 5, [True, True, False, False, True]])
    x[1, :, 2:4] = torch.nan
    p = leap(x, mask)
    torch.testing.assert_close(p[0], leap(x[:1])[0])
    p.sum().backward()
    assert all(weight.grad.isfinite().all() for weight in leap.parameters())


def test_a_learned_length_is_half_way_at_its_length_and_never_left():
    """Every token by itself: the same one stands ever further on, and none leaves [0, 1]."""
    torch.manual_seed(0)
    ramp, x = LengthLeaP(8).double(), torch.randn(2, 3, 1, 8, dtype=torch.float64)
    places = torch.tensor([0, 1, 62, 63, 64, 10**6, 10**12])
    p = ramp(x.expand(-1, -1, len(places), -1), positions=places)
    assert (p.diff() > 0).all()
    assert p.min() > 0
    assert p.max() <= 1
    length = LengthLeaP.START * ((1 - LeaP.forward(ramp, x)) / LeaP.forward(ramp, x))
    n, s = places.double() + 1, ramp.steepness.item()
    torch.testing.assert_close(p, n**s / (n**s + length**s))
    torch.nn.init.zeros_(ramp.proportion[2].weight)
    torch.nn.init.zeros_(ramp.proportion[2].bias)
    assert (ramp(x, positions=torch.tensor([LengthLeaP.START - 1])) == 0.5).all()


def test_a_learned_length_takes_positions_of_each_row_and_a_mask():
    torch.manual_seed(0)
    ramp, x = LengthLeaP(8), torch.randn(2, 3, 4, 8)
    places, mask = torch.tensor([[0, 1, 2, 3], [0, 0, 0, 1]]), torch.ones(2, 4, dtype=torch.bool)
    mask[1, :2], x[1, :, :2] = False, torch.nan
    p = ramp(x, mask, places)
    torch.testing.assert_close(p[0], ramp(x[:1])[0])
    torch.testing.assert_close(p[1:, :, 2:], ramp(x[1:, :, 2:]))
    assert p.isfinite().all()
    assert ramp.weights() == []  # more than the formula of LeaP
