"""What stands around an attention: short convolution, rotary positions, adaptive input."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from leapformer.layers import MultiHeadAttention, ShortConvolution
from leapformer.layers.adaptive import AdaptiveEmbedding
from leapformer.layers.attention import HeadNorm
from leapformer.layers.embedding import TokenEmbedding, rotate, sinusoids
from leapformer.zoo import ATTENTIONS


def convolution(size: int) -> ShortConvolution:
    made = ShortConvolution(4, size).double()
    nn.init.normal_(made.taps)
    return made


@given(size=st.integers(1, 6), length=st.integers(1, 20))
def test_a_short_convolution_is_torch_s_depthwise_one_padded_on_the_left(size, length):
    made, x = convolution(size), torch.randn(2, length, 4, dtype=torch.float64)
    y, recent = made(x, torch.arange(length))
    kernel = made.taps.flip(0).T.unsqueeze(1)
    padded = nn.functional.pad(x.mT, (size - 1, 0))
    torch.testing.assert_close(y, nn.functional.conv1d(padded, kernel, groups=4).mT)
    assert recent.shape == (2, size - 1, 4)


def test_a_short_convolution_starts_as_the_identity():
    x = torch.randn(2, 5, 4)
    assert torch.equal(ShortConvolution(4, 3)(x, torch.arange(5))[0], x)
    with pytest.raises(ValueError, match="at least one tap"):
        ShortConvolution(4, 0)


@given(size=st.integers(1, 6), pieces=st.lists(st.integers(1, 7), min_size=1, max_size=5))
def test_a_short_convolution_in_pieces_equals_one_call(size, pieces):
    made, x = convolution(size), torch.randn(2, sum(pieces), 4, dtype=torch.float64)
    places, recent, parts = torch.arange(sum(pieces)), None, []
    for piece, place in zip(x.split(pieces, 1), places.split(pieces), strict=True):
        y, recent = made(piece, place, recent)
        parts.append(y)
    torch.testing.assert_close(torch.cat(parts, 1), made(x, places)[0])


@given(
    size=st.integers(1, 5),
    pieces=st.lists(st.integers(1, 7), min_size=1, max_size=5),
    seed=st.integers(0, 999),
)
def test_taps_pass_over_padding_wherever_it_stands(size, pieces, seed):
    torch.manual_seed(seed)
    made, x = convolution(size), torch.randn(2, sum(pieces), 4, dtype=torch.float64)
    real = torch.rand(2, sum(pieces)) < 0.6
    places = (real.cumsum(1) - 1).clamp_min(0)
    x[~real] = torch.nan
    recent, parts = None, []
    for part in zip(*(each.split(pieces, 1) for each in (x, places, real)), strict=True):
        y, recent = made(part[0], part[1], recent, part[2])
        parts.append(y)
    for row, y in enumerate(torch.cat(parts, 1)):
        alone = x[row : row + 1, real[row]]
        expected, after = made(alone, torch.arange(alone.shape[1]))
        torch.testing.assert_close(y[real[row]], expected[0])
        torch.testing.assert_close(recent[row], after[0])


def test_no_tap_reaches_beyond_the_first_token_of_a_sequence():
    made, x = convolution(4), torch.randn(1, 9, 4, dtype=torch.float64)
    x[:, :2] = torch.nan  # padding, then two documents
    y, _ = made(x, torch.tensor([[0, 0, 0, 1, 2, 3, 0, 1, 2]]))
    for part in (slice(2, 6), slice(6, 9)):
        alone, _ = made(x[:, part], torch.arange(9)[: part.stop - part.start])
        torch.testing.assert_close(y[:, part], alone)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_rotary_products_depend_on_distances_alone(dtype):
    q, k = torch.randn(2, 1, 3, 20, 8, dtype=dtype)
    rows = torch.arange(20)
    here = rotate(q, rows) @ rotate(k, rows).mT
    there = rotate(q, rows + 700) @ rotate(k, (rows + 700).unsqueeze(0)).mT
    close = {"rtol": 0, "atol": 0.2 if dtype == torch.bfloat16 else 2e-3}
    assert here.dtype == dtype
    torch.testing.assert_close(here, there, **close)
    assert not torch.allclose(here, q @ k.mT, atol=0.5)


def test_a_rotation_turns_pairs_by_their_angle():
    x = torch.randn(1, 1, 5, 6, dtype=torch.float64)
    place = torch.tensor([0, 1, 2, 30, 4])
    angle = place[:, None] * 10000.0 ** (-torch.arange(0, 6, 2, dtype=torch.float64) / 6)
    a, b = x.chunk(2, -1)
    turned = torch.complex(a, b) * torch.polar(torch.ones_like(angle), angle)
    expected = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(rotate(x, place), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [n for n, c in ATTENTIONS.items() if not c.traits.rotary])
def test_rotary_positions_are_refused_where_there_are_no_dot_products(name):
    with pytest.raises(ValueError, match=r"rotary positions turn dot products"):
        MultiHeadAttention(ATTENTIONS[name](2, 4, 10), rotary=True)


def test_rotary_positions_need_an_even_width():
    with pytest.raises(ValueError, match="even"):
        MultiHeadAttention(ATTENTIONS["softmax"](2, 5), rotary=True)


@pytest.mark.parametrize("name", ["leap", "softmax", "reformer"])
def test_queries_and_keys_are_normed_a_head_at_a_time(name):
    torch.manual_seed(0)
    attention = ATTENTIONS[name](2, 4, 10)
    rotary = attention.traits.rotary
    layer = MultiHeadAttention(attention, rotary=rotary, qk_norm=True).double()
    maps, norms = [layer.q_proj, layer.k_proj or layer.q_proj], [layer.q_norm]
    norms.append(norms[0] if layer.k_norm is None else layer.k_norm)
    for norm in set(norms):
        nn.init.normal_(norm.weight)
    x = torch.randn(2, 7, 8, dtype=torch.float64)
    q, k, v = (y(x).unflatten(-1, (2, 4)).transpose(1, 2) for y in (*maps, layer.v_proj))
    q, k = (
        norm.weight * y / y.square().mean(-1, keepdim=True).sqrt()
        for y, norm in zip((q, k), norms, strict=True)
    )
    if rotary:
        q, k = (rotate(y, torch.arange(7)) for y in (q, k))
    expected = layer.out_proj(attention(q, k, v).transpose(1, 2).flatten(2))
    torch.testing.assert_close(layer(x), expected)


def test_queries_and_keys_are_normed_in_full_precision_under_autocast(recwarn):
    torch.manual_seed(0)
    norm, x = HeadNorm(8), torch.randn(5, 8)
    with torch.autocast("cpu", torch.bfloat16):
        y = norm(x.bfloat16())
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, norm(x.bfloat16().float()), rtol=0, atol=0)
    assert not recwarn.list


@pytest.mark.parametrize("positions", ["learned", "sinusoidal"])
def test_positions_of_each_row_are_taken(positions):
    embedding = TokenEmbedding(9, 4, positions, 20)
    ids, places = torch.randint(0, 9, (2, 5)), torch.tensor([[0, 0, 1, 2, 3], [4, 5, 6, 7, 8]])
    y = embedding(ids, positions=places)
    torch.testing.assert_close(y[:1, 1:], embedding(ids[:1, 1:]))
    torch.testing.assert_close(embedding(ids), embedding(ids, positions=torch.arange(5)))
    whole = torch.zeros(1, 9, dtype=torch.long)
    whole[:, 4:] = ids[1]
    torch.testing.assert_close(y[1:], embedding(whole)[:, 4:])


def test_sinusoidal_positions_stand_beside_scaled_tokens():
    embedding, ids = TokenEmbedding(9, 4, "sinusoidal", 1), torch.randint(0, 9, (2, 5))
    expected = embedding.tokens(ids) * 2 + sinusoids(torch.arange(5), 4)
    torch.testing.assert_close(embedding(ids), expected)


@given(ids=st.lists(st.integers(0, 29), max_size=40))
def test_adaptive_vectors_are_those_of_their_band_mapped_up(ids):
    made = AdaptiveEmbedding(30, 8, [4, 12], 2)
    found = made(torch.tensor(ids, dtype=torch.long))
    assert found.shape == (len(ids), 8)
    for i, vector in zip(ids, found, strict=True):
        if i < 4:
            expected = made.first.weight[i]
        else:
            band, start = (0, 4) if i < 12 else (1, 12)
            weights = made.bands[band]
            assert weights.vectors.weight.shape[1] == 8 // 2 ** (band + 1)
            expected = weights.vectors.weight[i - start] @ weights.up.weight
        torch.testing.assert_close(vector, expected)


def test_adaptive_input_compiles_and_learns_in_every_band():
    torch._dynamo.reset()
    made, ids = AdaptiveEmbedding(30, 8, [4, 12], 2), torch.arange(30).view(2, 15)
    compiled = torch.compile(made, backend="aot_eager")
    torch.testing.assert_close(compiled(ids), made(ids))
    made(ids).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in made.parameters())


@pytest.mark.parametrize("cutoffs", [[], [0, 5], [5, 5], [5, 30], [9, 4]])
def test_cutoffs_that_make_no_bands_are_refused(cutoffs):
    with pytest.raises(ValueError, match="expected to rise from above 0 to 30"):
        AdaptiveEmbedding(30, 8, cutoffs)


def test_adaptive_input_refuses_what_it_cannot_hold():
    with pytest.raises(ValueError, match="cannot be divided"):
        AdaptiveEmbedding(30, 8, [4, 12], 4)
