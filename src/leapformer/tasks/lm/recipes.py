"""Recipes of the language model: every number of a run, with its source beside it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from ...ops.checks import known
from ..recipes import check_numbers


@dataclass(frozen=True)
class LMRecipe:
    """A full, typed configuration; the same for every attention that is compared."""

    preset: str
    """quick, or paper for the published numbers."""

    sequence_length: int = 512
    """Tokens of a row; also M of cosFormer and of learned positions."""
    documents: Literal["joined", "apart"] = "joined"
    """joined: a row reads on from one document into the next. apart: packed, they do not see each
    other."""

    num_hidden_layers: int = 4
    hidden_size: int = 256
    num_attention_heads: int = 4
    intermediate_size: int = 1024
    position_embedding: str = "sinusoidal"
    short_convolution: int = 0
    """Taps before each attention; 0 for none, as in the paper."""
    feed_forward_convolution: int = 0
    """Taps before each feed-forward net; 0 for none, as in the paper."""
    qk_norm: bool = False
    """RMS norms of queries and keys, a head at a time; none in the paper."""
    hidden: int | None = None
    """r of LeaP; None is head_dim / 4, the paper's step-down of 4."""
    learned_length: bool = False
    """LeaP learns the length of a ramp (`leapformer.proportion.LengthLeaP`); False is the paper's
    form."""
    features: int = 128
    """Performer's random features."""
    adaptive_cutoffs: tuple[int, ...] = ()
    """Of a vocabulary of words, sorted by frequency; none for one band."""
    tie_word_embeddings: bool = True
    initializer_range: float = 0.02
    dropout: float = 0.0

    batch_size: int = 16
    """Rows a step, over all processes."""
    micro_batch: int | None = None
    """Rows at once on a process; a step then adds up several. None: all of its share."""
    optimizer: Literal["adamw", "nesterov"] = "adamw"
    learning_rate: float = 1e-3
    momentum: float = 0.99
    """nesterov's."""
    adam_beta2: float = 0.98
    adam_epsilon: float = 1e-8
    """AdamW's; it bounds how sure a model becomes that a token which training never shows does not
    come (docs/log.md)."""
    weight_decay: float = 0.01
    warmup_steps: int = 100
    steps: int = 1000
    """The learning rate rises linearly for `warmup_steps` and falls to 0 along a cosine."""
    clip_norm: float = 1.0
    precision: Literal["float32", "bfloat16"] = "float32"
    gradient_checkpointing: bool = False
    compile: bool = False
    evaluate_every: int = 250
    """Steps between evaluations on the validation split; the best model is tested."""
    validation_rows: int | None = None
    """At most so many rows of it, spread evenly; None for all."""
    test_tokens: int | None = None
    """Whole documents from the start of the test split until there are so many; None for all."""
    context: int = 256
    """In the final test each window of `sequence_length` moves on by the rest: so many tokens at
    least stand before each that is scored."""

    def __post_init__(self) -> None:
        check_numbers(
            self,
            (
                *("short_convolution", "feed_forward_convolution", "dropout"),
                *("weight_decay", "warmup_steps", "context"),
            ),
        )
        if self.context >= self.sequence_length:
            raise ValueError(
                f"context is {self.context}: it must leave room in windows of "
                f"{self.sequence_length}"
            )


def quick() -> LMRecipe:
    """Two cores, minutes: four attentions in half an hour."""
    return LMRecipe(
        preset="quick",
        num_hidden_layers=2,
        hidden_size=128,
        num_attention_heads=4,
        intermediate_size=512,
        position_embedding="none",  # sinusoids cost 4 % and break long windows (docs/log.md)
        learned_length=True,  # 1 to 2 % of perplexity (docs/log.md)
        short_convolution=4,  # linear mechanisms gain 12 % of perplexity (docs/log.md)
        feed_forward_convolution=4,  # 6 % for leap, 2 % for rotary softmax (docs/log.md)
        qk_norm=True,  # 1 % for rotary softmax, other domains mostly gain (docs/log.md)
        initializer_range=0.09,  # hidden_size^-1/2
        sequence_length=256,
        batch_size=8,
        learning_rate=3e-3,
        adam_epsilon=1e-5,  # other domains cost 0.25 bits a byte less, novels the same
        warmup_steps=100,
        steps=2000,
        evaluate_every=500,
        validation_rows=200,
        context=64,
    )


def paper() -> LMRecipe:
    """About 140 million parameters on WikiText-103's words (published configuration: fairseq's
    transformer_lm_wiki103, 8 layers; 250k updates of 8,192 tokens with Nesterov's momentum)."""
    return LMRecipe(
        preset="paper",
        sequence_length=512,
        num_hidden_layers=8,
        hidden_size=1024,
        num_attention_heads=8,
        intermediate_size=4096,
        adaptive_cutoffs=(20_000, 60_000),
        initializer_range=0.03125,  # hidden_size^-1/2
        dropout=0.1,
        batch_size=16,
        optimizer="nesterov",
        learning_rate=1.0,
        weight_decay=0.0,
        warmup_steps=16_000,
        steps=250_000,
        clip_norm=0.1,
        precision="bfloat16",
        evaluate_every=5_000,
        context=511,
    )


RECIPES: dict[str, Callable[[], LMRecipe]] = {"quick": quick, "paper": paper}


def recipe(preset: str) -> LMRecipe:
    """The recipe of that name; ValueError with the names there are for another."""
    return RECIPES[known("preset", preset, RECIPES)]()
