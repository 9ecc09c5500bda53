"""transformers' Trainer as Long-Range Arena's set-up wants it."""

import math
from pathlib import Path
from typing import Any

import numpy as np
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
from .data import collate
from .recipes import Recipe


def make_trainer(
    recipe: Recipe,
    model: LeaPformerForSequenceClassification,
    data: DatasetDict,
    seed: int,
    out: Path,
) -> Trainer:
    """AdamW, linear schedule, clipped gradients; evaluates and saves every so many steps."""
    every = min(recipe.evaluate_every, recipe.steps)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size,
        per_device_eval_batch_size=recipe.batch_size,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=0.0,
        bf16=recipe.precision == "bfloat16",
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=every,
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        seed=seed,
        data_seed=seed,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    return Trainer(
        model,
        arguments,
        train_dataset=data["train"].with_format("torch"),
        eval_dataset=data["validation"].with_format("torch"),
        data_collator=collate,
        compute_metrics=_accuracy,
        callbacks=[_ClipValue(recipe.clip_value), _StopOnNaN()],
    )


def _accuracy(prediction: EvalPrediction) -> dict[str, float]:
    answers = np.asarray(prediction.predictions).argmax(-1)
    return {"accuracy": float((answers == prediction.label_ids).mean())}


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


class _StopOnNaN(TrainerCallback):
    """A loss that is no number ends the run at once, with its step."""

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        loss = (kwargs.get("logs") or {}).get("loss", 0.0)
        if not math.isfinite(float(loss)):
            raise FloatingPointError(
                f"the training loss is {loss} at step {state.global_step}: "
                "lower --learning-rate or raise --warmup-steps"
            )
