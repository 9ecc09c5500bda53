"""Recipes of speech translation: every number of a run, with its source beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...ops.checks import known
from ..recipes import check_numbers


@dataclass(frozen=True)
class SpeechRecipe:
    """A full, typed configuration; the same for every attention that is compared."""

    preset: str
    """digits, or paper for the published numbers."""

    encoder_attention: str = "leap"
    decoder_attention: str = "leap"
    cross_attention: str = "leap"
    learned_progress: bool = True
    """Off: the paper's form, content alone."""

    encoder_layers: int = 12
    decoder_layers: int = 6
    hidden_size: int = 256
    num_attention_heads: int = 8
    intermediate_size: int = 2048
    encoder_chunk: int = 9
    """States (40 ms each) that are encoded together."""
    wait_ratio: int = 9
    """States of a source unit: the pre-decision ratio."""
    encoder_convolution: int = 16
    decoder_convolution: int = 4
    initializer_range: float = 0.02
    dropout: float = 0.1

    waits: tuple[int, ...] = (5,)
    """One is drawn for each training batch, in units; 0 stands for all of the source."""
    validation_wait: int = 5
    """Of the validation loss, by which the best model is chosen."""
    label_smoothing: float = 0.1
    ctc_weight: float = 0.0
    """Of a CTC loss on transcripts beside the translation's; 0 for none."""
    recognition_steps: int = 0
    """Steps of speech recognition, whose encoder the translator starts from; 0 for none."""
    frequency_masks: int = 2
    """SpecAugment: so many bands, each of up to `frequency_width` bins..."""
    frequency_width: int = 27
    time_masks: int = 2
    """...and so many spans of up to `time_width` frames, and a fifth of the utterance at most, are
    hidden."""
    time_width: int = 100

    batch_size: int = 32
    """Utterances a step, over all processes."""
    micro_batch: int | None = None
    """Utterances at once on a process; a step then adds up several. None: all of its share."""
    schedule: Literal["inverse_sqrt", "cosine"] = "inverse_sqrt"
    learning_rate: float = 2e-3
    adam_beta2: float = 0.98
    weight_decay: float = 0.0
    warmup_steps: int = 10_000
    steps: int = 100_000
    clip_norm: float = 10.0
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int = 2_000
    test_utterances: int | None = None
    """So many of the test split from its start; None for all."""

    def __post_init__(self) -> None:
        zero = ("recognition_steps", "frequency_masks", "time_masks", "ctc_weight", "dropout")
        more = ("encoder_convolution", "decoder_convolution", "label_smoothing", "waits")
        check_numbers(self, (*zero, *more, "weight_decay", "warmup_steps", "validation_wait"))
        if not self.waits:
            raise ValueError("waits is empty: give at least one number of units, 0 for all")


def digits() -> SpeechRecipe:
    """Two-digit numbers read digit by digit: half a million parameters, minutes on two cores."""
    return SpeechRecipe(
        preset="digits",
        encoder_layers=3,
        decoder_layers=2,
        hidden_size=96,
        num_attention_heads=4,
        intermediate_size=192,
        encoder_chunk=12,
        wait_ratio=12,
        encoder_convolution=8,
        initializer_range=0.1,
        dropout=0.05,
        waits=(1, 2, 3, 5, 8, 0),
        validation_wait=3,
        label_smoothing=0.0,
        ctc_weight=0.5,
        frequency_width=10,
        time_masks=1,
        time_width=8,
        micro_batch=16,
        learning_rate=4e-3,
        schedule="cosine",
        warmup_steps=200,
        steps=4_000,
        clip_norm=1.0,
        evaluate_every=500,
    )


def paper() -> SpeechRecipe:
    """The published configuration (fairseq's convtransformer for simultaneous translation): wait-k
    with k = 5 units of 360 ms; recognition first, then translation."""
    return SpeechRecipe(preset="paper", recognition_steps=100_000, precision="bfloat16")


RECIPES: dict[str, Callable[[], SpeechRecipe]] = {"digits": digits, "paper": paper}


def recipe(preset: str) -> SpeechRecipe:
    """The recipe of that name; ValueError with the names there are for another."""
    return RECIPES[known("preset", preset, RECIPES)]()
