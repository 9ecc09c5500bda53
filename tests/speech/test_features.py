"""Features of speech: as Kaldi defines them, the same in a stream, and what they refuse."""

import gc
import re
import sys

import numpy as np
import psutil
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from transformers import AutoFeatureExtractor
from transformers.audio_utils import mel_filter_bank, spectrogram, window_function

from leapformer.models import LeaPformerFeatureExtractor
from leapformer.tasks.speech.audio import read_audio

CHANCE = np.random.default_rng(0)
MEAN, STD = CHANCE.normal(8, 3, 80).tolist(), CHANCE.uniform(0.5, 4, 80).tolist()


@pytest.fixture(scope="module")
def extractor() -> LeaPformerFeatureExtractor:
    return LeaPformerFeatureExtractor(mean=MEAN, std=STD)


def noise(samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, samples).astype(np.float32)


@st.composite
def pieces(draw) -> list[np.ndarray]:
    """Audio, cut anywhere; some pieces are empty."""
    total = draw(st.integers(0, 3000))
    cuts = draw(st.lists(st.integers(0, total), max_size=12))
    kind = draw(st.sampled_from([np.float32, np.float64, np.float16]))
    return np.split(noise(total, draw(st.integers(0, 9))).astype(kind), sorted(cuts))


@given(pieces())
@example(np.split(noise(2000), range(1, 2000)))
@example([noise(399), noise(1), noise(159), noise(1)])
def test_a_stream_gives_the_frames_of_the_whole_bit_for_bit(extractor, parts):
    stream, whole = extractor.stream(), np.concatenate(parts)
    found = [stream.push(part) for part in parts]
    heard = sum(map(len, parts))
    assert [each.shape[1:] for each in found] == [(80,)] * len(parts)
    assert all(each.dtype == np.float32 for each in found)
    for i in range(len(parts)):  # as soon as their windows are whole
        so_far = sum(map(len, parts[: i + 1]))
        assert sum(map(len, found[: i + 1])) == extractor.frames(so_far)
    frames = np.concatenate(found)
    assert len(frames) == extractor.frames(heard)
    if len(frames):
        np.testing.assert_array_equal(frames, extractor([whole])["input_features"][0])
    else:
        assert heard < 400


def reference(audio: np.ndarray) -> np.ndarray:
    """Kaldi's filterbank, as the library has it in NumPy."""
    filters = mel_filter_bank(
        257, 80, 20, 8000, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True
    )
    return spectrogram(
        audio * 32_768,
        window_function(400, "povey", periodic=False),
        400,
        160,
        fft_length=512,
        power=2.0,
        center=False,
        preemphasis=0.97,
        mel_filters=filters,
        log_mel="log",
        mel_floor=np.finfo(np.float32).eps,
        remove_dc_offset=True,
    ).T


@pytest.mark.parametrize("samples", [400, 559, 560, 4001])
def test_features_are_kaldis(extractor, samples):
    audio = noise(samples)
    expected = reference(audio)
    plain = LeaPformerFeatureExtractor()([audio])["input_features"][0]
    np.testing.assert_allclose(plain, expected, atol=2e-3)
    found = extractor([audio])["input_features"][0]
    np.testing.assert_allclose(found, (expected - MEAN) / STD, atol=5e-3)
    assert extractor.frames(samples) == len(expected)


def test_a_batch_is_padded_with_the_mean_and_says_what_is_real(extractor):
    audio = [noise(400), noise(5000, 1), noise(1000, 2)]
    batch = extractor(audio, sampling_rate=16_000, return_tensors="pt")
    assert batch["input_features"].dtype == torch.float32
    assert batch["input_features"].shape == (3, 29, 80)
    assert batch["attention_mask"].sum(1).tolist() == [1, 29, 4]
    for each, row, mask in zip(audio, *batch.values(), strict=True):
        alone = extractor([each], return_tensors="pt")["input_features"][0]
        assert row[mask.bool()].equal(alone)
        assert not row[~mask.bool()].any()
        assert mask.diff().le(0).all()
    assert extractor(audio[1])["input_features"][0].shape == (29, 80)


def test_silence_has_features():
    found = LeaPformerFeatureExtractor()([np.zeros(800)])["input_features"][0]
    assert np.isfinite(found).all()
    assert (found == found[0, 0]).all()


def test_the_numbers_are_fields_of_the_configuration():
    other = LeaPformerFeatureExtractor(
        feature_size=40, sampling_rate=8000, window_ms=20, shift_ms=5, scale=1.0
    )
    assert (other.window, other.shift) == (160, 40)
    found = other([noise(200)], 8000)["input_features"][0]
    assert found.shape == (2, 40)
    louder = LeaPformerFeatureExtractor(
        feature_size=40, sampling_rate=8000, window_ms=20, shift_ms=5, scale=10.0
    )
    np.testing.assert_allclose(
        louder([noise(200)])["input_features"][0], found + 2 * np.log(10), atol=1e-3
    )


