"""One run: one attention, one seed, one recipe, on transformers' Trainer."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel, Trainer

from ...models import LeaPformerConfig, LeaPformerForCausalLM
from ...results import signature
from ..processes import processes
from ..recipes import options_of
from ..runs import check_run, run
from ..training import StopOnNaN, arguments
from .evaluate import measure
from .recipes import ProbeRecipe
from .tasks import BOS, EOS, LETTER, PAD, SAMPLERS, Rows, collate


def build_model(recipe: ProbeRecipe, attention: str) -> LeaPformerForCausalLM:
    """The language model that the recipe describes, with this attention in it."""
    options = {"hidden": recipe.hidden, "features": recipe.features}
    tokens = [*SAMPLERS[recipe.task](recipe, recipe.longest, np.random.default_rng(0))]
    config = LeaPformerConfig(
        vocab_size=LETTER + recipe.letters,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        attention=attention,
        attention_options=options_of(attention, options),
        max_position_embeddings=sum(map(len, tokens)),
        position_embedding=recipe.position_embedding,
        causal=True,
        short_convolution=recipe.short_convolution,
        tie_word_embeddings=False,
        hidden_dropout_prob=0.0,
        initializer_range=recipe.initializer_range,
        pad_token_id=PAD,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    return LeaPformerForCausalLM(config)


def train(recipe: ProbeRecipe, attention: str, seed: int, out: Path) -> dict[str, Any]:
    """Train, measure at every length, and leave `result.json` and the model in `out`.

    A run that finished before is not run again; one that was killed goes on from its last whole
    checkpoint. Raises ValueError where `out` holds a run of something else.
    """
    check_run(out, seed)
    wanted = {
        "task": recipe.task,
        "attention": attention,
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
    }

    def report(trainer: Trainer) -> dict[str, Any]:
        return {
            "signature": signature(**wanted, processes=processes().num_processes),
            "by_length": measure(recipe, trainer.model.eval(), trainer.args.device),
            "best_step": trainer.state.best_global_step,
            "parameters": sum(p.numel() for p in trainer.model.parameters()),
            "curve": trainer.state.log_history,
        }

    return run(
        out,
        wanted,
        recipe.steps,
        partial(build_model, recipe, attention),
        lambda model: make_trainer(recipe, model, seed, out),
        report,
    )


def make_trainer(recipe: ProbeRecipe, model: PreTrainedModel, seed: int, out: Path) -> Trainer:
    """Cosine schedule with warm-up; no row comes up twice."""
    settings = arguments(
        recipe,
        seed,
        out,
        recipe.steps * recipe.batch_size,
        per_device_eval_batch_size=64,
        prediction_loss_only=True,
        adam_beta2=0.98,
        max_grad_norm=recipe.clip_norm,
    )
    return Trainer(
        model,
        settings,
        train_dataset=Rows(recipe, seed, recipe.steps * recipe.batch_size),
        eval_dataset=Rows(recipe, 0, recipe.validation_rows, held_out=True),
        data_collator=collate,
        callbacks=[StopOnNaN()],
    )
