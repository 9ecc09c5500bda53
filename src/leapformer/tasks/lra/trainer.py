"""transformers' Trainer as Long-Range Arena's set-up wants it."""

from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import (
    EvalPrediction,
    Trainer,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)

from ...models import LeaPformerForSequenceClassification
from ..training import StopOnNaN, arguments
from .data import Collator
from .recipes import Recipe


def make_trainer(
    recipe: Recipe,
    model: LeaPformerForSequenceClassification,
    data: DatasetDict,
    seed: int,
    out: Path,
) -> Trainer:
    """AdamW, linear schedule, gradients clipped element by element.

    Raises ValueError as `arguments` does.
    """
    rows = len(data["train"])
    whole = rows // recipe.batch_size * recipe.batch_size  # however many processes share a batch
    settings = arguments(
        recipe,
        seed,
        out,
        rows,
        average_tokens_across_devices=False,  # the loss is a mean over examples, not over tokens
        lr_scheduler_type="linear",
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=0.0,
        bf16=recipe.precision == "bfloat16",
        logging_steps=min(recipe.evaluate_every, recipe.steps),
        metric_for_best_model="accuracy",
    )
    return Trainer(
        model,
        settings,
        train_dataset=data["train"].select(range(whole)).with_format("torch"),
        eval_dataset=data["validation"].with_format("torch"),
        data_collator=Collator(recipe),
        compute_metrics=_scores,
        callbacks=[_ClipValue(recipe.clip_value), StopOnNaN()],
    )


def _scores(prediction: EvalPrediction) -> dict[str, float]:
    """Over the examples of a split, each counted once (Trainer's own loss is a mean over batches,
    in which the examples of the last, smaller one count for more)."""
    logits = torch.as_tensor(prediction.predictions).double()
    labels = torch.as_tensor(prediction.label_ids)
    return {
        "accuracy": (logits.argmax(-1) == labels).double().mean().item(),
        "cross_entropy": torch.nn.functional.cross_entropy(logits, labels).item(),
    }


class _ClipValue(TrainerCallback):
    """Clip gradients element by element, as the arena's set-up does (Trainer clips norms)."""

    def __init__(self, limit: float) -> None:
        self.limit = limit

    def on_pre_optimizer_step(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        torch.nn.utils.clip_grad_value_(kwargs["model"].parameters(), self.limit)
