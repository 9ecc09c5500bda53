"""Laws of the language model and its cache, for every attention that can hide the future."""

import copy
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    DataCollatorWithFlattening,
    DynamicCache,
    TextStreamer,
)

from leapformer import LeaPformerConfig, LeaPformerForCausalLM, LeaPformerModel
from leapformer.models import LeaPformerCache
from leapformer.models.base import LeaPformerBlock
from leapformer.models.cache import CACHE_NAME, CACHE_NAMES
from leapformer.zoo import ATTENTIONS

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
CAUSAL = [name for name, kind in ATTENTIONS.items() if kind.traits.causal]
CAUSAL += ["leap+learned_length"]
every_attention = pytest.mark.parametrize("attention", CAUSAL)
PAD, EOS = 0, 1
CLOSE = {"rtol": 1e-4, "atol": 1e-4}
ADAPTIVE = {"adaptive_cutoffs": [10, 30], "adaptive_factor": 2, "pad_token_id": None}


def make(attention="leap", **others):
    """A model whose generation is not one token over and over; with short convolutions, and with
    rotary positions where they apply."""
    torch.manual_seed(0)
    attention, _, option = attention.partition("+")
    rotary = ATTENTIONS[attention].traits.rotary
    sizes = {
        "vocab_size": 50,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 128,
        "position_embedding": "rotary" if rotary else "sinusoidal",
        "short_convolution": 3,
        "feed_forward_convolution": 2,
        "qk_norm": True,
        "initializer_range": 0.5,
        "pad_token_id": PAD,
        "bos_token_id": 2,
        "eos_token_id": EOS,
        "attention_options": {option: True} if option else None,
        "tie_word_embeddings": False,  # a random model whose input is its output says it again
    }
    model = LeaPformerForCausalLM(LeaPformerConfig(attention=attention, **(sizes | others))).eval()
    for name, parameter in model.named_parameters():
        if "taps" in name:
            nn.init.normal_(parameter, std=0.5)
        if (
            "_proj.weight" in name or "leap" in name
        ):  # what comes next hangs on all that came before
            nn.init.normal_(parameter, std=0.5)
    return model


def make_ids(batch=3, length=12):
    return torch.randint(3, 50, (batch, length), generator=torch.Generator().manual_seed(0))


def left_padded(batch=3, length=12):
    """Rows of different lengths, padding first, and their mask. At padding stands a token, whose
    vector, unlike that of PAD, is not zero."""
    ids = make_ids(batch, length)
    mask = torch.arange(length) >= torch.tensor([5, 2, 0, 7][:batch]).unsqueeze(1)
    return ids.where(mask, 7), mask.long()


WAYS = {
    "greedy": {},
    "sampling": {"do_sample": True, "top_k": 20},
    "beams": {"num_beams": 3},
    "several beams": {"num_beams": 4, "num_return_sequences": 3, "length_penalty": 0.5},
    "several samples": {"do_sample": True, "num_return_sequences": 3},
}


def check_cached_equals_uncached(model, way, padded):
    ids, mask = left_padded() if padded else (make_ids(), None)
    found = []
    for use_cache in (True, False):
        torch.manual_seed(1)
        made = model.generate(
            ids, attention_mask=mask, max_new_tokens=16, use_cache=use_cache, **WAYS[way]
        )
        found.append(made)
    assert torch.equal(*found)
    assert len(found[0][:, ids.shape[1] :].unique()) > 3  # not one token over and over


def check_left_padded_equals_alone(model, use_cache):
    ids, mask = left_padded()
    options = {"max_new_tokens": 12, "use_cache": use_cache}
    together = model.generate(ids, attention_mask=mask, **options)
    for row, new in enumerate(together[:, ids.shape[1] :]):
        prompt = ids[row : row + 1, mask[row].bool()]
        alone = model.generate(prompt, **options)[0, prompt.shape[1] :]
        assert new[: len(alone)].tolist() == alone.tolist()
        assert (new[len(alone) :] == PAD).all()


@every_attention
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("padded", [False, True])
def test_generation_with_a_cache_equals_generation_without(attention, way, padded):
    check_cached_equals_uncached(make(attention), way, padded)


@every_attention
@pytest.mark.parametrize("use_cache", [False, True])
def test_a_left_padded_prompt_goes_on_as_it_does_alone(attention, use_cache):
    check_left_padded_equals_alone(make(attention), use_cache)


