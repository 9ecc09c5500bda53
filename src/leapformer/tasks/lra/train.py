"""One run: one attention, one seed, one recipe, on transformers' Trainer."""

import dataclasses
import json
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from datasets import DatasetDict
from transformers import Trainer, TrainerState, set_seed

from ...models import LeaPformerConfig, LeaPformerForSequenceClassification
from ...ops import choose_backend
from ...results import read_json, signature, writable_folder, write_json
from ...zoo import LinearAttention, attention_class
from .data import lengths, load_listops, majority
from .listops import VOCABULARY
from .recipes import Recipe
from .trainer import make_trainer

RESULT = "result.json"


def load_data(recipe: Recipe, cache: Path, source: Path | None = None) -> DatasetDict:
    """The recipe's data set, made or read once and kept in `cache`."""
    sizes = (recipe.train_examples, recipe.validation_examples, recipe.test_examples)
    return load_listops(recipe.trees, sizes, recipe.data_seed, cache, source)


def build_model(recipe: Recipe, attention: str) -> LeaPformerForSequenceClassification:
    """The classifier that the recipe describes, with this attention in it."""
    config = LeaPformerConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        attention=attention,
        attention_options={"hidden": recipe.leap_hidden} if attention == "leap" else None,
        max_position_embeddings=recipe.max_length,
        position_embedding=recipe.position_embedding,
        hidden_dropout_prob=recipe.dropout,
        num_labels=10,
    )
    return LeaPformerForSequenceClassification(config)


def train(
    recipe: Recipe,
    attention: str,
    seed: int,
    out: Path,
    cache: Path,
    source: Path | None = None,
) -> dict[str, Any]:
    """Train, test, and leave `result.json` and the model in `out`.

    A run that finished before is not run again; one that was killed goes on from its last whole
    checkpoint. Raises ValueError where `out` holds a run of something else.
    """
    build_model(recipe, attention)
    if seed < 0:
        raise ValueError(f"the seed is {seed}: it must be at least 0")
    writable_folder(out)
    wanted = {
        "task": recipe.task,
        "attention": attention,
        "seed": seed,
        "recipe": dataclasses.asdict(recipe),
        "source": None if source is None else str(source),
    }
    _claim(out, wanted)
    if (out / RESULT).is_file():
        print(f"{out / RESULT} is there: the run is finished", flush=True)
        finished: dict[str, Any] = read_json(out / RESULT)
        return finished

    data = load_data(recipe, cache, source)
    longest = max(int(lengths(split).max()) for split in data.values())
    if longest > recipe.max_length:
        raise ValueError(
            f"the longest sequence has {longest} tokens and the recipe allows for "
            f"{recipe.max_length}: give --max-length {longest}"
        )
    began = time.time()
    trainer = _trained(recipe, attention, data, seed, out)
    tested = trainer.evaluate(data["test"], metric_key_prefix="test")

    result = {
        "signature": signature(
            **wanted,
            backend=_backend(attention, trainer.args.device),
            precision=recipe.precision,
        ),
        "accuracy": tested["test_accuracy"],
        "loss": tested["test_loss"],
        "majority": majority(data["test"]),
        "best_step": trainer.state.best_global_step,
        "parameters": sum(p.numel() for p in trainer.model.parameters()),
        "seconds": time.time() - began,
        "curve": trainer.state.log_history,
    }
    trainer.save_model(str(out / "model"))
    write_json(out / RESULT, result)
    for checkpoint in out.glob("checkpoint-*"):
        shutil.rmtree(checkpoint)
    return result


def _backend(attention: str, device: torch.device) -> str:
    """What computes the attention: a backend of `leap_attention`, or torch itself."""
    serves = issubclass(attention_class(attention), LinearAttention)
    return choose_backend("auto", device) if serves else "torch"


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Mark the folder with what runs in it; refuse one that holds work on something else."""
    mark = out / "run.json"
    wanted = json.loads(json.dumps(wanted))
    if mark.is_file() and ((out / RESULT).is_file() or last_checkpoint(out)):
        held = read_json(mark)
        differing = [
            *(key for key in wanted if held.get(key) != wanted[key] and key != "recipe"),
            *(key for key in wanted["recipe"] if held["recipe"].get(key) != wanted["recipe"][key]),
        ]
        if differing:
            raise ValueError(
                f"{out} holds a run with another {' and '.join(differing)}: "
                "choose another --out, or delete it"
            )
    else:
        write_json(mark, wanted)


def _trained(recipe: Recipe, attention: str, data: DatasetDict, seed: int, out: Path) -> Trainer:
    """A trainer at the end of training, with the best model: from the start, from the last
    checkpoint, or, where that is the end already, without another step."""
    set_seed(seed)
    model = build_model(recipe, attention)
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        state = TrainerState.load_from_json(str(checkpoint / "trainer_state.json"))
        if state.global_step >= recipe.steps:
            assert state.best_model_checkpoint is not None
            best = out / Path(state.best_model_checkpoint).name
            model = LeaPformerForSequenceClassification.from_pretrained(best)
            trainer = make_trainer(recipe, model, data, seed, out)
            trainer.state = state
            return trainer
    trainer = make_trainer(recipe, model, data, seed, out)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def last_checkpoint(out: Path) -> Path | None:
    """The newest checkpoint that was written to its end: Trainer writes its state last."""
    whole = []
    for state in out.glob("checkpoint-*/trainer_state.json"):
        try:
            whole.append((int(json.loads(state.read_text())["global_step"]), state.parent))
        except (ValueError, KeyError):
            continue
    return max(whole)[1] if whole else None
