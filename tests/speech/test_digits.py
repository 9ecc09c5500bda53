"""Spoken numbers: words as an independent source has them, recordings where they may be heard."""

import hashlib
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import soundfile
from num2words import num2words

from leapformer.tasks.files import SPLITS
from leapformer.tasks.speech.audio import read_audio
from leapformer.tasks.speech.corpus import read
from leapformer.tasks.speech.digits import NUMBERS, Counts, write_digits
from leapformer.tasks.speech.numbers import DIGITS, french, german, spoken, translated

SPEAKERS = ("ada", "ben")
HEARD = {"test": (0, 1, 2, 3, 4), "train": (5, 9, 10, 44), "validation": (45, 46, 47, 48, 49)}
TAKES = [take for takes in HEARD.values() for take in takes]
STEP = 0.9 / (10 * len(SPEAKERS) * len(TAKES))
COUNTS = Counts(40, 12, 12)


def test_number_words_are_those_of_another_source():
    for number in range(100):
        assert german(number) == num2words(number, lang="de")
        assert french(number) == num2words(number, lang="fr")
        tens, ones = divmod(number, 10)
        assert spoken(number) == f"{num2words(tens, lang='en')} {num2words(ones, lang='en')}"


@pytest.mark.parametrize(
    ("number", "in_german", "in_french"),
    [
        (17, "siebzehn", "dix-sept"),
        (21, "einundzwanzig", "vingt et un"),
        (30, "dreißig", "trente"),
        (71, "einundsiebzig", "soixante et onze"),
        (80, "achtzig", "quatre-vingts"),
        (81, "einundachtzig", "quatre-vingt-un"),
        (91, "einundneunzig", "quatre-vingt-onze"),
        (99, "neunundneunzig", "quatre-vingt-dix-neuf"),
    ],
)
def test_number_words_by_hand(number, in_german, in_french):
    assert (german(number), french(number)) == (in_german, in_french)
    assert translated([number, 42], "en-de") == f"{in_german} zweiundvierzig"
    assert translated([42, number], "en-fr") == f"quarante-deux {in_french}"


@pytest.mark.parametrize("write", [spoken, german, french])
def test_no_two_numbers_share_their_words(write):
    assert len(set(map(write, range(100)))) == 100
    for number in (-1, 100):
        with pytest.raises(ValueError, match=f"{number}: expected a number of at most two digits"):
            write(number)


def code(speaker: int, digit: int, index: int) -> int:
    return (speaker * 10 + digit) * len(TAKES) + TAKES.index(index)