@pytest.mark.parametrize("loader", [AutoFeatureExtractor, LeaPformerFeatureExtractor])
def test_it_comes_back_from_its_folder(extractor, tmp_path, loader):
    extractor.save_pretrained(tmp_path)
    again = loader.from_pretrained(tmp_path)
    assert type(again) is LeaPformerFeatureExtractor
    assert again.to_dict() == extractor.to_dict()
    assert (again.mean, again.std) == (MEAN, STD)
    one, two = (each([noise(2000)])["input_features"][0] for each in (extractor, again))
    np.testing.assert_array_equal(one, two)


WRONG = [
    (np.zeros((2, 800)), ValueError, r"audio\[0\] is \[2, 800\]: expected one channel.*average"),
    ([np.zeros((800, 2))], ValueError, r"audio\[0\] is \[800, 2\]: expected one channel"),
    ([noise(800), np.zeros(0)], ValueError, r"audio\[1\] has 0 samples: expected at least 400"),
    ([noise(399)], ValueError, "399 samples: expected at least 400, one window of 25 ms"),
    ([np.array([*noise(800), np.nan])], ValueError, "holds NaN or infinity"),
    ([np.array([*noise(800), -np.inf])], ValueError, "holds NaN or infinity"),
    ([noise(800) * 20_000], ValueError, "expected samples in .*divide .* by 32768"),
    ([np.zeros(800, np.int16)], TypeError, r"int16: .*x.astype\('float32'\) / 32768"),
    ([np.zeros(800, np.int32)], TypeError, r"int32: .*x.astype\('float32'\) / 2147483648"),
    ([np.zeros(800, np.uint8)], TypeError, r"uint8: .*convert it to float samples in \[-1, 1\]"),
    ([np.zeros(800, bool)], TypeError, "bool: expected floating point"),
]


@pytest.mark.parametrize(("audio", "error", "message"), WRONG)
def test_audio_that_is_none_is_refused(extractor, audio, error, message):
    with pytest.raises(error, match=message):
        extractor(audio)
    for each in audio if isinstance(audio, list) else [audio]:
        if each.ndim == 1 and len(each) < 400:
            continue  # a piece of a stream may be short
        if each.dtype == np.float32 and each.max() < 1:
            continue
        with pytest.raises(error, match=re.escape("samples")):
            extractor.stream().push(each)


@pytest.mark.parametrize("rate", [8000, 44_100, 48_000])
def test_another_sampling_rate_is_refused(extractor, rate):
    with pytest.raises(ValueError, match=rf"{rate} Hz: expected 16000 Hz \(16 kHz\), resample"):
        extractor([noise(800)], sampling_rate=rate)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mean": [0.0] * 79}, "mean has 79 numbers: expected 80"),
        ({"std": [1.0] * 81}, "std has 81 numbers"),
        ({"mean": [np.nan] * 80}, "finite"),
        ({"std": [1.0] * 79 + [0.0]}, "least std is 0.0"),
        ({"std": [1.0] * 79 + [-1.0]}, "least std is -1.0"),
        ({"padding_side": "left"}, "padding_side is 'left': padding comes last"),
    ],
)
def test_statistics_that_cannot_be_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LeaPformerFeatureExtractor(**options)


def test_refused_samples_leave_a_stream_as_it_was(extractor):
    audio = noise(3000)
    stream = extractor.stream()
    found = [stream.push(audio[:1000])]
    for wrong in (np.full(100, np.nan), np.zeros((2, 50))):
        with pytest.raises(ValueError, match="samples"):
            stream.push(wrong)
    found.append(stream.push(audio[1000:]))
    np.testing.assert_array_equal(np.concatenate(found), extractor([audio])["input_features"][0])


def test_memory_of_a_stream_is_flat(extractor):
    stream, audio, process = extractor.stream(), noise(16_000), psutil.Process()
    for _ in range(60):
        stream.push(audio)
    gc.collect()
    before = process.memory_info().rss
    for _ in range(900):  # a quarter of an hour: 29 MB of frames
        stream.push(audio)
    assert process.memory_info().rss - before < 8e6


def test_without_its_library_the_extra_is_named(monkeypatch, tmp_path):
    LeaPformerFeatureExtractor().save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "kaldi_native_fbank", None)
    for load in (
        LeaPformerFeatureExtractor,
        lambda: LeaPformerFeatureExtractor.from_pretrained(tmp_path),
        lambda: AutoFeatureExtractor.from_pretrained(tmp_path),
    ):
        with pytest.raises(ModuleNotFoundError, match=r"kaldi_native_fbank.*leapformer\[speech\]"):
            load()


def test_real_speech_streams_as_a_whole(extractor, shared_data):
    audio = read_audio(shared_data / "simuleval_example" / "test.wav")
    stream = extractor.stream()
    found = np.concatenate([stream.push(part) for part in np.array_split(audio, 77)])
    whole = extractor([audio], 16_000)["input_features"][0]
    np.testing.assert_array_equal(found, whole)
    np.testing.assert_allclose(found, (reference(audio) - MEAN) / STD, atol=2e-2)
