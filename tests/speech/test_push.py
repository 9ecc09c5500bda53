"""What a session takes in and gives back, and when it refuses or fails: nothing is lost."""

from unittest.mock import patch

import numpy as np
import pytest
from speech.streams import RATE, build, heard, noise
from tokenizers.decoders import DecodeStream

from leapformer.tasks.speech.session import translate
from leapformer.tasks.speech.translator import Translator


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
def test_where_the_model_fails_no_text_is_lost(last):
    translator, sound = Translator(*build(), 1), noise(2)
    translator.model.lm_head.weight.data[2] = 0  # no end comes early
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


def test_of_a_long_piece_only_the_rest_is_kept():
    session = Translator(*build(), 1).session()
    session.push(noise(5))
    assert session.frames.base is None


def test_an_encoder_that_needs_everything_cannot_be_streamed():
    with pytest.raises(ValueError, match="cannot be streamed"):
        Translator(*build(encoder_chunk=None), 2)
