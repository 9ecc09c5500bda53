"""A corpus of tones, a recipe of seconds, and a run that knows the tones."""

from dataclasses import replace

import numpy as np
import pytest
import soundfile

from leapformer.tasks.speech.data import load
from leapformer.tasks.speech.prepare import prepare
from leapformer.tasks.speech.recipes import recipe
from leapformer.tasks.speech.train import train

RATE = 16_000
TONES = {"low": 300.0, "mid": 900.0, "high": 2500.0}
GERMAN = {"low": "tief", "mid": "mittel", "high": "hoch"}


def tones(root):
    """A manifest of one to three tones."""
    for s, (split, count) in enumerate({"train": 160, "validation": 15, "test": 15}.items()):
        chance = np.random.default_rng(s)
        (root / split).mkdir(parents=True)
        rows = ["id\taudio\ttranscript\ttranslation"]
        for i in range(count):
            words = chance.choice(list(TONES), 1 + i % 3).tolist()
            time = np.arange(int(RATE * chance.uniform(0.15, 0.25))) / RATE
            sound = [0.3 * np.sin(2 * np.pi * TONES[word] * time) for word in words]
            noise = chance.normal(0, 0.003, len(words) * len(time))
            soundfile.write(root / split / f"{i}.wav", np.concatenate(sound) + noise, RATE)
            german = " ".join(GERMAN[word] for word in words)
            rows.append(f"{split}-{i}\t{split}/{i}.wav\t{' '.join(words)}\t{german}")
        (root / f"{split}.tsv").write_text("\n".join(rows) + "\n")
    return root


@pytest.fixture(scope="session")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("speech")
    prepare(tones(root / "source"), root / "data", vocab_size=40)
    return root / "data"


@pytest.fixture(scope="session")
def data(folder):
    return load(folder)


@pytest.fixture(scope="session")
def tiny():
    return replace(
        recipe("digits"),
        encoder_layers=1,
        decoder_layers=1,
        hidden_size=32,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_chunk=2,
        wait_ratio=2,
        waits=(1, 2, 0),
        validation_wait=2,
        batch_size=8,
        warmup_steps=2,
        steps=6,
        evaluate_every=2,
        dropout=0.0,
        micro_batch=None,
        frequency_masks=2,
        frequency_width=15,
        time_masks=2,
        time_width=10,
    )


@pytest.fixture(scope="session")
def learned(tiny, folder, tmp_path_factory):
    """A run long enough to know the tones."""
    out = tmp_path_factory.mktemp("learned")
    chosen = replace(
        tiny, steps=300, evaluate_every=100, warmup_steps=20, learning_rate=5e-3, time_masks=0
    )
    return out, train(chosen, 0, out, folder)
