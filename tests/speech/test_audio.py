"""Reading audio: exact spans, one channel, 16 kHz, and an error for all that is not whole."""

import struct
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from leapformer.tasks.speech.audio import AudioError, read_audio

# of each form, how far a sample may be from what was written
FORMS = {("wav", "PCM_16"): 2**-15, ("wav", "FLOAT"): 0, ("wav", "PCM_24"): 2**-23}
FORMS |= {("flac", "PCM_16"): 2**-15}


def noise(samples: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(samples).uniform(-0.9, 0.9, (samples, channels))


def written(folder: Path | str, audio: np.ndarray, rate: int = 16_000, form=("wav", "PCM_16")):
    path = Path(folder) / f"audio.{form[0]}"
    soundfile.write(path, audio, rate, subtype=form[1])
    return path


@given(st.sampled_from(list(FORMS)), st.integers(1, 3001), st.data())
def test_a_span_is_a_slice_of_the_file(form, samples, data):
    begin = data.draw(st.integers(0, samples - 1))
    count = data.draw(st.none() | st.integers(1, samples - begin))
    audio = noise(samples)
    with TemporaryDirectory() as folder:
        path = written(folder, audio, form=form)
        seconds = None if count is None else round(count / 16_000, 6)  # as corpora write them
        found = read_audio(path, round(begin / 16_000, 6), seconds)
    end = samples if count is None else begin + count
    assert found.dtype == np.float32
    assert found.shape == (end - begin,)
    np.testing.assert_allclose(found, audio[begin:end, 0].astype("f4"), atol=FORMS[form], rtol=1e-7)


@given(st.integers(1, 500), st.integers(2, 6))
def test_channels_are_averaged(samples, channels):
    audio = noise(samples, channels)
    with TemporaryDirectory() as folder:
        found = read_audio(written(folder, audio, form=("wav", "FLOAT")))
    np.testing.assert_allclose(found, audio.mean(1), atol=1e-6)


@pytest.mark.parametrize("rate", [8000, 11_025, 22_050, 44_100, 48_000])
def test_another_rate_is_resampled(tmp_path, rate):
    def tone(rate: int) -> np.ndarray:
        return 0.5 * np.sin(2 * np.pi * 440 * np.arange(2 * rate) / rate)

    path = written(tmp_path, tone(rate), rate, ("wav", "FLOAT"))
    found = read_audio(path)
    assert len(found) == 32_000
    inside = slice(1600, -1600)
    np.testing.assert_allclose(found[inside], tone(16_000)[inside], atol=1e-3)
    half = read_audio(path, 0.4, 1.0)
    assert len(half) == 16_000
    np.testing.assert_allclose(half[inside], found[6400:22_400][inside], atol=1e-3)


def test_what_16_khz_cannot_hold_is_filtered_out(tmp_path):
    high = np.sin(2 * np.pi * 11_000 * np.arange(48_000) / 48_000)
    found = read_audio(written(tmp_path, high, 48_000, ("wav", "FLOAT")))
    assert np.abs(found[1600:-1600]).max() < 1e-3


def test_samples_beside_a_span_change_nothing(tmp_path):
    audio = noise(8000)
    one = read_audio(written(tmp_path, audio, 8000), 0.25, 0.5)
    audio[:2000] = audio[6000:] = 0
    np.testing.assert_array_equal(read_audio(written(tmp_path, audio, 8000), 0.25, 0.5), one)


def test_mp3_as_common_voice_has(tmp_path):
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(96_000) / 48_000)
    found = read_audio(written(tmp_path, tone, 48_000, ("mp3", "MPEG_LAYER_III")))
    expected = 0.5 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)
    assert len(found) == 32_000
    np.testing.assert_allclose(found[1600:-1600], expected[1600:-1600], atol=0.02)


@pytest.mark.parametrize("form", [("wav", "PCM_16"), ("wav", "FLOAT"), ("flac", "PCM_16")])
def test_a_truncated_file_is_never_a_shorter_one(tmp_path, form):
    path = written(tmp_path, noise(5000), form=form)
    whole = path.read_bytes()
    for size in (1, 20, 43, 44, 60, len(whole) // 2, len(whole) - 1000, len(whole) - 2):
        path.write_bytes(whole[:size])
        with pytest.raises(AudioError, match=f"^{path}: .*fetch it again"):
            read_audio(path)
    path.write_bytes(whole)
    assert len(read_audio(path)) == 5000


def test_a_truncated_mp3_is_never_a_shorter_one(tmp_path):
    path = written(tmp_path, noise(48_000), form=("mp3", "MPEG_LAYER_III"))
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    with pytest.raises(AudioError, match=r"truncated, .* of 3\.000 s are there"):
        read_audio(path)


def test_a_flac_file_from_a_pipe_does_not_know_its_length(tmp_path):
    path = written(tmp_path, noise(5000), form=("flac", "PCM_16"))
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # the 36 bits of STREAMINFO that count samples: 0 where nobody knows
    content[22:26] = bytes(4)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=f"^{path}: its header does not say how long it is"):
        read_audio(path)


def test_samples_without_a_header_are_refused(tmp_path):
    (tmp_path / "a.raw").write_bytes(bytes(4000))
    with pytest.raises(AudioError, match=r"a\.raw: cannot be read as audio"):
        read_audio(tmp_path / "a.raw")


@pytest.mark.parametrize("size", [0xFFFFFFFF, 0x7FFFF000])
def test_a_wav_file_from_a_pipe_does_not_know_its_length(tmp_path, size):
    path = written(tmp_path, noise(5000))
    content = bytearray(path.read_bytes())
    at = content.index(b"data") + 4
    content[at : at + 4] = struct.pack("<I", size)
    content[4:8] = struct.pack("<I", min(size + 36, 0xFFFFFFFF))
    path.write_bytes(content)
    assert len(read_audio(path)) == 5000


def test_what_is_no_audio_is_refused_and_named(tmp_path):
    empty, text = tmp_path / "empty.wav", tmp_path / "text.wav"
    empty.touch()
    text.write_text("not found\n" * 99)
    silent = tmp_path / "silent.wav"
    soundfile.write(silent, np.zeros(0), 16_000)
    broken = tmp_path / "broken.wav"
    soundfile.write(broken, np.array([0.1, np.nan]), 16_000, subtype="FLOAT")
    for path, message in (
        (empty, "the file is empty"),
        (text, "cannot be read as audio"),
        (silent, "no samples in it"),
        (broken, "NaN or infinity"),
    ):
        with pytest.raises(AudioError, match=f"^{path}: .*{message}"):
            read_audio(path)
    for path in (tmp_path / "nowhere.wav", tmp_path):
        with pytest.raises(FileNotFoundError, match=f"^{path}: no such audio file"):
            read_audio(path)


@pytest.mark.parametrize(
    ("start", "duration"),
    [(0.99, 0.05), (1.0, None), (1.0, 0.005), (2.0, 0.1), (-0.1, None), (-0.1, 0.5), (0.0, 0.0)],
)
def test_a_span_outside_of_the_file_is_refused(tmp_path, start, duration):
    path = written(tmp_path, noise(16_000))
    with pytest.raises(AudioError, match=rf"^{path}: lasts 1\.000 s, it has no span of"):
        read_audio(path, start, duration)


def test_rounded_numbers_may_reach_over_the_end(tmp_path):
    path = written(tmp_path, noise(16_000))
    assert len(read_audio(path, 0.5, 0.509)) == 8000
    with pytest.raises(AudioError, match="no span"):
        read_audio(path, 0.5, 0.511)