def without(name):
    """A block's forward pass without that part of its view."""
    whole = LeaPformerBlock.forward
    return lambda self, x, **view: whole(self, x, **{**view, name: None})


BREAKAGES = {
    "padding is seen": (LeaPformerBlock, "forward", without("key_mask")),
    "states are forgotten": (LeaPformerBlock, "forward", without("state")),
    "beams stay where they are": (LeaPformerCache, "reorder_cache", lambda self, rows: None),
}


@every_attention
@pytest.mark.parametrize(
    ("breakage", "law", "how"),
    [
        ("padding is seen", check_left_padded_equals_alone, {"use_cache": True}),
        *(
            ("states are forgotten", check_cached_equals_uncached, {"way": way, "padded": False})
            for way in WAYS
        ),
        ("beams stay where they are", check_cached_equals_uncached, {"way": "beams", "padded": 0}),
    ],
)
def test_the_laws_of_generation_can_fail(attention, breakage, law, how, monkeypatch):
    monkeypatch.setattr(*BREAKAGES[breakage])
    with pytest.raises(AssertionError):
        law(make(attention), **how)


@every_attention
@settings(max_examples=25)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5), whole_mask=st.booleans())
def test_a_prefill_in_any_pieces_equals_one_call(attention, pieces, whole_mask):
    model = make(attention)
    ids, mask = left_padded(3, sum(pieces))
    expected = model(ids, attention_mask=mask, use_cache=False).logits
    cache, end, parts = LeaPformerCache(), 0, []
    for piece in pieces:
        start, end = end, end + piece
        given_mask = mask[:, :end] if whole_mask else mask[:, start:end]
        out = model(ids[:, start:end], attention_mask=given_mask, cache=cache)
        assert out[CACHE_NAME] is cache
        parts.append(out.logits)
    real = mask.bool()
    torch.testing.assert_close(torch.cat(parts, 1)[real], expected[real], **CLOSE)
    assert cache.get_seq_length() == sum(pieces)
    assert cache.seen.tolist() == mask.sum(1).tolist()


@every_attention
@settings(max_examples=25)
@given(pieces=st.lists(st.integers(1, 9), min_size=1, max_size=5), seed=st.integers(0, 999))
def test_padding_may_stand_anywhere(attention, pieces, seed):
    model, ids = make(attention), make_ids(3, sum(pieces))
    real = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    cache, parts = LeaPformerCache(), []
    for part, mask in zip(ids.split(pieces, 1), real.split(pieces, 1), strict=True):
        parts.append(model(part, attention_mask=mask, cache=cache).logits)
    for row, logits in enumerate(torch.cat(parts, 1)):
        alone = ids[row : row + 1, real[row]]
        if alone.numel():
            torch.testing.assert_close(logits[real[row]], model(alone).logits[0], **CLOSE)


@every_attention
def test_what_stands_at_padding_changes_no_real_token(attention):
    model, (ids, mask) = make(attention), left_padded()
    expected = model(ids, attention_mask=mask).logits[mask.bool()]
    other = ids.where(mask.bool(), 9)
    assert torch.equal(model(other, attention_mask=mask).logits[mask.bool()], expected)
    assert not torch.allclose(model(ids).logits[mask.bool()], expected, atol=1e-2)


@every_attention
def test_the_future_never_changes_the_past(attention):
    model, ids = make(attention), make_ids()
    changed = ids.clone()
    changed[:, 7:] = (ids[:, 7:] - 3 + 11) % 47 + 3
    before, after = model(ids).logits, model(changed).logits
    torch.testing.assert_close(before[:, :7], after[:, :7])
    assert not torch.allclose(before[:, 7:], after[:, 7:], atol=1e-2)


@every_attention
@pytest.mark.parametrize("full", [True, False])
def test_generation_goes_on_from_a_cache(attention, full):
    """Either with all tokens so far, or with the new ones alone."""
    model, ids = make(attention), make_ids()
    model.generation_config.eos_token_id = None
    expected = model.generate(ids, max_new_tokens=20, use_cache=False)
    first = model.generate(ids, max_new_tokens=8, return_dict_in_generate=True)
    cache = first[CACHE_NAME]
    assert cache.get_seq_length() == ids.shape[1] + 7  # the last token was not read yet
    text = first.sequences
    inputs = text if full else text[:, -1:]
    mask = torch.ones_like(text)
    made = model.generate(inputs, attention_mask=mask, max_new_tokens=12, **{CACHE_NAME: cache})
    assert made[:, inputs.shape[1] :].tolist() == expected[:, text.shape[1] :].tolist()
    assert cache.get_seq_length() == expected.shape[1] - 1  # and nothing was read twice


