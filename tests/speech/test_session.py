"""A session writes what the parallel computation gives under what it had heard, keeps no more after
an hour than after a second, and never depends on who else is speaking."""

from copy import deepcopy
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from speech.streams import CHUNK, RATE, RATIO, build, heard, noise, record

from leapformer.ops import LeapState
from leapformer.tasks.speech.policy import WaitK
from leapformer.tasks.speech.session import SPARE
from leapformer.tasks.speech.translator import Translator
from leapformer.zoo.pairs import KeyValues


@pytest.fixture(scope="module", params=["leap", "softmax", "cosformer"])
def pair(request):
    return build(request.param)


@pytest.fixture(scope="module")
def endless(pair):
    """A model that never ends a sentence by itself, and its processor."""
    model, processor = deepcopy(pair)
    model.lm_head.weight.data[2] = 0
    return model, processor


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
