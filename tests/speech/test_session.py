"""A session writes what the parallel computation gives under what it had heard, keeps no more after
an hour than after a second, and never depends on who else is speaking."""

from copy import deepcopy
from dataclasses import dataclass
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models
from tokenizers.decoders import DecodeStream
from transformers import PreTrainedTokenizerFast

from leapformer.models.speech_configuration import LeaPformerSpeechConfig
from leapformer.models.speech_features import LeaPformerFeatureExtractor
from leapformer.models.speech_translation import LeaPformerForSpeechTranslation
from leapformer.ops import LeapState
from leapformer.tasks.speech import translator as module
from leapformer.tasks.speech.policy import WaitK, parse_wait
from leapformer.tasks.speech.session import SPARE, translate
from leapformer.tasks.speech.translator import Translator
from leapformer.zoo.pairs import KeyValues

CHUNK, RATIO, RATE = 5, 3, 16_000


def words(size):
    """A tokenizer of whole words."""
    vocabulary = {"<pad>": 0, "<s>": 1, "</s>": 2, **{f"▁w{i}": i for i in range(3, size)}}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<pad>"))
    tokenizer.decoder = decoders.Metaspace()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def build(cross="leap", size=50, **options):
    torch.manual_seed(3)
    config = LeaPformerSpeechConfig(
        **{
            "vocab_size": size,
            "hidden_size": 16,
            "encoder_layers": 2,
            "decoder_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 32,
            "encoder_chunk": CHUNK,
            "wait_ratio": RATIO,
            "cross_attention": cross,
            "initializer_range": 0.3,
            "tie_word_embeddings": False,
            **options,
        }
    )
    model = LeaPformerForSpeechTranslation(config).double().eval()
    processor = SimpleNamespace(
        feature_extractor=LeaPformerFeatureExtractor(), tokenizer=words(size)
    )
    return model, processor


@pytest.fixture(scope="module", params=["leap", "softmax", "cosformer"])
def pair(request):
    return build(request.param)


def noise(seconds, seed=0):
    samples = int(seconds * RATE)
    return np.random.default_rng(seed).uniform(-0.5, 0.5, samples).astype(np.float32)


@dataclass(frozen=True)
class Written:
    """A token that a session wrote, how many states it saw, and how many were heard by then."""

    token: int
    seen: int
    heard: int


def record(translator):
    """What any session writes, a list of `Written` by session."""
    log = {}

    class Recorded(module.TranslationSession):
        def write(self, token, after):
            before, seen = self.written, self.taken + self.due()
            text = super().write(token, after)
            if self.written > before:
                log.setdefault(self, []).append(Written(token, seen, self.heard))
            return text

    return (lambda: Recorded(translator)), log


@pytest.fixture(scope="module")
def endless(pair):
    """A model that never ends a sentence by itself, and its processor."""
    model, processor = deepcopy(pair)
    model.lm_head.weight.data[2] = 0
    return model, processor


def heard(session, sound, cuts):
    """What a session writes of the sound, in pieces that end at the cuts."""
    text = [session.push(piece) for piece in np.split(sound, sorted(cuts))]
    return "".join(text) + session.finish()


