"""What a translation stream costs: over an hour of sound, and with many sessions at once."""

import dataclasses
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models
from tqdm import trange
from transformers import PreTrainedTokenizerFast

from .. import plots
from ..models import LeaPformerFeatureExtractor, LeaPformerForSpeechTranslation
from ..results import json_file, signature, write_json
from ..tasks.speech.recipes import recipe
from ..tasks.speech.train import configuration
from ..tasks.speech.translator import Translator
from ..timing import spread
from ..timing import threads as limited

PIECE = 0.5
"""Seconds of sound that come in at once."""


def run(
    out: Path,
    preset: str,
    cross: list[str],
    sessions: list[int],
    minutes: int,
    seconds: int,
    wait: int,
    threads: int,
) -> dict[str, Any]:
    """Measure models of a recipe's shape with random weights, and write `out` (JSON) and the
    picture beside it.

    One session, for each mechanism of cross-attention: so many minutes of noise, with seconds of
    computing a second of sound and bytes of state after each minute. Many sessions of the first
    mechanism: each hears `seconds` of noise in pieces of half a second; the real-time factor of all
    together must stay below 1.
    """
    json_file(out)
    if not cross or not sessions or min(minutes, seconds, wait, threads, *sessions) < 1:
        raise ValueError("give a mechanism, and numbers of at least 1 for all else")
    with limited(threads):
        translators = {name: _translator(preset, name, wait) for name in cross}
        result = {
            "signature": signature(
                bench="speech",
                precision="float32",
                seed=0,
                recipe={
                    "preset": preset,
                    "cross_attention": cross,
                    "sessions": sessions,
                    "minutes": minutes,
                    "seconds": seconds,
                    "wait": wait,
                    "piece": PIECE,
                },
            ),
            "one": [
                {"attention": name, "minutes": _long(translator, name, minutes)}
                for name, translator in translators.items()
            ],
            "many": [_together(translators[cross[0]], count, seconds) for count in sessions],
        }
    write_json(out, result)
    plots.speech_bench(result, out.with_suffix(".png"))
    return result


def _translator(preset: str, cross: str, wait: int) -> Translator:
    """A translator of the recipe's shape that has learned nothing."""
    torch.manual_seed(0)
    chosen = dataclasses.replace(recipe(preset), cross_attention=cross)
    config = configuration(chosen, vocab_size=512, tie_word_embeddings=False)
    words = Tokenizer(models.WordLevel({f"▁w{i}": i for i in range(512)}, unk_token="▁w0"))
    words.decoder = decoders.Metaspace()
    processor = SimpleNamespace(
        feature_extractor=LeaPformerFeatureExtractor(),
        tokenizer=PreTrainedTokenizerFast(tokenizer_object=words),
    )
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return Translator(LeaPformerForSpeechTranslation(config).to(device), processor, wait)


def _noise(chance: np.random.Generator) -> Any:
    return chance.normal(0, 0.1, int(PIECE * 16_000)).astype(np.float32)


def _long(translator: Translator, name: str, minutes: int) -> list[dict[str, float]]:
    session, chance = translator.session(), np.random.default_rng(0)
    session.push(_noise(chance))
    records = []
    for minute in trange(1, minutes + 1, desc=f"minutes, {name}", leave=False):
        began = time.perf_counter()
        for _ in range(int(60 / PIECE)):
            session.push(_noise(chance))
        spent = time.perf_counter() - began
        records.append(
            {"minute": minute, "real_time_factor": spent / 60, "state_bytes": session.nbytes}
        )
    return records


def _together(translator: Translator, count: int, seconds: int) -> dict[str, Any]:
    sessions = [translator.session() for _ in range(count)]
    chance, factors = np.random.default_rng(0), []
    for _ in trange(int(seconds / PIECE), desc=f"{count} sessions", leave=False):
        pieces = [_noise(chance) for _ in sessions]
        began = time.perf_counter()
        translator.push(sessions, pieces)
        factors.append((time.perf_counter() - began) / PIECE)
    return {
        "sessions": count,
        "real_time_factor": sum(factors) / len(factors),
        "of_a_piece": spread(factors),
        "words": sum(session.written for session in sessions),
    }