def test_a_vocabulary_grows_unless_it_is_adaptive():
    model, ids = make(), make_ids()
    before = model(ids).logits
    model.resize_token_embeddings(53)
    torch.testing.assert_close(model(ids).logits[..., :50], before)
    with pytest.raises(NotImplementedError, match="an adaptive vocabulary is cut into bands"):
        make(**ADAPTIVE).resize_token_embeddings(53)


@pytest.mark.parametrize("name", CACHE_NAMES)
def test_a_cache_may_be_given_under_either_name(name):
    model, ids, cache = make(), make_ids(), LeaPformerCache()
    whole = model(ids, use_cache=False).logits
    for part in ids.split(5, 1):
        out = model(part, **{name: cache})
        assert out[CACHE_NAME] is cache
    torch.testing.assert_close(out.logits, whole[:, -out.logits.shape[1] :], **CLOSE)
    with pytest.raises(ValueError, match="two names of one thing"):
        model(ids, cache=cache, past_key_values=cache)


@every_attention
@torch.no_grad()
def test_a_cache_is_copied_reset_and_used_twice(attention):
    model, ids = make(attention), make_ids()
    cache = model(ids[:, :5], use_cache=True)[CACHE_NAME]
    kept = copy.deepcopy(cache)
    first = model(ids[:, 5:], cache=cache).logits
    assert torch.equal(model(ids[:, 5:], cache=kept).logits, first)
    cache.reset()
    assert (cache.get_seq_length(), cache.seen, len(cache)) == (0, None, 0)
    torch.testing.assert_close(model(ids, cache=cache).logits[:, 5:], first, **CLOSE)


@every_attention
def test_rows_of_a_cache_are_reordered_selected_and_repeated(attention):
    model, (ids, mask) = make(attention), left_padded()
    rows = torch.tensor([2, 0, 0])
    for change, chosen in (
        (lambda cache: cache.reorder_cache(rows), rows),
        (lambda cache: cache.batch_select_indices(rows[:2]), rows[:2]),
        (lambda cache: cache.batch_repeat_interleave(2), torch.arange(3).repeat_interleave(2)),
    ):
        cache = model(ids[:, :8], attention_mask=mask[:, :8], use_cache=True)[CACHE_NAME]
        change(cache)
        assert cache.batch_size == len(chosen)
        found = model(ids[chosen, 8:], attention_mask=mask[chosen, 8:], cache=cache)
        expected = model(ids[chosen], attention_mask=mask[chosen]).logits[:, 8:]
        torch.testing.assert_close(found.logits, expected, **CLOSE)


@pytest.mark.parametrize(
    "attention", [n for n in CAUSAL if ATTENTIONS[n.split("+")[0]].traits.streaming]
)
def test_a_cache_never_grows_and_is_float32(attention):
    model = make(attention).to(torch.bfloat16)
    cache, sizes = LeaPformerCache(), []
    for length in (1, 30, 60):
        model(make_ids(2, length), cache=cache)
        kept = [(s.attention.sums, s.recent, s.recent_feed_forward) for s in cache.states]
        assert all(sums.dtype == torch.float32 for sums, *_ in kept)
        sizes.append(sum(x.numel() for parts in kept for x in parts))
    assert len(set(sizes)) == 1


def test_what_comes_out_is_streamed_token_by_token():
    class Pieces(TextStreamer):
        def __init__(self):
            self.seen = []

        def put(self, value):
            self.seen.append(value.flatten().tolist())

        def end(self):
            self.seen.append("end")

    model, ids, streamer = make(), make_ids(1), Pieces()
    made = model.generate(ids, max_new_tokens=6, min_new_tokens=6, streamer=streamer)
    assert streamer.seen[0] == ids[0].tolist()
    assert [t for piece in streamer.seen[1:-1] for t in piece] == made[0, 12:].tolist()
    assert len(streamer.seen) == 8