@pytest.mark.parametrize("k", [1, 3, 5, None])
@settings(max_examples=4)
@given(data=st.data())
def test_where_no_end_comes_early_a_session_is_wait_k(endless, k, data):
    model, processor = endless
    sound = noise(data.draw(st.floats(0.1, 1.5)), data.draw(st.integers(0, 99)))
    cuts = data.draw(st.lists(st.integers(0, len(sound)), max_size=6))
    translator, hidden = Translator(model, processor, k), []
    decode = translator._decode

    def kept(sessions, ids):
        found = decode(sessions, ids)
        hidden.append(found[0])
        return found

    with patch.object(translator, "_decode", kept):
        make, log = record(translator)
        heard(make(), sound, cuts)
    (written,) = log.values()
    tokens = [one.token for one in written]
    frames = processor.feature_extractor(sound, sampling_rate=RATE, return_tensors="pt")
    ids = torch.tensor([[1, *tokens[:-1]]])
    source = model.encoder(frames["input_features"].double())
    whole = model(encoder_outputs=source, decoder_input_ids=ids, wait_k=k, use_cache=False)
    states, policy = source.last_hidden_state.shape[1], WaitK(k, RATIO)
    assert len(tokens) == states + SPARE
    assert [one.seen for one in written] == [
        min(states, policy.needs(i)) for i in range(len(written))
    ]
    for i, one in enumerate(written):
        assert one.heard <= -(-policy.needs(i) // CHUNK) * CHUNK
    streamed = torch.cat([one for one in hidden if one.shape[1]], 1)
    wanted = model.decoder(ids, source, policy.visible)
    torch.testing.assert_close(streamed, wanted, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(model.lm_head(streamed), whole.logits, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("k", [1, 3, 5, None])
@settings(max_examples=4)
@given(data=st.data())
def test_a_session_writes_what_all_at_once_gives_under_what_it_had_heard(pair, k, data):
    model, processor = pair
    sound = noise(data.draw(st.floats(0.1, 1.5)), data.draw(st.integers(0, 99)))
    cuts = data.draw(st.lists(st.integers(0, len(sound)), max_size=6))
    make, log = record(Translator(model, processor, k))
    text = heard(make(), sound, cuts)
    (written,) = log.values()
    tokens, seen = [one.token for one in written], [one.seen for one in written]
    frames = processor.feature_extractor(sound, sampling_rate=RATE, return_tensors="pt")
    whole = model(
        frames["input_features"].double(),
        decoder_input_ids=torch.tensor([[1, *tokens[:-1]]]),
        visible=torch.tensor(seen),
        use_cache=False,
    )
    assert whole.logits.argmax(-1)[0].tolist() == tokens
    assert text == processor.tokenizer.decode(tokens, skip_special_tokens=True)
    states = whole.encoder_last_hidden_state.shape[1]
    policy = WaitK(k, RATIO)
    assert all(n >= min(states, policy.needs(i)) for i, n in enumerate(seen))
    assert len(tokens) <= states + SPARE


def test_who_else_speaks_changes_nothing(pair):
    model, processor = pair
    translator = Translator(model, processor, 2)
    sounds = [noise(seconds, i) for i, seconds in enumerate((2, 0.3, 1.1, 0.01, 3))]
    alone = [heard(translator.session(), sound, []) for sound in sounds]
    sessions, chance = [translator.session() for _ in sounds], np.random.default_rng(0)
    texts, rest = [""] * 5, list(sounds)
    while any(len(sound) for sound in rest):
        sizes = chance.integers(0, 9000, 5)
        pieces = [sound[:size] for sound, size in zip(rest, sizes, strict=True)]
        rest = [sound[size:] for sound, size in zip(rest, sizes, strict=True)]
        new = translator.push(sessions, pieces)
        texts = [a + b for a, b in zip(texts, new, strict=True)]
    new = translator.finish(sessions)
    assert [a + b for a, b in zip(texts, new, strict=True)] == alone
    assert alone[3] == ""
    assert len(set(alone)) > 3


def test_offline_it_is_generate(pair):
    model, processor = pair
    sound = noise(1.5)
    frames = processor.feature_extractor(sound, sampling_rate=RATE, return_tensors="pt")
    text = heard(Translator(model, processor, None).session(), sound, [5000])
    ids = model.generate(frames["input_features"].double(), max_new_tokens=37 + SPARE)
    assert text == processor.tokenizer.decode(ids[0], skip_special_tokens=True)


def test_an_end_before_the_source_is_over_is_asked_again():
    model, processor = build(size=4)
    model.lm_head.weight.data[:2] = 0
    model.lm_head.weight.data[3] = -model.lm_head.weight[2]  # an end, or else the word
    translator = Translator(model, processor, 1)
    make, log = record(translator)
    session, holds = make(), []
    held = type(session).write

    def write(self, token, after):
        before = self.hold
        text = held(self, token, after)
        if self.hold > before:
            holds.append((self.written, self.hold))
        return text

    with patch.object(type(session), "write", write):
        heard(session, noise(3), list(range(0, 48_000, 4000)))
    tokens = [one.token for one in log[session]]
    assert tokens[-1] == 2 or len(tokens) == session.heard + SPARE
    assert 2 not in tokens[:-1]
    assert session.done
    assert len(holds) > 1
    policy = WaitK(1, RATIO)
    for j, (i, hold) in enumerate(holds):  # an end of token i: it waits for a unit more
        assert hold == max(policy.needs(i), *(n for _, n in holds[:j]), 0) + RATIO
    for i, one in enumerate(log[session]):
        waited = max((hold for token, hold in holds if token <= i), default=0)
        assert one.seen == min(session.heard, max(policy.needs(i), waited))


def kept(session):
    """Numbers that a session holds between pieces."""
    memory = session.memory
    states = [memory.encoder.recent, memory.encoder.blocks, memory.decoder.states]
    tensors, stack = [memory.encoder.counted, memory.source.last_hidden_state], [*states]
    while stack:
        item = stack.pop()
        if isinstance(item, torch.Tensor):
            tensors.append(item)
        elif isinstance(item, list | tuple):
            stack += item
        elif item is not None:
            stack += vars(item).values()
    return sum(x.numel() for x in tensors) + session.frames.size


@pytest.mark.parametrize("k", [1, None])
def test_half_a_minute_takes_no_more_memory_than_a_second(k):
    model, processor = build()
    session = Translator(model, processor, k).session()
    sizes = []
    for second in range(30):
        session.push(noise(1, second))
        sizes.append(kept(session))
    spare = (CHUNK + RATIO) * 16 + 4 * CHUNK * 80  # states and frames that wait
    assert max(sizes) <= sizes[0] + spare


def test_reset_forgets(pair):
    translator = Translator(*pair, 2)
    session, sound = translator.session(), noise(1.2)
    first = heard(session, sound, [7000])
    session.reset()
    assert heard(session, sound, [200, 300]) == first
    assert first


def test_after_the_end_nothing_is_taken_in():
    session = Translator(*build(), 2).session()
    session.push(noise(0.5))
    session.finish()
    for call in (lambda: session.push(noise(0.1)), session.finish):
        with pytest.raises(RuntimeError, match=r"the session is finished: reset\(\) it"):
            call()


def test_a_bad_piece_leaves_the_session_as_it_was():
    translator = Translator(*build(), 1)
    session, other = translator.session(), translator.session()
    sound = noise(1)
    with pytest.raises(ValueError, match=r"NaN|finite|number"):
        session.push(np.array([0.1, np.nan], np.float32))
    assert heard(session, sound, [3000]) == heard(other, sound, [3000])


@pytest.mark.parametrize("bad", [np.array([np.nan], np.float32), np.zeros(9, int), None])
def test_a_bad_piece_takes_nothing_from_the_sessions_beside_it(bad):
    translator, sound = Translator(*build(), 1), noise(1)
    expected = heard(translator.session(), sound, [8000])
    session, other = translator.session(), translator.session()
    pieces = [sound[:8000]] if bad is None else [sound[:8000], bad]
    with pytest.raises((ValueError, TypeError), match=r"samples|1 pieces of sound for 2"):
        translator.push([session, other], pieces)
    assert heard(session, sound, [8000]) == expected


@pytest.mark.parametrize("last", [False, True])
def test_where_the_model_fails_no_text_is_lost(endless, last):
    translator, sound = Translator(*endless, 1), noise(2)
    expected = heard(translator.session(), sound, [])
    assert expected
    session, other = translator.session(), translator.session()
    step, calls = translator.model.encoder.step, []

    def failing(frames, state):
        calls.append(frames)
        if len(calls) > 8:
            raise ValueError("positions leave the ramp")
        return step(frames, state)

    text = session.push(sound[:500]) + other.push(sound[:500])
    with (
        patch.object(translator.model.encoder, "step", failing),
        pytest.raises(ValueError, match="leave the ramp"),
    ):
        translator.push([session, other], [sound[500:], sound[500:]])
    assert session.text
    if last:
        with (
            patch.object(translator.model.encoder, "step", failing),
            pytest.raises(ValueError, match="leave the ramp"),
        ):
            translator.finish([session, other])
        with pytest.raises(RuntimeError, match="finished"):
            session.push(sound)
    else:
        text += session.push(sound[:0])
    assert text + session.finish() == other.finish() == expected
    with pytest.raises(RuntimeError, match="finished"):
        session.finish()


def test_a_session_is_given_once_and_to_its_own_translator():
    translator, sound = Translator(*build(), 1), noise(1)
    session, other = translator.session(), Translator(*build(), 1).session()
    twice, foreign = [session, session], [session, other]
    for these, said in ((twice, "a session is there twice"), (foreign, "of another translator")):
        with pytest.raises(ValueError, match=said):
            translator.push(these, [sound, sound])
        with pytest.raises(ValueError, match=said):
            translator.finish(these)
    assert heard(session, sound, [3000]) == heard(translator.session(), sound, [3000])


def test_tokens_that_are_no_text_are_not_kept(monkeypatch):
    model, processor = build()
    model.lm_head.weight.data[1:] = 0  # padding, or where that is unlikely the beginning's token
    model.lm_head.weight.data[1] = -model.lm_head.weight[0]
    kept, most = [], []

    class Counted:
        def __init__(self, **how):
            self.stream = DecodeStream(**how)

        def step(self, tokenizer, token):
            kept.append(token)
            most.append(len(kept))
            text = self.stream.step(tokenizer, token)
            if text:
                kept.clear()
            return text

    monkeypatch.setattr("leapformer.tasks.speech.session.DecodeStream", Counted)
    session = Translator(model, processor, 1).session()
    assert heard(session, noise(5), [9000]) == ""
    assert session.written > 100
    assert max(most, default=0) <= 1


@pytest.mark.parametrize(("samples", "states"), [(879, 0), (880, 1)])
def test_a_state_takes_55_ms(samples, states):
    session = Translator(*build(), 1).session()
    heard(session, noise(samples / RATE + 1e-9), [])
    assert (session.heard, session.written > 0) == (states, states > 0)


@pytest.mark.parametrize("piece", [0.0, -1.0, float("inf"), float("nan")])
def test_a_piece_lasts_some_seconds(piece, tmp_path):
    with pytest.raises(ValueError, match=r"a piece has .* expected a finite number above 0"):
        next(translate(None, tmp_path / "a.wav", piece))


def test_whole_sources_are_translated_as_their_streams():
    model, processor = build()
    translator = Translator(model, processor, 1)
    sound = noise(0.025 + 0.01 * (8 * CHUNK - 1) + 1e-6)
    frames = processor.feature_extractor(sound)["input_features"][0]
    assert len(frames) == 8 * CHUNK
    with torch.no_grad():  # as long as a state is missing the model ends, even in the last chunk
        source = model.encoder(torch.from_numpy(frames)[None].double())
        begin = torch.tensor([[1]])
        hidden = [model.decoder(begin, source, torch.tensor([n]))[0, 0] for n in (3, 6, 9, 10)]
        wanted = torch.tensor([[99.0], [99.0], [99.0], [-99.0]], dtype=torch.float64)
        model.lm_head.weight[2] = torch.linalg.lstsq(torch.stack(hidden), wanted).solution[:, 0]
    streamed = heard(translator.session(), sound, [])
    assert streamed
    assert translator.translate([frames, frames[:1]]) == [streamed, ""]


def test_of_a_long_piece_only_the_rest_is_kept():
    session = Translator(*build(), 1).session()
    session.push(noise(5))
    assert session.frames.base is None


@pytest.mark.parametrize(("word", "k"), [("3", 3), (" 12 ", 12), ("all", None), (5, 5)])
def test_a_wait_is_read(word, k):
    assert parse_wait(word) == k


@pytest.mark.parametrize("word", ["0", "-1", "3,5", "few", "", "None", "1.5"])
def test_a_wait_that_is_none_is_refused(word):
    with pytest.raises(ValueError, match="give units of the source, such as 3, or all"):
        parse_wait(word)


def test_an_encoder_that_needs_everything_cannot_be_streamed():
    with pytest.raises(ValueError, match="cannot be streamed"):
        Translator(*build(encoder_chunk=None), 2)


@given(k=st.integers(1, 9), ratio=st.integers(1, 9), token=st.integers(0, 30), data=st.data())
def test_the_policy_writes_what_training_sees(k, ratio, token, data):
    policy, states = WaitK(k, ratio), data.draw(st.integers(0, 200))
    seen = policy.visible.counts(token + 1, states)[token]
    needs = policy.needs(token)
    assert seen == min(states, needs)
    assert policy.writes(token, needs, False)
    assert not policy.writes(token, needs - 1, False)
    assert policy.writes(token, 0, True)
    assert not WaitK(None, ratio).writes(token, 10**9, False)


@pytest.mark.parametrize(("k", "ratio"), [(0, 1), (1, 0), (-1, 3)])
def test_a_policy_waits_for_something(k, ratio):
    with pytest.raises(ValueError, match="both are at least 1"):
        WaitK(k, ratio)


@given(lengths=st.lists(st.integers(0, 5), min_size=1, max_size=4))
def test_states_put_together_are_rows_of_one(lengths):
    sums = [LeapState(torch.randn(n, 2, 3, 4)) for n in lengths]
    assert torch.equal(LeapState.cat(sums).sums, torch.cat([state.sums for state in sums]))
    parts = []
    for n in lengths:
        k, v = torch.randn(1, 2, n, 3), torch.randn(1, 2, n, 4)
        parts.append(KeyValues(k, v, torch.rand(1, n) < 0.7))
    whole = KeyValues.cat(parts)
    assert whole.real.shape[1] == max(int(part.real.sum()) for part in parts)
    for i, part in enumerate(parts):
        row = whole.select(torch.tensor([i]))
        assert torch.equal(row.k[:, :, row.real[0]], part.k[:, :, part.real[0]])
        assert torch.equal(row.v[:, :, row.real[0]], part.v[:, :, part.real[0]])
