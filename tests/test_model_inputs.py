"""What models refuse, and with which sentence: nothing is left aside without a word."""

import pytest
import torch

from leapformer import LeaPformerConfig, LeaPformerForCausalLM, LeaPformerModel
from leapformer.models import LeaPformerCache


def make(cls=LeaPformerForCausalLM, **others):
    torch.manual_seed(0)
    sizes = {"vocab_size": 30, "hidden_size": 8, "num_attention_heads": 2, "num_hidden_layers": 2}
    return cls(
        LeaPformerConfig(
            **{**sizes, "causal": True, "short_convolution": 3, "feed_forward_convolution": 2}
            | others
        )
    ).eval()


IDS = torch.arange(20).view(2, 10)
CALLS = {
    "ids of three axes": ({"input_ids": IDS[None]}, r"input_ids are \[1, 2, 10\]"),
    "ids of one axis": ({"input_ids": IDS[0]}, r"input_ids are \[10\]"),
    "vectors of another width": (
        {"input_ids": None, "inputs_embeds": torch.zeros(2, 10, 7)},
        r"\[2, 10, 7\]: expected \[B, N, hidden_size = 8\]",
    ),
    "positions of another length": (
        {"position_ids": torch.arange(3)[None]},
        r"position_ids are \[1, 3\]: expected \[N\] or \[B, N\] = \[2, 10\]",
    ),
    "rows that begin anew": (
        {"position_ids": torch.arange(10).remainder(5).expand(2, -1)},
        "begin at 0 anew inside a row of a batch",
    ),
    "bounds of two axes": (
        {"input_ids": IDS[:1], "cu_seq_lens_q": torch.tensor([[0, 10]])},
        r"cu_seq_lens_q is torch.int64 \[1, 2\]",
    ),
    "bounds of several rows": ({"cu_seq_lens_q": torch.tensor([0, 10])}, "packed into one row"),
    "a matrix of weights": ({"output_attentions": True}, "no matrix of weights is made here"),
}


@pytest.mark.parametrize("cls", [LeaPformerModel, LeaPformerForCausalLM])
@pytest.mark.parametrize("call", CALLS)
def test_what_is_no_input_is_refused(call, cls):
    given, message = CALLS[call]
    with pytest.raises(ValueError, match=message):
        make(cls)(**{"input_ids": IDS, **given})


@pytest.mark.parametrize("cutoffs", [None, [10, 20]])
@pytest.mark.parametrize(("wrong", "low", "high"), [(30, 0, 30), (-1, -1, 19)])
def test_ids_outside_the_vocabulary_are_refused(cutoffs, wrong, low, high):
    ids = IDS.clone()
    ids[0, 5] = wrong
    model = make(adaptive_cutoffs=cutoffs, adaptive_factor=2, pad_token_id=None)
    with pytest.raises(IndexError, match=rf"lie in {low}\.\.{high}, not in 0\.\.29"):
        model(ids)


@pytest.mark.parametrize("name", ["input_ids", "position_ids"])
def test_numbers_that_are_not_whole_are_refused(name):
    with pytest.raises(TypeError, match=f"{name} are torch.float32: expected whole numbers"):
        make()(**{"input_ids": IDS, name: torch.zeros(2, 10)})


@pytest.mark.parametrize("cutoffs", [None, [10, 20]])
def test_labels_are_one_a_token_and_want_all_logits(cutoffs):
    model = make(adaptive_cutoffs=cutoffs, adaptive_factor=2, pad_token_id=None)
    with pytest.raises(ValueError, match=r"labels are \[2, 9\]: expected one for each token"):
        model(IDS, labels=IDS[:, 1:])
    with pytest.raises(ValueError, match="leave out logits_to_keep"):
        model(IDS, labels=IDS, logits_to_keep=1)


def test_a_cache_of_a_deeper_model_is_refused():
    cache = LeaPformerCache()
    make(num_hidden_layers=3)(IDS, cache=cache)
    with pytest.raises(ValueError, match="of a model of 3 layers, and this one has 2"):
        make()(IDS, cache=cache)


@pytest.mark.parametrize("shape", ["one axis", "one row"])
def test_positions_of_one_row_serve_all(shape):
    places = torch.arange(10)
    model = make(position_embedding="sinusoidal")
    given = model(IDS, position_ids=places if shape == "one axis" else places[None])
    torch.testing.assert_close(given.logits, model(IDS).logits)
    single = model(IDS[:, :1], position_ids=places[:1])
    torch.testing.assert_close(single.logits, model(IDS[:, :1]).logits)