@pytest.fixture(scope="module")
def recordings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each recording is one level, by which it is known again."""
    folder = tmp_path_factory.mktemp("fsdd") / "recordings"
    folder.mkdir()
    for s, speaker in enumerate(SPEAKERS):
        for digit in range(10):
            for index in TAKES:
                level = STEP * (code(s, digit, index) + 12)
                samples = np.full(800 + 10 * index, level)
                soundfile.write(folder / f"{digit}_{speaker}_{index}.wav", samples, 8000)
    return folder


@pytest.fixture(scope="module")
def corpus(recordings, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made") / "digits"
    write_digits(recordings, folder, "en-de", COUNTS, seed=3)
    return folder


def heard(path: Path) -> tuple[list[tuple[int, int, int]], list[float]]:
    """The recordings in a file as (speaker, digit, index), and the silences around them, in
    seconds."""
    audio = read_audio(path)
    loud = np.concatenate([[False], np.abs(audio) > 5 * STEP, [False]])
    edges = np.flatnonzero(np.diff(loud.astype(int)))
    spans = [(int(a), int(b)) for a, b in zip(edges[::2], edges[1::2], strict=True) if b - a > 1000]
    found = []
    for begin, end in spans:
        number = round(np.median(audio[begin:end]) / STEP) - 12
        rest, place = divmod(number, len(TAKES))
        found.append((*divmod(rest, 10), TAKES[place]))
    bounds = [0, *(edge for span in spans for edge in span), len(audio)]
    return found, [(b - a) / 16_000 for a, b in zip(bounds[::2], bounds[1::2], strict=True)]


@pytest.mark.parametrize("split", SPLITS)
def test_what_is_heard_is_what_is_written(corpus, split):
    utterances = list(read(corpus).splits[split]())
    assert len(utterances) == getattr(COUNTS, split)
    lengths = set()
    for each in utterances:
        parts, silences = heard(each.audio)
        assert " ".join(DIGITS[digit] for _, digit, _ in parts) == each.transcript
        numbers = [10 * a + b for (_, a, _), (_, b, _) in list(pairwise(parts))[::2]]
        assert translated(numbers, "en-de") == each.translation
        assert min(numbers) >= 10
        assert len({speaker for speaker, _, _ in parts}) == 1
        assert {index for _, _, index in parts} <= set(HEARD[split])
        first, *inside, last = silences
        assert min(first, last) > 0.08
        assert max(inside[::2]) < 0.15 < 0.2 < min(inside[1::2])
        lengths.add(len(numbers))
    assert lengths == set(range(NUMBERS[0], NUMBERS[1] + 1))


def test_every_speaker_and_recording_of_a_split_is_heard(corpus):
    for split in ("validation", "test"):
        parts = [part for path in (corpus / split).iterdir() for part in heard(path)[0]]
        assert {speaker for speaker, _, _ in parts} == set(range(len(SPEAKERS)))
        assert {index for _, _, index in parts} == set(HEARD[split])
        assert {digit for _, digit, _ in parts} == set(range(10))


def test_files_are_16_khz_of_16_bits_and_never_digital_silence(corpus):
    for path in (corpus / "test").iterdir():
        info = soundfile.info(path)
        assert (info.samplerate, info.channels, info.subtype) == (16_000, 1, "PCM_16")
        start = read_audio(path, 0.0, 0.08)
        assert 0 < np.abs(start).max() < 1e-3


def test_splits_say_different_things(corpus):
    said = [[each.transcript for each in read(corpus).splits[split]()] for split in SPLITS]
    assert not any(set(one[:12]) & set(two[:12]) for one, two in pairwise([*said, said[0]]))


def content(folder: Path, pattern: str) -> str:
    files = sorted(folder.rglob(pattern))
    assert files
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def test_the_seed_draws_everything_and_the_pair_only_the_words(recordings, corpus, tmp_path):
    for name, pair, seed in (("same", "en-de", 3), ("pair", "en-fr", 3), ("seed", "en-de", 4)):
        write_digits(recordings.parent, tmp_path / name, pair, COUNTS, seed)
    assert content(tmp_path / "same", "*.*") == content(corpus, "*.*")
    assert content(tmp_path / "pair", "*.wav") == content(corpus, "*.wav")
    assert content(tmp_path / "pair", "*.tsv") != content(corpus, "*.tsv")
    assert content(tmp_path / "seed", "*.wav") != content(corpus, "*.wav")
    french_row = next(iter(read(tmp_path / "pair").splits["test"]()))
    german_row = next(iter(read(corpus).splits["test"]()))
    assert french_row.transcript == german_row.transcript
    assert french_row.translation != german_row.translation


def test_recordings_that_are_missing_are_named(recordings, tmp_path):
    def write(folder: Path) -> None:
        write_digits(folder, tmp_path / "made", "en-de", COUNTS)

    with pytest.raises(ValueError, match=r"unknown pair 'en-it'.*choose from en-de, en-fr"):
        write_digits(recordings, tmp_path / "made", "en-it", COUNTS)
    few = tmp_path / "few"
    few.mkdir()
    with pytest.raises(ValueError, match=r"nothing for the train split.*{digit}_{speaker}"):
        write(few)
    for file in recordings.iterdir():
        if file.name not in {f"7_ben_{index}.wav" for index in range(5)}:
            (few / file.name).hardlink_to(file)
    with pytest.raises(ValueError, match="ben does not say 7 in the test split"):
        write(few)
    (few / "seven.wav").touch()
    with pytest.raises(ValueError, match=r"seven.wav: expected {digit}_{speaker}_{index}.wav"):
        write(few)
    assert not (tmp_path / "made").exists()
