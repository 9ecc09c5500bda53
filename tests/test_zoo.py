"""Laws of every attention mechanism, read off its declared traits."""

import math
import re
import sys
from itertools import pairwise
from pathlib import Path

import dense_blocks
import dense_exact
import dense_landmarks
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from leapformer import LeapState, Visible
from leapformer.layers import MultiHeadAttention, TransformerBlock
from leapformer.timing import peak_bytes
from leapformer.zoo import ATTENTIONS, attention_class
from leapformer.zoo.base import EncoderAttention
from leapformer.zoo.linear import LinearAttention

BATCH, HEADS, WIDTH, VALUE_WIDTH, MAX_LENGTH = 2, 2, 8, 3, 150
DENSE = dense_exact.DENSE | dense_landmarks.DENSE | dense_blocks.DENSE
MECHANISMS = {**ATTENTIONS, "leap+learned_length": ATTENTIONS["leap"]}
OPTIONS = dense_exact.OPTIONS | dense_landmarks.OPTIONS | dense_blocks.OPTIONS
LAWFUL = settings(max_examples=40, deadline=None, derandomize=True, database=None)


def having(**traits):
    """Names of the mechanisms with these traits."""
    return [
        name
        for name, cls in MECHANISMS.items()
        if all(getattr(cls.traits, trait) == value for trait, value in traits.items())
    ]


def make(name, max_length=MAX_LENGTH, dtype=torch.float64):
    torch.manual_seed(0)
    return MECHANISMS[name](HEADS, WIDTH, max_length, **OPTIONS.get(name, {})).to(dtype)


def make_inputs(queries, keys, dtype=torch.float64, batch=BATCH):
    torch.manual_seed(queries + 1000 * keys)
    shapes = [(queries, WIDTH), (keys, WIDTH), (keys, VALUE_WIDTH)]
    return [torch.randn(batch, HEADS, *shape, dtype=dtype, requires_grad=True) for shape in shapes]


def gradients_of(y, inputs, direction=None):
    """Zeros for an input without influence: keys, where queries are the keys."""
    return torch.autograd.grad(y, inputs, direction, allow_unused=True, materialize_grads=True)


