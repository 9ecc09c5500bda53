"""The speech translator: what is padding, not heard yet or not visible changes nothing; pieces give
what all at once gives; it is a model of the transformers library."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from leapformer.models.cache import CACHE_NAME
from leapformer.models.speech_configuration import LeaPformerSpeechConfig
from leapformer.models.speech_encoder import EncoderState
from leapformer.models.speech_translation import (
    LeaPformerForSpeechTranslation,
    LeaPformerSpeechCache,
)
from leapformer.progress import Progress

CROSS = ("leap", "softmax", "cosformer", "linear")
CHUNK = 3
CLOSE = {"rtol": 1e-10, "atol": 1e-10}


def build(cross="leap", **options):
    torch.manual_seed(1)
    config = LeaPformerSpeechConfig(
        **{
            "vocab_size": 40,
            "num_mel_bins": 5,
            "hidden_size": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_chunk": CHUNK,
            "encoder_convolution": 5,
            "wait_ratio": 2,
            "cross_attention": cross,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            **options,
        }
    )
    return LeaPformerForSpeechTranslation(config).double().eval()


@pytest.fixture(scope="module", params=CROSS)
def model(request):
    return build(request.param)


def case(frames, tokens, batch=2):
    sound = torch.randn(batch, frames, 5, dtype=torch.float64)
    return sound, torch.randint(3, 40, (batch, tokens))


@pytest.mark.parametrize("k", [1, 3, None])
def test_padding_of_a_shorter_source_changes_nothing(model, k):
    sound, ids = case(61, 7)
    mask = torch.arange(61) < torch.tensor([[61], [30]])
    sound[1, 30:] = 1e9
    both = model(sound, mask, decoder_input_ids=ids, wait_k=k, use_cache=False).logits
    alone = model(sound[1:, :30], decoder_input_ids=ids[1:], wait_k=k, use_cache=False).logits
    torch.testing.assert_close(both[1:], alone, **CLOSE)


@given(k=st.integers(1, 9), frames=st.integers(8, 90), data=st.data())
def test_nothing_beyond_the_visible_source_changes_an_output(k, frames, data):
    model = build()
    sound, ids = case(frames, 6, batch=1)
    before = model(sound, decoder_input_ids=ids, wait_k=k, use_cache=False).logits
    at = data.draw(st.integers(0, frames - 1))
    sound[:, at:] = torch.randn_like(sound[:, at:])
    after = model(sound, decoder_input_ids=ids, wait_k=k, use_cache=False).logits
    states = frames // 4
    for i in range(6):
        seen = min(states, 2 * (k + i))
        through = min(states, -(-seen // CHUNK) * CHUNK) * 4  # frames up to its last chunk's end
        if through <= at:
            assert torch.equal(before[:, i], after[:, i])
        elif seen * 4 > at + 4:
            assert not torch.equal(before[:, i], after[:, i])


@pytest.mark.parametrize("k", [1, 3, 5, None])
@pytest.mark.parametrize("frames", [4, 12, 50, 63])
def test_a_stream_gives_what_all_at_once_gives(model, k, frames):
    sound, ids = case(frames, 8)
    whole = model(sound, decoder_input_ids=ids, wait_k=k, use_cache=False)
    state, heard = EncoderState(), None
    last = frames // 4 * 4
    for a in range(0, last, 4 * CHUNK):
        found, state = model.encoder.step(sound[:, a : min(a + 4 * CHUNK, last)], state)
        heard = found if heard is None else heard.followed_by(found)
    torch.testing.assert_close(heard.last_hidden_state, whole.encoder_last_hidden_state, **CLOSE)
    cache = LeaPformerSpeechCache()
    steps = [
        model(encoder_outputs=heard, decoder_input_ids=one, cache=cache, wait_k=k).logits
        for one in ids.split(1, 1)
    ]
    torch.testing.assert_close(torch.cat(steps, 1), whole.logits, **CLOSE)


def test_visible_counts_stand_for_wait_k(model):
    sound, ids = case(60, 5)
    counts = torch.tensor([4, 6, 8, 10, 12])
    by_rule = model(sound, decoder_input_ids=ids, wait_k=2, use_cache=False).logits
    by_count = model(sound, decoder_input_ids=ids, visible=counts, use_cache=False).logits
    torch.testing.assert_close(by_rule, by_count, **CLOSE)
    by_row = model(sound, decoder_input_ids=ids, visible=counts.expand(2, -1))
    torch.testing.assert_close(by_row.logits, by_count, **CLOSE)
    assert CACHE_NAME not in by_row


def test_the_source_comes_back_whole_whatever_was_seen_of_it(model):
    sound, ids = case(60, 3)
    for how in ({}, {"wait_k": 1}, {"use_cache": False}):
        found = model(sound, decoder_input_ids=ids, **how).encoder_last_hidden_state
        assert torch.equal(found, model.encoder(sound).last_hidden_state)


@pytest.mark.parametrize("k", [2, None])
@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_generating_from_a_cache_is_generating_without(model, k, how):
    sound, _ = case(50, 1)
    how = {"max_new_tokens": 9, "wait_k": k, **how}
    cached = model.generate(sound, **how)
    assert torch.equal(cached, model.generate(sound, use_cache=False, **how))
    assert len(set(cached[:, 1:].flatten().tolist())) > 2


def test_beams_are_reordered_and_cross_states_with_them(model):
    sound, ids = case(40, 4)
    cache = LeaPformerSpeechCache()
    source = model.encoder(sound)
    model(encoder_outputs=source, decoder_input_ids=ids, cache=cache)
    cache.reorder_cache(torch.tensor([1, 0]))
    last = torch.randint(3, 40, (2, 1))
    turned = model.encoder(sound.flip(0))
    found = model(encoder_outputs=turned, decoder_input_ids=last, cache=cache).logits
    whole = torch.cat([ids.flip(0), last], 1)
    wanted = model(sound.flip(0), decoder_input_ids=whole, use_cache=False).logits[:, -1:]
    torch.testing.assert_close(found, wanted, **CLOSE)


def test_labels_are_the_ids_moved_on(model):
    sound, labels = case(40, 6)
    labels[1, 4:] = -100
    ids = torch.cat([torch.ones(2, 1, dtype=torch.int64), labels[:, :-1]], 1).clamp_min(0)
    logits = model(sound, decoder_input_ids=ids, use_cache=False).logits
    loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())
    torch.testing.assert_close(model(sound, labels=labels).loss, loss)


def test_every_weight_learns():
    model = build(ctc_vocab_size=9).train()
    sound, labels = case(60, 6)
    mask = torch.arange(60) < torch.tensor([[60], [44]])
    ctc = torch.randint(1, 9, (2, 5))
    ctc[1, 3:] = -100
    model(sound, mask, labels=labels, ctc_labels=ctc, wait_k=2).loss.backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None, name
        assert weight.grad.isfinite().all(), name
        assert weight.grad.any(), name


def test_the_ctc_loss_is_that_of_each_source_alone():
    model = build(ctc_vocab_size=9)
    sound, _ = case(60, 1)
    mask = torch.arange(60) < torch.tensor([[60], [44]])
    ctc = torch.randint(1, 9, (2, 5))
    ctc[1, 3:] = -100
    both = model.ctc_loss(model.encoder(sound, mask), ctc)
    alone = [
        model.ctc_loss(model.encoder(sound[:1]), ctc[:1]),
        model.ctc_loss(model.encoder(sound[1:, :44]), ctc[1:, :3]),
    ]
    torch.testing.assert_close(both, sum(alone))


def test_the_ctc_loss_hears_all_of_the_source_whatever_was_seen_of_it():
    model = build(ctc_vocab_size=9, hidden_dropout_prob=0.0).train()
    sound, labels = case(60, 2)
    ctc = torch.randint(1, 9, (2, 5))
    losses = [
        model(sound, labels=labels, ctc_labels=ctc, wait_k=1, use_cache=cached).loss
        for cached in (False, True)
    ]
    torch.testing.assert_close(*losses)


def test_the_loss_of_a_batch_is_that_of_its_parts():
    model = build(ctc_vocab_size=9, label_smoothing=0.1, hidden_dropout_prob=0.0).train()
    sound, labels = case(60, 6, batch=3)
    labels[1, 4:] = labels[2, 2:] = -100
    ctc = torch.randint(1, 9, (3, 5))
    whole = model(sound, labels=labels, ctc_labels=ctc, wait_k=2).loss
    parts = [
        model(
            sound[rows],
            labels=labels[rows],
            ctc_labels=ctc[rows],
            wait_k=2,
            num_items_in_batch=torch.tensor(12),
        ).loss
        for rows in (slice(0, 1), slice(1, 3))
    ]
    torch.testing.assert_close(sum(parts), whole, rtol=1e-6, atol=1e-6)  # losses are in float32


@pytest.mark.parametrize("tied", [False, True])
def test_saved_and_loaded_it_is_the_same(tied, tmp_path):
    model = build(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path)
    loaded = LeaPformerForSpeechTranslation.from_pretrained(tmp_path).eval()
    sound, ids = case(40, 5)
    assert loaded.dtype == torch.float64
    assert (loaded.lm_head.weight is loaded.decoder.embedding.tokens.weight) == tied
    found = loaded(sound, decoder_input_ids=ids, wait_k=1).logits
    wanted = model(sound, decoder_input_ids=ids, wait_k=1).logits
    torch.testing.assert_close(found, wanted, **CLOSE)


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"cross": "nystromformer"}, "nystromformer cannot attend from one sequence to another"),
        ({"encoder_attention": "linformer"}, "linformer cannot encode chunk by chunk"),
        ({"decoder_attention": "bigbird"}, "bigbird cannot hide the future"),
        ({"hidden_size": 15}, "no multiple"),
    ],
)
def test_what_cannot_stream_is_refused_when_it_is_built(options, what):
    with pytest.raises(ValueError, match=what):
        build(**options)


def test_an_offline_encoder_may_be_of_any_kind():
    model = build(encoder_attention="linformer", encoder_chunk=None)
    sound, ids = case(40, 5)
    assert model(sound, decoder_input_ids=ids).logits.shape == (2, 5, 40)


@pytest.mark.parametrize(
    ("call", "what"),
    [
        ({"labels": torch.ones(2, 3, dtype=torch.int64)}, "give input_features"),
        ({"input_features": torch.ones(2, 8, 5).double()}, "give decoder_input_ids or labels"),
        (
            {"input_features": torch.ones(2, 3, 5).double(), "labels": torch.ones(2, 1).long()},
            "has 3 frames",
        ),
        (
            {"input_features": torch.ones(2, 8, 6).double(), "labels": torch.ones(2, 1).long()},
            r"expected \[B, T, 5\]",
        ),
        (
            {
                "input_features": torch.ones(2, 8, 5).double(),
                "attention_mask": torch.tensor([[1] * 8, [0] * 4 + [1] * 4]),
                "labels": torch.ones(2, 1).long(),
            },
            "padding must come last",
        ),
        (
            {
                "input_features": torch.ones(2, 8, 5).double(),
                "labels": torch.ones(2, 1).long(),
                "visible": torch.tensor([[1], [2]]),
                "use_cache": True,
            },
            "visible has a row for each sequence",
        ),
    ],
)
def test_a_wrong_call_says_what_is_missing(call, what):
    with pytest.raises(ValueError, match=what):
        build()(**call)


@given(pieces=st.lists(st.integers(0, 9), min_size=1, max_size=6))
def test_progress_in_pieces_is_progress_at_once(pieces):
    progress, x = Progress(4).double(), torch.randn(3, sum(pieces), 4, dtype=torch.float64)
    whole, before, found = progress(x), torch.zeros(3, dtype=torch.float64), []
    for part in x.split(pieces, 1):
        found.append(progress(part, before=before))
        before = torch.cat([before.unsqueeze(1), found[-1]], 1)[:, -1]
    torch.testing.assert_close(torch.cat(found, 1), whole, **CLOSE)
    assert (whole.diff(dim=1) > 0).all()


def test_a_new_model_counts_about_an_eighth_for_a_state():
    states = build().encoder(torch.randn(4, 400, 5, dtype=torch.float64))
    rates = states.progress.diff(dim=1)
    assert 0.08 < rates.mean() < 0.2


def test_padding_makes_no_progress():
    progress, x = Progress(4), torch.randn(1, 6, 4)
    mask = torch.tensor([[True, True, False, True, False, False]])
    wanted = progress(x[:, mask[0]])
    x[~mask] = torch.nan
    found = progress(x, mask)
    torch.testing.assert_close(found[:, mask[0]], wanted)
    assert found[0, 5] == found[0, 3]