@every_attention
@pytest.mark.parametrize("told_by", ["bounds", "collator", "positions"])
def test_packed_documents_equal_each_alone_with_their_loss(attention, told_by):
    model = make(attention)
    documents = [ids[:n] for ids, n in zip(make_ids(4), (5, 1, 12, 9), strict=True)]
    sizes = [len(ids) for ids in documents]
    row = torch.cat(documents).unsqueeze(0)
    batch = {"input_ids": row, "labels": row, "cu_seq_lens_q": torch.tensor([0, *sizes]).cumsum(0)}
    if told_by != "bounds":
        collator = DataCollatorWithFlattening(
            return_flash_attn_kwargs=told_by == "collator", return_tensors="pt"
        )
        batch = collator([{"input_ids": ids.tolist()} for ids in documents])
    packed = model(**batch)
    alone = [model(ids.unsqueeze(0)).logits[0] for ids in documents]
    torch.testing.assert_close(packed.logits[0], torch.cat(alone), **CLOSE)
    losses = [
        nn.functional.cross_entropy(x[:-1], ids[1:], reduction="sum")
        for x, ids in zip(alone, documents, strict=True)
    ]
    expected = sum(losses) / sum(n - 1 for n in sizes)
    torch.testing.assert_close(packed.loss, expected, **CLOSE)
    packed.loss.backward()
    grads = [p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    expected.backward()
    for found, parameter in zip(grads, model.parameters(), strict=True):
        torch.testing.assert_close(found, parameter.grad, rtol=1e-3, atol=1e-4)


@every_attention
def test_gradient_checkpointing_gives_the_same_loss_and_gradients(attention):
    plain, checkpointed = make(attention).train(), make(attention).train()
    checkpointed.gradient_checkpointing_enable()
    for model in (plain, checkpointed):
        model.config.hidden_dropout_prob = 0.0
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        ids = make_ids()
        out = model(ids, labels=ids)
        assert CACHE_NAME not in out
        out.loss.backward()
    for a, b in zip(plain.parameters(), checkpointed.parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad)


@every_attention
def test_compiles_into_one_graph_equal_to_eager(attention):
    torch._dynamo.reset()
    model, ids = make(attention), make_ids()
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    found = compiled(ids, labels=ids, use_cache=False)
    expected = model(ids, labels=ids, use_cache=False)
    torch.testing.assert_close(found.logits, expected.logits)
    torch.testing.assert_close(found.loss, expected.loss)


@every_attention
@pytest.mark.parametrize("others", [{}, {"tie_word_embeddings": True}, ADAPTIVE])
def test_saved_and_loaded_through_auto_gives_identical_logits(attention, others, tmp_path):
    model, ids = make(attention, **others), make_ids()
    model.save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is LeaPformerForCausalLM
    assert torch.equal(loaded(ids).logits, model(ids).logits)
    count = [sum(p.numel() for p in m.parameters()) for m in (model, loaded)]
    assert count[0] == count[1]


def test_tied_embeddings_are_one_tensor_and_decoupled_ones_two():
    tied, decoupled = make(tie_word_embeddings=True), make()
    assert tied.lm_head.weight is tied.model.embedding.tokens.weight
    assert decoupled.lm_head.weight is not decoupled.model.embedding.tokens.weight
    assert LeaPformerConfig().tie_word_embeddings
    assert tied.num_parameters() == decoupled.num_parameters() - 50 * 16


@pytest.mark.parametrize("tied", [True, False])
def test_adaptive_output_is_a_distribution_and_its_loss_is_of_it(tied):
    model, ids = make(tie_word_embeddings=tied, **ADAPTIVE), make_ids()
    logits = model(ids).logits
    torch.testing.assert_close(logits.exp().sum(-1), torch.ones(ids.shape))
    labels = ids.clone()
    labels[:, 3:5] = -100
    out = model(ids, labels=labels)
    assert out.logits is None
    expected = nn.functional.nll_loss(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, expected)
    summed = model(ids, labels=labels, num_items_in_batch=7).loss
    torch.testing.assert_close(summed, expected * (labels[:, 1:] != -100).sum() / 7)
    out.loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    shared = model.lm_head.tail[1][1].weight is model.model.embedding.tokens.bands[1].vectors.weight
    assert shared == tied


@pytest.mark.parametrize("others", [{}, ADAPTIVE])
@pytest.mark.parametrize("whole", [False, True], ids=["autocast", "bfloat16"])
def test_losses_of_half_precision_are_summed_in_float32(others, whole):
    model, ids = make(initializer_range=0.1, **others), make_ids()
    expected = model(ids, labels=ids).loss
    model = model.to(torch.bfloat16) if whole else model
    with torch.autocast("cpu", torch.bfloat16, enabled=not whole):
        loss = model(ids, labels=ids).loss
        assert model(ids).logits.shape == (*ids.shape, 50)
        losses = model.token_losses(ids)
    assert loss.dtype == losses.dtype == torch.float32
    torch.testing.assert_close(loss, losses.mean(), rtol=1e-3, atol=0)
    torch.testing.assert_close(loss, expected, rtol=2e-2, atol=0)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("others", [{}, ADAPTIVE])
def test_logits_of_the_last_tokens_alone_are_the_same(others):
    model, ids = make(**others), make_ids()
    whole = model(ids).logits
    torch.testing.assert_close(model(ids, logits_to_keep=2).logits, whole[:, -2:])
    chosen = torch.tensor([0, 5])
    torch.testing.assert_close(model(ids, logits_to_keep=chosen).logits, whole[:, chosen])


def test_a_language_model_is_causal_whatever_its_configuration_said():
    config = LeaPformerConfig(vocab_size=50, hidden_size=16, num_attention_heads=2)
    model = LeaPformerForCausalLM(config)
    assert model.config.causal
    assert not config.causal
    assert LeaPformerModel(model.config).config.causal


def test_an_encoder_gives_no_cache_and_refuses_one():
    config = LeaPformerConfig(vocab_size=50, hidden_size=16, num_attention_heads=2)
    model = LeaPformerModel(config).eval()
    assert CACHE_NAME not in model(make_ids())
    for options in ({"use_cache": True}, {"cache": LeaPformerCache()}):
        with pytest.raises(ValueError, match="not causal has no cache"):
            model(make_ids(), **options)


@pytest.mark.parametrize("attention", sorted(set(ATTENTIONS) - set(CAUSAL)))
def test_what_cannot_hide_the_future_makes_no_language_model(attention):
    with pytest.raises(ValueError, match=rf"{attention} cannot hide the future.*leap, cosformer"):
        make(attention, position_embedding="none")


def test_a_cache_refuses_what_it_cannot_do():
    model, ids = make(), make_ids()
    cache = model(ids, use_cache=True)[CACHE_NAME]
    with pytest.raises(NotImplementedError, match="cannot take tokens back"):
        cache.crop(1)
    with pytest.raises(ValueError, match="the cache has 3 rows and the input 2"):
        model(ids[:2], cache=cache)
    with pytest.raises(TypeError, match="DynamicCache: expected a LeaPformerCache"):
        model(ids, cache=DynamicCache())
    with pytest.raises(
        ValueError, match=r"\[3, 5\].*\[3, 2\] or, with what came before, \[3, 14\]"
    ):
        model(ids[:, :2], cache=cache, attention_mask=torch.ones(3, 5))
    with pytest.raises(ValueError, match="no state in common"):
        model(ids[:1], cache=LeaPformerCache(), cu_seq_lens_q=torch.tensor([0, 12]))


def test_assisted_generation_is_refused():
    with pytest.raises(ValueError, match="assisted"):
        make().generate(make_ids(1), assistant_model=make(), max_new_tokens=3)


@every_attention
@settings(max_examples=25)
@given(sizes=st.lists(st.integers(1, 9), min_size=1, max_size=4), seed=st.integers(0, 999))
def test_packed_documents_with_padding_among_them_equal_each_alone(attention, sizes, seed):
    model, ids = make(attention), make_ids(1, sum(sizes))
    real = torch.rand(ids.shape, generator=torch.Generator().manual_seed(seed)) < 0.7
    bounds = torch.tensor([0, *sizes]).cumsum(0)
    packed = model(ids, attention_mask=real, cu_seq_lens_q=bounds).logits
    for a, b in pairwise(bounds.tolist()):
        kept = real[0, a:b]
        if kept.any():
            alone = model(ids[:, a:b][:, kept]).logits
            torch.testing.assert_close(packed[:, a:b][:, kept], alone, **CLOSE)


@every_attention
def test_documents_that_others_are_packed_with_change_nothing(attention):
    model, ids = make(attention), make_ids(1, 30)
    bounds = torch.tensor([0, 8, 20, 30])
    changed = ids.clone()
    changed[:, 8:20] = (ids[:, 8:20] - 3 + 7) % 47 + 3
    before, after = (model(x, cu_seq_lens_q=bounds).logits for x in (ids, changed))
    for a, b in pairwise(bounds.tolist()):
        assert torch.equal(before[:, a:b], after[:, a:b]) == (a != 8)