@st.composite
def a_call(draw, name):
    """N, S, a visibility, and the same visibility as n_i."""
    traits = MECHANISMS[name].traits
    queries = draw(st.integers(1, MAX_LENGTH))
    keys = draw(st.integers(1, MAX_LENGTH)) if traits.cross else queries
    kind = draw(
        st.sampled_from(["all", "causal", "chunks", "wait_k"] if traits.causal else ["all"])
    )
    a, b = draw(st.integers(1, 9)), draw(st.integers(0, 5))
    visible = {
        "all": "all",
        "causal": "causal",
        "chunks": Visible.chunks(a, lookahead=b),
        "wait_k": Visible.wait_k(b, ratio=a),
    }[kind]
    counts = {
        "all": [keys] * queries,
        "causal": [i + 1 for i in range(queries)],
        "chunks": [(i // a + 1) * a + b for i in range(queries)],
        "wait_k": [a * (b + i) for i in range(queries)],
    }[kind]
    return queries, keys, visible, counts


@pytest.mark.parametrize("name", MECHANISMS)
@LAWFUL
@given(data=st.data())
def test_equals_its_dense_formula_with_all_gradients(name, data):
    queries, keys, visible, counts = data.draw(a_call(name))
    attention, (q, k, v) = make(name), make_inputs(queries, keys)
    seen = torch.arange(keys) < torch.tensor(counts)[:, None]
    inputs = [q, k, v, *attention.parameters()]
    found = attention(q, k, v, visible=visible)
    expected = DENSE[name](attention, q, k, v, seen)
    torch.testing.assert_close(found, expected)
    direction = torch.randn_like(found)
    torch.testing.assert_close(
        gradients_of(found, inputs, direction),
        gradients_of(expected, inputs, direction),
    )


VISIBLE_BY_NAME = [
    (name, visible)
    for name, cls in ATTENTIONS.items()
    for visible in (["all", "causal"] if cls.traits.causal else ["all"])
]


def garbage(name):
    """What may stand at masked keys: whatever one likes, but for forms with a matrix of weights."""
    anything = issubclass(MECHANISMS[name], LinearAttention | EncoderAttention)
    return [0.0, 1e4, -1e4] + ([math.nan, math.inf, -math.inf] if anything else [])


def some_keys(name, length):
    """A mask [B, length] with holes, or where those are refused, with padding on the right."""
    if MECHANISMS[name].traits.right_padded:
        return torch.arange(length) < torch.tensor([[length - 2], [length // 2]])
    return torch.rand(BATCH, length) < 0.5


@pytest.mark.parametrize(("name", "visible"), VISIBLE_BY_NAME)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_masked_keys_change_nothing_bit_for_bit(name, visible, dtype):
    attention, (q, k, v) = make(name, dtype=dtype), make_inputs(9, 9, dtype)
    key_mask = some_keys(name, 9)
    padding = ~key_mask[:, None, :, None]
    expected = attention(q, k, v, visible=visible, key_mask=key_mask)
    for value in garbage(name):
        bad_k, bad_v = k.masked_fill(padding, value), v.masked_fill(padding, value)
        found = attention(q, bad_k, bad_v, visible=visible, key_mask=key_mask)
        assert torch.equal(found, expected), value
    assert not torch.allclose(attention(q, k, v, visible=visible), expected)


@pytest.mark.parametrize("name", ATTENTIONS)
def test_masked_keys_change_no_gradient_and_get_none(name):
    attention, (q, k, v) = make(name), make_inputs(9, 9)
    key_mask = some_keys(name, 9)
    padding = ~key_mask[:, None, :, None]

    def gradients(value):
        inputs = [q, *(x.detach().masked_fill(padding, value).requires_grad_() for x in (k, v))]
        y = attention(*inputs, key_mask=key_mask)
        return gradients_of(y.sum(), [*inputs, *attention.parameters()])

    expected = gradients(0.0)
    for value in garbage(name):
        found = gradients(value)
        for x in found[1:3]:
            assert x.masked_select(padding).eq(0).all(), value
        torch.testing.assert_close(
            found, expected, msg=lambda text, value=value: f"{value}: {text}"
        )


@pytest.mark.parametrize(("name", "visible"), VISIBLE_BY_NAME)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_padded_batch_equals_each_sequence_alone(name, visible, side):
    if side == "left" and MECHANISMS[name].traits.right_padded:
        with pytest.raises(ValueError, match="pad on the right"):
            make(name)(*make_inputs(3, 3), key_mask=torch.arange(3).expand(BATCH, -1) > 0)
        return
    lengths, longest = [61, 40, 9, 4, 1], 61
    attention, (q, k, v) = make(name), make_inputs(longest, longest, batch=5)
    place = torch.arange(longest) if side == "right" else torch.arange(longest).flip(0)
    key_mask = place < torch.tensor(lengths)[:, None]
    together = attention(q, k, v, visible=visible, key_mask=key_mask)
    for row, real in enumerate(key_mask):
        alone = attention(
            q[row : row + 1, :, real],
            k[row : row + 1, :, real],
            v[row : row + 1, :, real],
            visible=visible,
        )
        torch.testing.assert_close(together[row : row + 1, :, real], alone)


@pytest.mark.parametrize(("name", "visible"), VISIBLE_BY_NAME)
def test_a_fully_padded_row_is_finite_with_finite_gradients(name, visible):
    attention, inputs = make(name, dtype=torch.float32), make_inputs(9, 9, torch.float32)
    key_mask = torch.tensor([[True] * 9, [False] * 9])
    y = attention(*inputs, visible=visible, key_mask=key_mask)
    torch.testing.assert_close(
        y[:1], attention(*(x[:1] for x in inputs), visible=visible, key_mask=key_mask[:1])
    )
    for x in (y, *gradients_of(y.sum(), [*inputs, *attention.parameters()])):
        assert x.isfinite().all()


CUTS = st.lists(st.integers(1, 140), min_size=1, max_size=4)


@pytest.mark.parametrize("name", having(causal=True))
@LAWFUL
@given(pieces=CUTS)
def test_any_cut_into_pieces_equals_one_causal_call(name, pieces):
    length = sum(pieces)
    attention, (q, k, v) = make(name, max_length=length), make_inputs(length, length)
    expected, expected_state = attention(q, k, v, visible="causal", return_state=True)
    state, start, parts = None, 0, []
    for piece in pieces:
        now = slice(start, start + piece)
        part, state = attention(
            *(x[:, :, now] for x in (q, k, v)),
            visible="causal",
            state=state,
            return_state=True,
            positions=torch.arange(start, start + piece),
        )
        parts.append(part)
        start += piece
    torch.testing.assert_close(torch.cat(parts, 2), expected)
    torch.testing.assert_close(vars(state), vars(expected_state))


@pytest.mark.parametrize("name", having(causal=True))
def test_a_state_is_as_large_as_the_traits_say(name):
    attention, inputs = make(name, max_length=20), make_inputs(20, 20)
    _, short = attention(*(x[:, :, :10] for x in inputs), visible="causal", return_state=True)
    _, long = attention(*inputs, visible="causal", return_state=True)
    sizes = [sum(x.numel() for x in vars(state).values()) for state in (short, long)]
    assert (sizes[0] == sizes[1]) == MECHANISMS[name].traits.streaming


@pytest.mark.parametrize("name", having(causal=True))
def test_a_state_is_selected_moved_and_detached(name):
    attention, inputs = make(name), make_inputs(9, 9)
    inputs = [x.requires_grad_() for x in inputs]
    _, state = attention(*inputs, visible="causal", return_state=True)
    rows = torch.tensor([1, 1, 0])
    chosen = [x[rows] for x in inputs]
    _, expected = attention(*chosen, visible="causal", return_state=True)
    torch.testing.assert_close(vars(state.select(rows)), vars(expected))
    moved = vars(state.to("meta")).values()
    assert all(x.device.type == "meta" for x in moved)
    assert any(x.requires_grad for x in vars(state).values())
    assert not any(x.requires_grad for x in vars(state.detach()).values())


@pytest.mark.parametrize("name", having(causal=True))
@pytest.mark.parametrize("visible", ["causal", "all", "tensor"])
@pytest.mark.parametrize("masked", [False, True])
def test_packed_documents_equal_each_alone(name, visible, masked):
    sizes = [5, 1, 0, 60, 9]
    length, bounds = sum(sizes), torch.tensor([0, *sizes]).cumsum(0)
    attention, inputs = make(name), make_inputs(length, length, batch=1)
    key_mask = torch.rand(1, length) > 0.3 if masked else None
    if visible == "tensor":
        visible = torch.cat([torch.randint(0, n + 1, (n,)).sort().values for n in sizes])
    packed = attention(*inputs, visible=visible, key_mask=key_mask, cu_seqlens=bounds.int())
    for a, b in pairwise(bounds.tolist()):
        alone = attention(
            *(x[:, :, a:b] for x in inputs),
            visible=visible if isinstance(visible, str) else visible[a:b],
            key_mask=None if key_mask is None else key_mask[:, a:b],
        )
        torch.testing.assert_close(packed[:, :, a:b], alone)


@pytest.mark.parametrize("name", having(causal=False))
def test_what_cannot_hide_the_future_refuses_packed_documents(name):
    with pytest.raises(ValueError, match="packed documents"):
        make(name)(*make_inputs(3, 3, batch=1), cu_seqlens=torch.tensor([0, 3]))


@pytest.mark.parametrize("name", having(causal=True))
@LAWFUL
@given(pieces=CUTS)
def test_a_streamed_layer_and_block_equal_their_causal_calls(name, pieces):
    rotary = MECHANISMS[name].traits.rotary
    layer = MultiHeadAttention(make(name, max_length=sum(pieces)), rotary=rotary)
    block = TransformerBlock(layer, HEADS * WIDTH, 5, convolution=3, feed_forward_convolution=2)
    torch.nn.init.normal_(block.convolution.taps)
    torch.nn.init.normal_(block.feed_forward_convolution.taps)
    x = torch.randn(BATCH, sum(pieces), HEADS * WIDTH, dtype=torch.float64)
    real = torch.rand(BATCH, sum(pieces)) > 0.3
    for module in (layer.double(), block.double()):
        state, start, parts = None, 0, []
        for piece, mask in zip(x.split(pieces, 1), real.split(pieces, 1), strict=True):
            part, state = module(
                piece,
                visible="causal",
                key_mask=mask,
                positions=torch.arange(start, start + piece.shape[1]),
                state=state,
                return_state=True,
            )
            parts.append(part)
            start += piece.shape[1]
        whole = module(x, visible="causal", key_mask=real)
        torch.testing.assert_close(torch.cat(parts, 1)[real], whole[real])


@pytest.mark.parametrize("name", having(cross=True))
def test_a_layer_attends_to_a_context_of_another_length(name):
    layer = MultiHeadAttention(make(name)).double()
    x, context = torch.randn(2, BATCH, 9, HEADS * WIDTH, dtype=torch.float64)
    key_mask = torch.arange(9) < torch.tensor([[5], [9]])
    y = layer(x, context, key_mask=key_mask)
    torch.testing.assert_close(layer(x[:1], context[:1, :5]), y[:1])
    torch.testing.assert_close(layer(x[1:], context[1:]), y[1:])


@pytest.mark.parametrize("name", having(cross=False))
def test_what_attends_within_one_sequence_refuses_another(name):
    with pytest.raises(ValueError, match="within one sequence"):
        make(name)(*make_inputs(3, 4))


@pytest.mark.parametrize("name", having(causal=False))
def test_what_cannot_hide_the_future_refuses_to(name):
    with pytest.raises(ValueError, match='visible must be "all"'):
        make(name)(*make_inputs(3, 3), visible="causal")


@pytest.mark.parametrize("name", having(causal=False))
def test_what_cannot_hide_the_future_refuses_a_state(name):
    attention, inputs = make(name), make_inputs(3, 3)
    state = LeapState.empty(BATCH, HEADS, WIDTH, VALUE_WIDTH, dtype=torch.float64)
    with pytest.raises(ValueError, match="state"):
        attention(*inputs, state=state)
    with pytest.raises(ValueError, match="state"):
        attention(*inputs, return_state=True)
    with pytest.raises(ValueError, match="state"):
        MultiHeadAttention(attention).double()(
            torch.zeros(1, 3, HEADS * WIDTH).double(), return_state=True
        )


@pytest.mark.parametrize("name", having(fixed_length=True))
def test_a_fixed_length_must_be_given_and_bounds_the_sequence(name):
    with pytest.raises(ValueError, match="max_length"):
        make(name, max_length=None)
    make(name, max_length=5)(*make_inputs(5, 5))
    with pytest.raises(ValueError, match=r"max_length (of|is) 5"):
        make(name, max_length=5)(*make_inputs(6, 6))


@pytest.mark.parametrize("name", having(fixed_length=False))
def test_without_a_fixed_length_any_length_will_do(name):
    q, k, v = make_inputs(6, 6)
    y = make(name, max_length=None)(q, k, v)
    torch.testing.assert_close(y, make(name, max_length=2)(q, k, v))


def test_an_unknown_name_raises_with_the_nearest_one():
    with pytest.raises(ValueError, match=r"'laep' \(did you mean leap\?\)"):
        attention_class("laep")
    with pytest.raises(ValueError, match=", ".join(ATTENTIONS)):
        attention_class("???")


@pytest.mark.parametrize("name", ATTENTIONS)
def test_a_known_name_gives_its_class(name):
    assert attention_class(name) is ATTENTIONS[name]


@pytest.mark.parametrize("cls", ATTENTIONS.values())
def test_declares_its_own_traits(cls):
    assert "traits" in vars(cls)


@pytest.mark.parametrize("name", ["kernelized", "skyformer", "nystromformer"])
@pytest.mark.parametrize("scale", [1, 3])
def test_what_subtracts_or_inverts_does_so_in_full_precision(name, scale):
    attention = MECHANISMS[name](HEADS, 32).float()
    x = [scale * torch.randn(2, HEADS, 200, 32).bfloat16() for _ in range(3)]
    expected = attention(*(each.float() for each in x))
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = attention(*(each.float() for each in x))
    for found in (attention(*x), under_autocast):
        assert found.dtype == torch.bfloat16
        assert (found.float() - expected).norm() < 0.01 * scale * expected.norm()


def peak_of_training(name, length):
    attention = MECHANISMS[name](HEADS, WIDTH, length).double()
    inputs = make_inputs(length, length, batch=1)
    return peak_bytes(lambda: attention(*inputs).sum().backward())


@pytest.mark.parametrize("name", having(linear=True))
def test_what_is_linear_holds_twice_as_much_at_twice_the_length(name):
    short, long = (peak_of_training(name, length) for length in (2048, 4096))
    assert long < 2.4 * short


def test_the_measure_of_memory_sees_what_is_not_linear():
    short, long = (peak_of_training("kernelized", length) for length in (500, 1000))
    assert long > 3.5 * short


DOCS = Path(__file__).parents[1] / "docs" / "zoo.md"


def test_the_docs_show_the_traits_of_every_mechanism():
    rows = re.findall(r"^\| (\w+) \|(.*)\|$", DOCS.read_text(), re.MULTILINE)
    columns = ("linear", "causal", "cross", "streaming", "fixed_length", "right_padded")
    found = {name: [cell.strip() == "yes" for cell in row.split("|")] for name, row in rows[1:]}
    assert found == {
        name: [getattr(cls.traits, column) for column in columns]
        for name, cls in ATTENTIONS.items()
    }


def test_the_mechanism_that_the_docs_add_works_in_a_model(monkeypatch):
    (example,) = re.findall(r"^```python\n(.*?)^```", DOCS.read_text(), re.MULTILINE | re.DOTALL)
    monkeypatch.setitem(ATTENTIONS, "mean", None)  # taken out again after the test
    exec(compile(example, str(DOCS), "exec"), {})
    attention, (q, k, v) = ATTENTIONS["mean"](HEADS, WIDTH), make_inputs(4, 4)
    key_mask = torch.tensor([[True] * 4, [True, True, False, False]])
    expected = [v[0].mean(1, keepdim=True), v[1, :, :2].mean(1, keepdim=True)]
    found = attention(q, k, v, key_mask=key_mask)
    torch.testing.assert_close(found, torch.stack(expected).expand(v.shape))
    layer = MultiHeadAttention(attention).double()
    assert layer(torch.randn(2, 4, HEADS * WIDTH, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("cls", ATTENTIONS.values())
def test_has_a_file_of_its_own_that_names_its_paper(cls):
    assert [c for c in ATTENTIONS.values() if c.__module__ == cls.__module__] == [cls]
    assert re.search(r"arXiv \d{4}\.\d{5}", sys.modules[cls.__module__].__doc__)
