"""Spoken numbers to translate, put together from real recordings of digits.

Recordings of the Free Spoken Digit Dataset, a digit of one speaker each, become utterances of a few
two-digit numbers read digit by digit: "four two one seven". German turns most of them around
("zweiundvierzig siebzehn"), French hardly any ("quarante-deux dix-sept"), so the two pairs need to
wait for different lengths. No recording is in two splits.
"""

import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import soundfile
from numpy.random import Generator
from tqdm import tqdm

from ...ops.checks import known
from ..files import SPLITS, files
from .audio import RATE, Floats, read_audio
from .numbers import PAIRS, spoken, translated
from .tables import write_manifest
from .utterance import Utterance

Voices = dict[str, list[list[Path]]]
"""Of each speaker, for each digit, the recordings."""

NUMBERS = (2, 4)
"""In an utterance: at least, at most. Each is from 10 to 99."""

_NAME = re.compile(r"(\d)_(\w+)_(\d+)")
_FORM = (
    "{digit}_{speaker}_{index}.wav, as in the folder recordings of the Free Spoken Digit Dataset"
)
_AROUND, _BETWEEN_DIGITS, _BETWEEN_NUMBERS = (0.1, 0.3), (0.04, 0.12), (0.25, 0.5)
"""Seconds of silence, at least and at most."""
_NOISE = 1e-4
"""Deviation of the noise under everything: pauses are not digital silence, which would tell where
recordings begin."""


@dataclass(frozen=True)
class Counts:
    """Utterances of each split."""

    train: int = 4000
    validation: int = 300
    test: int = 500


def write_digits(
    recordings: Path, out: Path, pair: str, counts: Counts | None = None, seed: int = 0
) -> None:
    """Write a corpus of spoken numbers into the folder `out`: `{train,validation,test}.tsv`, a
    manifest, and 16 kHz wav files of 16 bits beside it. The audio depends on the seed alone, not on
    the pair.

    Indices 0 to 4 of each digit and speaker are heard in the test split alone, 45 to 49 in
    validation alone, the others in training: those next to the test's too, which sound more
    like them than later ones do (one speaker's "eight" lasts 0.24 s there, then 0.40 s).

    Args:
        recordings: the folder of `{digit}_{speaker}_{index}.wav`, or one with it as `recordings`.
        out: made, if it is not there.
        pair: en-de or en-fr.
        counts: utterances a split; None for 4000, 300 and 500.
        seed: draws speakers, numbers, recordings and pauses.

    Raises ValueError for an unknown pair, for files of other names and where a split lacks a digit
    of a speaker, and what `read_audio` raises.
    """
    known("pair", pair, PAIRS)
    counts = counts or Counts()
    inside = recordings / "recordings"
    voices = _voices(inside if inside.is_dir() else recordings)
    for i, split in enumerate(SPLITS):
        chance = np.random.default_rng([seed, i])
        (out / split).mkdir(parents=True)
        made = _utterances(voices[split], out / split, pair, getattr(counts, split), chance)
        write_manifest(out / f"{split}.tsv", made)


def _voices(recordings: Path) -> dict[str, Voices]:
    """The recordings by split; their order depends on names alone."""
    found: dict[str, Voices] = {
        split: defaultdict(lambda: [[] for _ in range(10)]) for split in SPLITS
    }
    for file in files(recordings, ".wav"):
        match = _NAME.fullmatch(file.stem)
        if match is None:
            raise ValueError(f"{file}: expected {_FORM}")
        split = {0: "test", 9: "validation"}.get(int(match[3]) // 5, "train")
        found[split][match[2]][int(match[1])].append(file)
    for split, voices in found.items():
        if not voices:
            raise ValueError(f"{recordings} has nothing for the {split} split: expected {_FORM}")
        for speaker, digits in voices.items():
            if not all(digits):
                raise ValueError(
                    f"{recordings}: {speaker} does not say {digits.index([])} in the {split} "
                    f"split: expected {_FORM}"
                )
    return found


def _utterances(
    voices: Voices, folder: Path, pair: str, count: int, chance: Generator
) -> Iterator[Utterance]:
    read = cache(read_audio)
    speakers = sorted(voices)
    for i in tqdm(range(count), desc=f"{folder.name} audio", unit="utterance", leave=False):
        takes = voices[speakers[chance.integers(len(speakers))]]
        numbers = chance.integers(10, 100, chance.integers(NUMBERS[0], NUMBERS[1] + 1)).tolist()
        digits = [digit for number in numbers for digit in divmod(number, 10)]
        inside = ([_BETWEEN_DIGITS, _BETWEEN_NUMBERS] * len(numbers))[:-1]
        parts = [_silence(_AROUND, chance)]
        for digit, pause in zip(digits, [*inside, _AROUND], strict=True):
            take = takes[digit][chance.integers(len(takes[digit]))]
            parts += [read(take), _silence(pause, chance)]
        audio = np.concatenate(parts)
        audio += chance.normal(0, _NOISE, len(audio)).astype(np.float32)
        path = folder / f"{i:05}.wav"
        soundfile.write(path, audio.clip(-1, 1), RATE, subtype="PCM_16")
        said = " ".join(map(spoken, numbers))
        yield Utterance(path.stem, path, 0.0, None, said, translated(numbers, pair))


def _silence(seconds: tuple[float, float], chance: Generator) -> Floats:
    return np.zeros(round(RATE * chance.uniform(*seconds)), np.float32)
