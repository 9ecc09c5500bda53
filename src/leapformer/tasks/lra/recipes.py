"""Recipes: every number of a run, with its source beside it. One function a preset.

The `paper` presets are the small PyTorch set-up of Long-Range Arena that the paper works with
(published configurations of Skyformer, Chen et al. 2021): 2 layers, 64 wide, 2 heads. The `quick`
presets are the same model on shorter sequences, for two cores and minutes; their learning rates
suit few steps.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from ...ops.checks import known
from ..recipes import check_numbers
from .curves import CurveShape
from .listops import TreeShape


@dataclass(frozen=True)
class Budget:
    """What an attention may spend. Each takes the options it knows, see `Attention.options`."""

    features: int = 128
    """Performer's random features, Linformer's projected length, Nystromformer's and Skyformer's
    landmarks, Informer's queries."""
    hashes: int = 2
    """Reformer."""
    chunk: int = 64
    """Reformer."""
    block: int = 64
    """BigBird."""
    random: int = 3
    """BigBird's random blocks."""
    rank: int = 32
    """Transformer-LS."""
    window: int = 8
    """Transformer-LS."""
    hidden: int | None = None
    """r of LeaP; None is head_dim / 4, the paper's step-down of 4."""


@dataclass(frozen=True)
class Recipe:
    """A full, typed configuration; the same for every attention that is compared."""

    task: str
    """listops, text, retrieval, image or pathfinder; for compare also all."""
    preset: str
    """quick, or paper for the published numbers."""

    prepared: bool = True
    """Read what `leapformer lra prepare` left; False: sample the data, as `trees` or `curves`."""
    trees: TreeShape | None = None
    """Which ListOps trees are sampled."""
    curves: CurveShape | None = None
    """Which Pathfinder images are sampled."""
    train_examples: int | None = None
    """None: all that is prepared."""
    validation_examples: int = 2_000
    """Carved from the training split, unless the source has a validation split of its own."""
    test_examples: int | None = None
    data_seed: int = 0
    shrink: int = 1
    """Images: how many pixels a side are averaged into one."""
    max_length: int = 2000
    """Rows of the table of positions, and M of cosFormer. Texts are cut to it."""

    num_hidden_layers: int = 2
    hidden_size: int = 64
    num_attention_heads: int = 2
    intermediate_size: int = 128
    position_embedding: str = "learned"
    initializer_range: float = 0.02
    """Standard deviation of the embeddings at the start: 0.02 is the published one; with 0.3 a
    token shows through the layers from the first step, which some tasks need to learn in few."""
    dropout: float = 0.1
    budget: Budget = field(default_factory=Budget)

    batch_size: int = 32
    """Examples a step, over all processes."""
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
    timing_batch: int = 32
    """Examples a step where throughput and memory are measured."""

    def __post_init__(self) -> None:
        check_numbers(self, ("data_seed", "warmup_steps", "dropout", "weight_decay"))


PAPER = Budget(hidden=16)
"""r = 16: 2,180 parameters of LeaP in two layers, as in the paper's table of sizes."""
SHORT = Budget(features=32, chunk=16, block=16, rank=8)
"""For 256 tokens: 128 landmarks would hardly be an approximation there."""
SHORTER = Budget(features=32, chunk=16, block=8, rank=8)
"""For 100 to 150 tokens: of which BigBird would see all with blocks of 16."""


def listops_paper() -> Recipe:
    return Recipe(
        task="listops",
        preset="paper",
        prepared=False,
        trees=TreeShape(),
        train_examples=96_000,
        test_examples=2_000,
        max_length=2000,
        budget=PAPER,
    )


def listops_quick() -> Recipe:
    return Recipe(
        task="listops",
        preset="quick",
        prepared=False,
        trees=TreeShape(min_length=10, max_length=100, max_depth=4, max_arguments=5),
        train_examples=96_000,
        validation_examples=1_000,
        test_examples=2_000,
        max_length=100,
        budget=SHORTER,
        learning_rate=1e-3,
        warmup_steps=300,
        steps=2_000,
        timing_batch=8,
    )


def text_paper() -> Recipe:
    return Recipe(task="text", preset="paper", max_length=4000, warmup_steps=80, budget=PAPER)


def text_quick() -> Recipe:
    return Recipe(
        task="text",
        preset="quick",
        validation_examples=1_000,
        test_examples=4_000,
        max_length=256,
        initializer_range=0.3,
        budget=SHORT,
        learning_rate=1e-3,
        warmup_steps=50,
        steps=500,
        evaluate_every=250,
        timing_batch=4,
    )


def retrieval_paper() -> Recipe:
    return Recipe(
        task="retrieval",
        preset="paper",
        max_length=4000,
        budget=PAPER,
        batch_size=16,
        learning_rate=2e-4,
        warmup_steps=800,
        steps=50_000,
        timing_batch=16,
    )


def retrieval_quick() -> Recipe:
    return Recipe(
        task="retrieval",
        preset="quick",
        validation_examples=200,
        max_length=256,
        initializer_range=0.3,
        budget=SHORT,
        batch_size=8,
        learning_rate=1e-3,
        warmup_steps=50,
        steps=300,
        evaluate_every=100,
        timing_batch=2,
    )


def image_paper() -> Recipe:
    return Recipe(
        task="image",
        preset="paper",
        validation_examples=5_000,
        max_length=1024,
        budget=PAPER,
        batch_size=256,
        warmup_steps=175,
        steps=30_000,
        timing_batch=256,
    )


def image_quick() -> Recipe:
    return Recipe(
        task="image",
        preset="quick",
        validation_examples=1_000,
        test_examples=2_000,
        shrink=2,
        max_length=256,
        budget=SHORT,
        learning_rate=2e-3,
        warmup_steps=50,
        steps=500,
        evaluate_every=250,
        timing_batch=16,
    )


def pathfinder_paper() -> Recipe:
    return Recipe(
        task="pathfinder",
        preset="paper",
        prepared=False,
        curves=CurveShape(),
        train_examples=160_000,
        validation_examples=20_000,
        test_examples=20_000,
        max_length=1024,
        budget=PAPER,
        batch_size=128,
        learning_rate=2e-4,
        warmup_steps=312,
        steps=50_000,
        timing_batch=128,
    )


def pathfinder_quick() -> Recipe:
    return Recipe(
        task="pathfinder",
        preset="quick",
        prepared=False,
        curves=CurveShape(
            size=12,
            contour_length=3,
            marker_radius=1.0,
            seed_distance=3.0,
            distractors=0,
            gap=0.5,
            clearance=1.5,
            padding=0.0,
        ),
        train_examples=20_000,
        validation_examples=1_000,
        test_examples=2_000,
        max_length=144,
        initializer_range=0.3,
        budget=SHORTER,
        learning_rate=1e-3,
        warmup_steps=50,
        steps=300,
        evaluate_every=150,
        timing_batch=16,
    )


RECIPES: dict[str, dict[str, Callable[[], Recipe]]] = {
    "listops": {"quick": listops_quick, "paper": listops_paper},
    "text": {"quick": text_quick, "paper": text_paper},
    "retrieval": {"quick": retrieval_quick, "paper": retrieval_paper},
    "image": {"quick": image_quick, "paper": image_paper},
    "pathfinder": {"quick": pathfinder_quick, "paper": pathfinder_paper},
}


def recipe(task: str, preset: str) -> Recipe:
    """The recipe of that name; ValueError with the names there are for another."""
    presets = RECIPES[known("task", task, RECIPES)]
    return presets[known("preset", preset, presets)]()
