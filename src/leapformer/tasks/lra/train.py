"""One run: one attention, one seed, one recipe, on transformers' Trainer."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer

from ...models import LeaPformerConfig, LeaPformerForSequenceClassification
from ...results import signature
from ..processes import processes
from ..recipes import options_of
from ..runs import check_run, run
from .data import load, majority
from .recipes import Recipe
from .tasks import TASKS
from .trainer import make_trainer


def build_model(recipe: Recipe, attention: str) -> LeaPformerForSequenceClassification:
    """The classifier that the recipe describes, with this attention in it."""
    task = TASKS[recipe.task]
    config = LeaPformerConfig(
        vocab_size=task.vocab_size,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        attention=attention,
        attention_options=options_of(attention, dataclasses.asdict(recipe.budget)),
        max_position_embeddings=recipe.max_length,
        position_embedding=recipe.position_embedding,
        hidden_dropout_prob=recipe.dropout,
        initializer_range=recipe.initializer_range,
        num_labels=task.num_labels,
        pair=task.pair,
        pad_token_id=None,
    )
    return LeaPformerForSequenceClassification(config)


def train(
    recipe: Recipe,
    attention: str,
    seed: int,
    out: Path,
    folder: Path,
) -> dict[str, Any]:
    """Train on the data in `folder`, test, and leave `result.json` and the model in `out`.

    A run that finished before is not run again; one that was killed goes on from its last whole
    checkpoint. Raises ValueError where `out` holds a run of something else.
    """
    build_model(recipe, attention)
    check_run(out, seed)
    data, about = load(recipe, folder)
    wanted = {
        "task": recipe.task,
        "attention": attention,
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "data": about,
    }

    def report(trainer: Trainer) -> dict[str, Any]:
        tested = trainer.evaluate(data["test"], metric_key_prefix="test")
        return {
            "signature": signature(
                **wanted,
                precision=recipe.precision,
                processes=processes().num_processes,
            ),
            "accuracy": tested["test_accuracy"],
            "loss": tested["test_cross_entropy"],
            "majority": majority(data["test"]),
            "best_step": trainer.state.best_global_step,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "curve": trainer.state.log_history,
        }

    build = partial(build_model, recipe, attention)
    return run(
        out,
        wanted,
        recipe.steps,
        build,
        lambda model: make_trainer(recipe, model, data, seed, out),
        report,
    )
