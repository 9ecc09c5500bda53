"""transformers' Trainer, as every run uses it."""

import math
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from .processes import processes


class Schedule(Protocol):
    """What the recipe of any run says."""

    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def learning_rate(self) -> float: ...
    @property
    def weight_decay(self) -> float: ...
    @property
    def warmup_steps(self) -> int: ...
    @property
    def evaluate_every(self) -> int: ...


def arguments(
    recipe: Schedule, seed: int, out: Path, rows: int, micro_batch: int | None = None, **more: Any
) -> TrainingArguments:
    """Evaluates and saves every so many steps, keeps the best; `more` goes to transformers.

    The batch is shared out among the processes, and each adds up its share from micro batches. A
    process has one GPU: of several that it sees, the first.
    Raises ValueError where it cannot be, or is more than the `rows` for training.
    """
    shares = processes().num_processes
    share = recipe.batch_size // shares
    micro = min(micro_batch or share, share)
    if recipe.batch_size % shares or share % micro:
        raise ValueError(
            f"a batch of {recipe.batch_size} cannot be shared by {shares} process(es) in parts of "
            f"{micro}: change --batch-size" + (" or --micro-batch" if micro_batch else "")
        )
    if rows < recipe.batch_size:
        raise ValueError(
            f"a batch of {recipe.batch_size} is more than the {rows} rows for training: give a "
            "smaller --batch-size"
        )
    every = min(recipe.evaluate_every, recipe.steps)
    settings = TrainingArguments(
        **{
            "output_dir": str(out),
            "max_steps": recipe.steps,
            "per_device_train_batch_size": micro,
            "per_device_eval_batch_size": micro,
            "gradient_accumulation_steps": share // micro,
            "remove_unused_columns": False,
            "learning_rate": recipe.learning_rate,
            "lr_scheduler_type": "cosine",
            "warmup_steps": recipe.warmup_steps,
            "weight_decay": recipe.weight_decay,
            "eval_strategy": "steps",
            "eval_steps": every,
            "logging_steps": max(1, every // 10),
            "logging_nan_inf_filter": False,
            "save_strategy": "steps",
            "save_steps": every,
            "save_total_limit": 2,
            "load_best_model_at_end": True,
            "metric_for_best_model": "loss",
            "seed": seed,
            "data_seed": seed,
            "report_to": "none",
            "use_cpu": not torch.cuda.is_available(),
            **more,
        }
    )
    # Trainer would spread a batch over all it sees, each of them with a whole share: another batch
    settings._n_gpu = min(1, settings.n_gpu)
    return settings


class StopOnNaN(TrainerCallback):
    """A loss that is no number, in training or in evaluation, ends the run where it is logged."""

    losses = (
        ("training", "loss"),
        ("validation", "eval_loss"),
        ("validation", "eval_cross_entropy"),
        ("test", "test_loss"),
        ("test", "test_cross_entropy"),
    )

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        logs = kwargs.get("logs") or {}
        for of, name in self.losses:
            if not math.isfinite(float(logs.get(name, 0.0))):
                raise FloatingPointError(
                    f"the {of} loss is {logs[name]} at step {state.global_step}: "
                    "lower --learning-rate or raise --warmup-steps"
                )
