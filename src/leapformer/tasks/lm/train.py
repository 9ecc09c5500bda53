"""One run: one attention, one seed, one recipe, on transformers' Trainer."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Trainer

from ...models import LeaPformerConfig, LeaPformerForCausalLM
from ...results import signature
from ..pretrained import fingerprint
from ..processes import processes
from ..recipes import options_of
from ..runs import check_run, run
from ..training import StopOnNaN, arguments
from .data import Collator, Rows, Tokens, load
from .evaluate import measure
from .recipes import LMRecipe


def build_model(
    recipe: LMRecipe, attention: str, tokenizer: PreTrainedTokenizerFast
) -> LeaPformerForCausalLM:
    """The language model that the recipe describes, with this attention in it."""
    names = ("hidden", "learned_length", "features")
    options = {name: getattr(recipe, name) for name in names}
    config = LeaPformerConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        attention=attention,
        attention_options=options_of(attention, options),
        max_position_embeddings=recipe.sequence_length,
        position_embedding=recipe.position_embedding,
        causal=True,
        short_convolution=recipe.short_convolution,
        feed_forward_convolution=recipe.feed_forward_convolution,
        qk_norm=recipe.qk_norm,
        adaptive_cutoffs=list(recipe.adaptive_cutoffs) or None,
        tie_word_embeddings=recipe.tie_word_embeddings,
        hidden_dropout_prob=recipe.dropout,
        initializer_range=recipe.initializer_range,
        pad_token_id=None,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    return LeaPformerForCausalLM(config)


def load_for(
    recipe: LMRecipe, folder: Path
) -> tuple[dict[str, Tokens], PreTrainedTokenizerFast, dict[str, Any]]:
    """What `data.load` gives, for this recipe: ValueError where its adaptive cutoffs meet a
    vocabulary that is not sorted by frequency, or end before them."""
    splits, tokenizer, about = load(folder)
    size, last = about["vocab_size"], max(recipe.adaptive_cutoffs, default=0)
    if last and (about["vocabulary"] != "words" or last >= size):
        raise ValueError(
            f"adaptive cutoffs {recipe.adaptive_cutoffs} want more than {last:,} words sorted by "
            f"frequency, and {folder} holds {size:,} ({about['vocabulary']}): prepare it with "
            "--vocabulary words --vocab-size None, or give other --adaptive-cutoffs (without "
            "numbers: none)"
        )
    return splits, tokenizer, about


def train(recipe: LMRecipe, attention: str, seed: int, out: Path, folder: Path) -> dict[str, Any]:
    """Train on the tokens in `folder`, test, and leave `result.json` and the model, with its
    tokenizer, in `out`. Of several processes the first one alone tests and has the result.

    A run that finished before is not run again; one that was killed goes on from its last whole
    checkpoint, with the losses of an uninterrupted run. Raises ValueError where `out` holds a run
    of something else.
    """
    check_run(out, seed)
    splits, tokenizer, about = load_for(recipe, folder)
    build_model(recipe, attention, tokenizer)
    wanted = {
        "task": "lm",
        "attention": attention,
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "data": about,
    }

    def report(trainer: Trainer) -> dict[str, Any]:
        if not processes().is_main_process:
            return {}
        tokenizer.save_pretrained(str(out / "model"))
        trainer.model.config.tokenizer_sha256 = fingerprint(out / "model")
        best = trainer.state.best_model_checkpoint  # the trainer's model may be in shards
        model = LeaPformerForCausalLM.from_pretrained(best).to(trainer.args.device)
        test = splits["test"].first(recipe.test_tokens)
        return {
            "signature": signature(
                **wanted, precision=recipe.precision, processes=processes().num_processes
            ),
            "test": measure(model, test, recipe.sequence_length, recipe.context),
            "best_step": trainer.state.best_global_step,
            "parameters": model.num_parameters(),
            "trained_tokens": recipe.steps * recipe.batch_size * recipe.sequence_length,
            "curve": trainer.state.log_history,
        }

    return run(
        out,
        wanted,
        recipe.steps,
        partial(build_model, recipe, attention, tokenizer),
        lambda model: make_trainer(recipe, model, splits, seed, out),
        report,
    )


def make_trainer(
    recipe: LMRecipe, model: PreTrainedModel, splits: dict[str, Tokens], seed: int, out: Path
) -> Trainer:
    """Cosine schedule with warm-up, clipped norm. Raises ValueError as `arguments` does."""
    rows = Rows(splits["train"], recipe.sequence_length)
    held_out = Rows(splits["validation"], recipe.sequence_length, recipe.validation_rows)
    if recipe.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    settings = arguments(
        recipe,
        seed,
        out,
        len(rows),
        recipe.micro_batch,
        prediction_loss_only=True,
        adam_beta2=recipe.adam_beta2,
        adam_epsilon=recipe.adam_epsilon,
        max_grad_norm=recipe.clip_norm,
        bf16=recipe.precision == "bfloat16",
        torch_compile=recipe.compile,
    )
    nesterov = {
        "lr": recipe.learning_rate,
        "momentum": recipe.momentum,
        "nesterov": True,
        "weight_decay": recipe.weight_decay,
    }
    chosen = (torch.optim.SGD, nesterov) if recipe.optimizer == "nesterov" else None
    return Trainer(
        model,
        settings,
        train_dataset=_whole(rows, recipe.batch_size),
        eval_dataset=_whole(held_out, recipe.batch_size),
        data_collator=Collator(recipe),
        optimizer_cls_and_kwargs=chosen,
        callbacks=[StopOnNaN()],
    )


def _whole(rows: Rows, batch: int) -> torch.utils.data.Subset[dict[str, Any]]:
    """Whole batches, if there is one: the same ones, however many processes share them."""
    return torch.utils.data.Subset(rows, range(len(rows) // batch * batch or len(rows)))
