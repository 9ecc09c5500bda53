"""Recipes: every number of a run, with its source beside it. One function a preset."""

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Literal

from ...ops.checks import known
from .listops import TreeShape


@dataclass(frozen=True)
class Recipe:
    """A full, typed configuration; the same for every attention that is compared."""

    task: str
    preset: str

    trees: TreeShape
    """Which ListOps trees."""
    train_examples: int
    validation_examples: int
    test_examples: int
    data_seed: int = 0

    num_hidden_layers: int = 2
    hidden_size: int = 64
    num_attention_heads: int = 2
    intermediate_size: int = 128
    position_embedding: str = "learned"
    max_length: int = 2000
    """Rows of the table of positions, and cosFormer's M."""
    dropout: float = 0.1
    leap_hidden: int | None = None
    """r of LeaP; None is head_dim / 4, the paper's step-down of 4."""

    batch_size: int = 32
    """Sequences a step."""
    learning_rate: float = 1e-4
    warmup_steps: int = 1000
    steps: int = 20_000
    weight_decay: float = 0.0
    adam_epsilon: float = 1e-6
    clip_value: float = 1.0
    """Gradients are clipped to [-clip_value, clip_value], element by element."""
    precision: Literal["float32", "bfloat16"] = "float32"
    evaluate_every: int = 500
    """Steps between evaluations on the validation split; the best model is tested."""

    def __post_init__(self) -> None:
        may_be_zero = ("data_seed", "warmup_steps", "dropout", "weight_decay")
        for item in fields(self):
            value = getattr(self, item.name)
            if isinstance(value, int | float):
                least = "at least 0" if item.name in may_be_zero else "positive"
                if value < 0 or (value == 0 and least == "positive"):
                    raise ValueError(f"{item.name} is {value}: it must be {least}")


def listops_paper() -> Recipe:
    """The small PyTorch set-up of Long-Range Arena that the paper works with (published
    configurations; Skyformer, Chen et al. 2021, has the same with 50k steps)."""
    return Recipe(
        task="listops",
        preset="paper",
        trees=TreeShape(),
        train_examples=96_000,
        validation_examples=2_000,
        test_examples=2_000,
        leap_hidden=16,  # 2,180 parameters of LeaP in two layers: the paper's table of sizes
    )


def listops_quick() -> Recipe:
    """Two cores, minutes: the paper's model on short trees, with a learning rate for few steps."""
    return Recipe(
        task="listops",
        preset="quick",
        trees=TreeShape(min_length=10, max_length=100, max_depth=4, max_arguments=5),
        train_examples=96_000,
        validation_examples=1_000,
        test_examples=2_000,
        max_length=100,
        learning_rate=1e-3,
        warmup_steps=300,
        steps=3_000,
        evaluate_every=500,
    )


RECIPES: dict[str, dict[str, Callable[[], Recipe]]] = {
    "listops": {"quick": listops_quick, "paper": listops_paper},
}


def recipe(task: str, preset: str) -> Recipe:
    """The recipe of that name; ValueError with the names there are for another."""
    presets = RECIPES[known("task", task, RECIPES)]
    return presets[known("preset", preset, presets)]()
