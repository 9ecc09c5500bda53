"""Bad input gets one clear line that names the cure."""

import pytest
import torch
from cases import BACKENDS

from leapformer import LeapState, Ramp, Visible, leap_attention

B, H, N, S, D, E = 2, 3, 4, 5, 6, 7


def arguments(**changes):
    given = {
        "q": torch.randn(B, H, N, D),
        "k": torch.randn(B, H, S, D),
        "v": torch.randn(B, H, S, E),
        "p_q": torch.rand(B, H, N),
        "p_k": torch.rand(B, H, S),
    }
    return given | changes


BAD = {
    "three axes": ({"q": torch.randn(H, N, D)}, ValueError, "q is .*four axes"),
    "integers": ({"q": torch.ones(B, H, N, D).long()}, TypeError, r"q is torch.int64.*\.float\(\)"),
    "dtypes": ({"v": torch.randn(B, H, S, E).double()}, TypeError, "v is .*must share dtype"),
    "key width": ({"k": torch.randn(B, H, S, D + 1)}, ValueError, "same B, H and D"),
    "heads": ({"q": torch.randn(B, H + 1, N, D)}, ValueError, "same B, H and D"),
    "value length": ({"v": torch.randn(B, H, S + 1, E)}, ValueError, "k is .* and v is"),
    "one proportion": ({"p_k": None}, ValueError, "both sides or to neither"),
    "proportions' shape": ({"p_q": torch.rand(B, H, N + 1)}, ValueError, "p_q is .*expected"),
    "proportions' dtype": ({"p_k": torch.ones(B, H, S).long()}, TypeError, "p_k is torch.int64"),
    "a number": ({"p_q": 0.5}, TypeError, "p_q is float: expected a tensor, a LeaP or None"),
    "a ramp": ({"p_k": Ramp(99)}, TypeError, "p_k is Ramp: expected a tensor, a LeaP or None"),
    "above one": ({"p_q": torch.full((B, H, N), 1.1)}, ValueError, r"p_q leaves \[0, 1\]"),
    "below zero": ({"p_k": torch.full((B, H, S), -0.1)}, ValueError, r"p_k leaves \[0, 1\]"),
    "mask's shape": ({"key_mask": torch.ones(B, N).bool()}, ValueError, r"expected \[B, S\]"),
    "mask's dtype": ({"key_mask": torch.ones(B, S)}, TypeError, "expected a bool tensor"),
    "visibility's name": ({"visible": "casual"}, ValueError, "did you mean causal"),
    "visibility's shape": ({"visible": torch.arange(N + 1)}, ValueError, "visible is .*expected"),
    "visibility's dtype": ({"visible": torch.rand(N)}, TypeError, "integer tensor"),
    "a mask for visibility": ({"visible": torch.ones(N).bool()}, TypeError, "integer tensor"),
    "decreasing": ({"visible": torch.tensor([3, 2, 2, 3])}, ValueError, "visible decreases"),
    "negative": ({"visible": torch.tensor([-1, 0, 1, 2])}, ValueError, r"must lie in 0\.\.S = 5"),
    "beyond": ({"visible": torch.tensor([1, 2, 3, 6])}, ValueError, r"must lie in 0\.\.S = 5"),
    "eps that float32 loses": ({"eps": 1e-50}, ValueError, "eps is 1e-50"),
    "a list for a tensor": ({"q": [1.0]}, TypeError, "q is list: expected a tensor"),
    "a list for a mask": ({"key_mask": [True]}, TypeError, "key_mask is list"),
    "a tensor for a state": ({"state": torch.ones(1)}, TypeError, "expected a LeapState"),
    "nothing for visibility": ({"visible": None}, TypeError, "a Visible rule, or an integer"),
    "eps": ({"eps": 0.0}, ValueError, "eps is 0.0.*positive"),
    "feature map": ({"feature_map": "rleu"}, ValueError, "did you mean relu"),
    "backend": ({"backend": "tritn"}, ValueError, "unknown backend 'tritn'.*chunked"),
    "state's shape": ({"state": LeapState.empty(B, H, D, E + 1)}, ValueError, "state's sums are"),
    "state without proportions": (
        {"state": LeapState.empty(B, H, D, E, proportions=False)},
        ValueError,
        "with proportions",
    ),
    "state's dtype": (
        {"state": LeapState.empty(B, H, D, E, dtype=torch.float64)},
        TypeError,
        "need one of torch.float32",
    ),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", BAD)
def test_bad_arguments_raise_and_say_what_to_do(name, backend):
    changes, error, message = BAD[name]
    with pytest.raises(error, match=message) as raised:
        leap_attention(**{"backend": backend} | arguments(**changes))
    assert "\n" not in str(raised.value)


def test_a_decreasing_row_of_many_raises():
    counts = torch.tensor([[1, 2, 3, 4], [1, 2, 1, 4]])
    with pytest.raises(ValueError, match="visible decreases"):
        leap_attention(**arguments(visible=counts))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Visible.chunks(0), "size must be at least 1"),
        (lambda: Visible.chunks(4, -1), "at least 0"),
        (lambda: Visible.wait_k(-1, 2), "at least 0"),
        (lambda: Visible.wait_k(3, 0), "ratio is 0"),
        (lambda: Visible.wait_k(1.5), "whole numbers"),
        (lambda: Visible.chunks(1.5), "whole numbers"),
    ],
)
def test_rules_that_make_no_sense_raise(wrong, message):
    with pytest.raises((ValueError, TypeError), match=message):
        wrong()


def test_a_state_checks_what_it_is_given():
    state = LeapState.empty(B, H, D, E)
    given = arguments()
    with pytest.raises(ValueError, match="with proportions"):
        state.extend(given["k"], given["v"])
    with pytest.raises(ValueError, match="with proportions"):
        state.read(given["q"])
    with pytest.raises(ValueError, match=r"p_k leaves \[0, 1\]"):
        state.extend(given["k"], given["v"], given["p_k"] + 1)
    with pytest.raises(ValueError, match=r"k is .* and v is"):
        state.extend(given["k"][:, :, 1:], given["v"], given["p_k"])
    with pytest.raises(TypeError, match=r"q is torch.int64"):
        state.read(given["q"].long(), given["p_q"])
