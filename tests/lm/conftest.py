"""A run of a second, its corpus and its data."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from leapformer.tasks.lm.prepare import prepare
from leapformer.tasks.lm.recipes import LMRecipe, recipe
from leapformer.tasks.lm.train import train

WORDS = ["the", "cat", "sat", "on", "a", "mat", "and", "dog", "ran", "far", "away", "from", "home"]


@pytest.fixture(scope="session")
def tiny() -> LMRecipe:
    """Three epochs but two steps; steps 3, 6 and 7 are evaluated and saved."""
    return replace(
        recipe("quick"),
        sequence_length=16,
        hidden_size=16,
        num_attention_heads=2,
        intermediate_size=16,
        batch_size=8,
        learning_rate=1e-2,
        warmup_steps=1,
        steps=7,
        evaluate_every=3,
        validation_rows=None,
        test_tokens=None,
        context=8,
    )


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Short documents, some shorter than a row."""
    folder, chance = tmp_path_factory.mktemp("corpus"), random.Random(0)
    for i in range(40):
        words = chance.choices(WORDS, range(len(WORDS), 0, -1), k=chance.randint(3, 30))
        (folder / f"{i}.txt").write_text(" ".join(words) + "\n")
    return folder


@pytest.fixture(scope="session")
def folder(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in 270 tokens."""
    out = tmp_path_factory.mktemp("data") / "bpe"
    prepare(corpus, out, "bpe", 270, held_out=6)
    return out


@pytest.fixture(scope="session")
def words(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The corpus in words."""
    out = tmp_path_factory.mktemp("data") / "words"
    prepare(corpus, out, "words", None, held_out=6)
    return out


@pytest.fixture(scope="session")
def finished(
    tiny: LMRecipe, folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run that is finished, and its result."""
    out = tmp_path_factory.mktemp("runs") / "leap"
    return out, train(tiny, "leap", 3, out, folder)
