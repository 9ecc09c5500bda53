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
from ..processes import processes
from ..runs import StopOnNaN
from .data import Collator
from .recipes import Recipe


def make_trainer(
    recipe: Recipe,
    model: LeaPformerForSequenceClassification,
    data: DatasetDict,
    seed: int,
    out: Path,
) -> Trainer:
    """AdamW, linear schedule, clipped gradients; evaluates and saves every so many steps.

    Raises ValueError where the batch cannot be shared out among the processes or is larger than
    the training split.
    """
    every = min(recipe.evaluate_every, recipe.steps)
    shares = processes().num_processes
    if recipe.batch_size % shares:
        raise ValueError(f"a batch of {recipe.batch_size} cannot be shared by {shares} processes")
    if recipe.batch_size > len(data["train"]):
        raise ValueError(
            f"a batch of {recipe.batch_size} is more than the {len(data['train'])} examples for "
            "training: give a smaller --batch-size"
        )
    # Whole batches only: the same steps, however many processes share a batch.
    whole = len(data["train"]) // recipe.batch_size * recipe.batch_size
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // shares,
        per_device_eval_batch_size=recipe.batch_size // shares,
        remove_unused_columns=False,
        average_tokens_across_devices=False,  # the loss is a mean over examples, not over tokens
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
