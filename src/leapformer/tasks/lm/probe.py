"""What a state of fixed size can hold: copying a string, and looking a number up in a phone book.

The two tasks of "Repeat After Me: Transformers are Better than State Space Models at Copying"
(Jelassi et al., ICML 2024, arXiv 2402.01032): accuracy against length, also beyond the lengths of
training. Answers are generated greedily from the cache, out of what the model said before.
"""

import dataclasses
import statistics
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedModel, Trainer, TrainingArguments

from ... import plots
from ...models import LeaPformerCache, LeaPformerConfig, LeaPformerForCausalLM
from ...models.language_model import IGNORED
from ...ops.checks import known
from ...results import markdown, read_json, signature, writable_folder, write_json
from ...zoo import attention_class
from ..processes import processes
from ..runs import StopOnNaN, check_run, run

PAD, BOS, EOS, ASK, ANSWER = range(5)
DIGIT = 5
LETTER = DIGIT + 10
"""The first digit and the first letter; the others follow."""
HELD_OUT = 8
"""One in so many prompts, told by a hash of the prompt, is never trained on."""

Ids = NDArray[np.int64]


@dataclass(frozen=True)
class ProbeRecipe:
    """A full, typed configuration; the same for every attention that is compared."""

    task: str
    """copy, or phonebook."""
    preset: str = "quick"

    min_length: int = 10
    """Letters of a string, or entries of a book, in training: uniform from here..."""
    max_length: int = 30
    """...to here."""
    evaluate_lengths: tuple[int, ...] = (10, 20, 30, 40, 60)
    evaluate_rows: int = 200
    """Strings or books of each of these lengths."""
    letters: int = 26
    name_length: int = 3
    """Letters of a name; the names of a book differ."""
    number_length: int = 4
    """Digits of a number."""

    num_hidden_layers: int = 2
    hidden_size: int = 64
    num_attention_heads: int = 2
    intermediate_size: int = 256
    position_embedding: str = "none"
    short_convolution: int = 4
    hidden: int | None = None
    """r of LeaP; None is head_dim / 4."""
    features: int = 128
    """Performer's random features."""
    initializer_range: float = 0.1

    batch_size: int = 32
    """Rows a step, over all processes."""
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    steps: int = 2000
    """The learning rate rises linearly for `warmup_steps` and falls to 0 along a cosine."""
    clip_norm: float = 1.0
    evaluate_every: int = 500
    """Steps between losses on held-out rows of the trained lengths; the best model is tested."""
    validation_rows: int = 256

    def __post_init__(self) -> None:
        known("task", self.task, TASKS)
        may_be_zero = ("short_convolution", "weight_decay", "warmup_steps")
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            for number in value if isinstance(value, tuple) else (value,):
                low = isinstance(number, int | float) and number <= 0
                if low and not (number == 0 and item.name in may_be_zero):
                    least = "at least 0" if item.name in may_be_zero else "positive"
                    raise ValueError(f"{item.name} is {number}: it must be {least}")
        if not self.evaluate_lengths:
            raise ValueError("evaluate_lengths is empty: give at least one length")
        if self.max_length < self.min_length:
            raise ValueError(
                f"max_length is {self.max_length}: it must be at least min_length, "
                f"{self.min_length}"
            )
        names = self.letters**self.name_length
        if self.task == "phonebook" and not self.longest <= names < 2**63:
            raise ValueError(
                f"{self.longest} entries want as many names, and {self.letters} letters in "
                f"{self.name_length} places make {names:,}: choose another --name-length"
            )

    @property
    def longest(self) -> int:
        """The longest string or book, of training or evaluation."""
        return max(self.max_length, *self.evaluate_lengths)


RECIPES: dict[str, dict[str, Callable[[], ProbeRecipe]]] = {
    "copy": {"quick": lambda: ProbeRecipe("copy")},
    "phonebook": {"quick": lambda: ProbeRecipe("phonebook")},
}


def recipe(task: str, preset: str) -> ProbeRecipe:
    """The recipe of that name; ValueError with the names there are for another."""
    presets = RECIPES[known("task", task, TASKS)]
    return presets[known("preset", preset, presets)]()


def copy(recipe: ProbeRecipe, length: int, chance: np.random.Generator) -> tuple[Ids, Ids]:
    """A string to copy: prompt `<bos> x <answer>` and answer `x <eos>`."""
    string = LETTER + chance.integers(recipe.letters, size=length)
    return np.array([BOS, *string, ANSWER]), np.array([*string, EOS])


def phonebook(recipe: ProbeRecipe, length: int, chance: np.random.Generator) -> tuple[Ids, Ids]:
    """A book of so many entries `name number`, then `<ask> name <answer>`; the answer is the
    number and `<eos>`. Names differ, numbers need not."""
    places = recipe.letters ** np.arange(recipe.name_length)
    drawn = chance.choice(recipe.letters**recipe.name_length, length, replace=False)
    names = LETTER + drawn[:, None] // places % recipe.letters
    numbers = DIGIT + chance.integers(10, size=(length, recipe.number_length))
    asked = chance.integers(length)
    book = np.concatenate([names, numbers], 1).ravel()
    return np.array([BOS, *book, ASK, *names[asked], ANSWER]), np.array([*numbers[asked], EOS])


TASKS: dict[str, Callable[[ProbeRecipe, int, np.random.Generator], tuple[Ids, Ids]]] = {
    "copy": copy,
    "phonebook": phonebook,
}


def draw(
    recipe: ProbeRecipe, length: int, chance: np.random.Generator, held_out: bool
) -> tuple[Ids, Ids]:
    """Prompt and answer of that length, of those held out or of the others.

    Raises ValueError where there are none: very short strings of very few letters.
    """
    for _ in range(100 * HELD_OUT):
        prompt, answer = TASKS[recipe.task](recipe, length, chance)
        digest = blake2b(prompt.tobytes(), digest_size=1).digest()
        if (digest[0] % HELD_OUT == 0) == held_out:
            return prompt, answer
    raise ValueError(
        f"length {length}, {recipe.letters} letters: too few prompts to hold some out for the "
        "evaluation: raise the length or --letters"
    )


class Rows(torch.utils.data.Dataset[tuple[Ids, Ids]]):
    """`count` rows of the trained lengths; row i follows from `seed` and i alone."""

    def __init__(self, recipe: ProbeRecipe, seed: int, count: int, held_out: bool = False) -> None:
        self.recipe, self.seed, self.count, self.held_out = recipe, seed, count, held_out

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, i: int) -> tuple[Ids, Ids]:
        if not 0 <= i < self.count:
            raise IndexError(f"row {i} of {self.count}")
        chance = np.random.default_rng([self.held_out, self.seed, i])
        length = chance.integers(self.recipe.min_length, self.recipe.max_length + 1)
        return draw(self.recipe, int(length), chance, self.held_out)


def collate(rows: list[tuple[Ids, Ids]]) -> dict[str, Tensor]:
    """Rows to a batch, padded on the right; labels on the answers alone."""
    ends = torch.tensor([len(prompt) + len(answer) for prompt, answer in rows])
    mask = torch.arange(int(ends.max())) < ends[:, None]
    ids, labels = torch.full(mask.shape, PAD), torch.full(mask.shape, IGNORED)
    for i, (prompt, answer) in enumerate(rows):
        ids[i, : ends[i]] = torch.from_numpy(np.concatenate([prompt, answer]))
        labels[i, len(prompt) : ends[i]] = torch.from_numpy(answer)
    return {"input_ids": ids, "attention_mask": mask.long(), "labels": labels}


def evaluation_rows(recipe: ProbeRecipe, length: int) -> tuple[Tensor, Tensor]:
    """Held-out prompts [B, P] and answers [B, A] of one length; the same for all models."""
    keys = ([2, length, i] for i in range(recipe.evaluate_rows))
    rows = [draw(recipe, length, np.random.default_rng(key), True) for key in keys]
    prompts, answers = (torch.from_numpy(np.stack(part)) for part in zip(*rows, strict=True))
    return prompts, answers


@torch.inference_mode()
def generate(model: Any, prompts: Tensor, count: int) -> Tensor:
    """The likeliest `count` tokens [B, count] after prompts [B, P], each after those before."""
    cache, new, found = LeaPformerCache(), prompts, []
    for _ in range(count):
        logits = model(new, past_key_values=cache, logits_to_keep=1).logits
        new = logits[:, -1].argmax(-1, keepdim=True)
        found.append(new)
    return torch.cat(found, 1)


def score(found: Tensor, wanted: Tensor) -> dict[str, float]:
    """Shares of answers [B, A] without a mistake, their `<eos>` included, and of characters that
    are right, without it."""
    right = (found == wanted).double()
    return {
        "exact": right.amin(1).mean().item(),
        "characters": right[:, :-1].mean().item(),
    }


def measure(recipe: ProbeRecipe, model: Any, device: torch.device) -> list[dict[str, Any]]:
    """The scores at every length of the recipe."""
    records = []
    for length in tqdm(recipe.evaluate_lengths, desc="lengths", leave=False):
        prompts, answers = evaluation_rows(recipe, length)
        parts = [
            generate(model, part.to(device), answers.shape[1]).cpu() for part in prompts.split(64)
        ]
        scores = score(torch.cat(parts), answers)
        records.append({"length": length, "rows": len(answers), **scores})
    return records


def build_model(recipe: ProbeRecipe, attention: str) -> LeaPformerForCausalLM:
    """The language model that the recipe describes, with this attention in it."""
    known_options = attention_class(attention).options()
    options = {"hidden": recipe.hidden, "features": recipe.features}
    tokens = [*TASKS[recipe.task](recipe, recipe.longest, np.random.default_rng(0))]
    config = LeaPformerConfig(
        vocab_size=LETTER + recipe.letters,
        hidden_size=recipe.hidden_size,
        num_hidden_layers=recipe.num_hidden_layers,
        num_attention_heads=recipe.num_attention_heads,
        intermediate_size=recipe.intermediate_size,
        attention=attention,
        attention_options={k: value for k, value in options.items() if k in known_options},
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
    shares = processes().num_processes
    if recipe.batch_size % shares:
        raise ValueError(
            f"a batch of {recipe.batch_size} cannot be shared by {shares} processes: change "
            "--batch-size"
        )
    every = min(recipe.evaluate_every, recipe.steps)
    arguments = TrainingArguments(
        output_dir=str(out),
        max_steps=recipe.steps,
        per_device_train_batch_size=recipe.batch_size // shares,
        per_device_eval_batch_size=64,
        remove_unused_columns=False,
        prediction_loss_only=True,
        learning_rate=recipe.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=recipe.warmup_steps,
        weight_decay=recipe.weight_decay,
        adam_beta2=0.98,
        max_grad_norm=recipe.clip_norm,
        eval_strategy="steps",
        eval_steps=every,
        logging_steps=max(1, every // 10),
        logging_nan_inf_filter=False,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=2,
        load_best_model_at_end=True,
        metric_for_best_model="loss",
        greater_is_better=False,
        seed=seed,
        data_seed=seed,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
    )
    return Trainer(
        model,
        arguments,
        train_dataset=Rows(recipe, seed, recipe.steps * recipe.batch_size),
        eval_dataset=Rows(recipe, 0, recipe.validation_rows, held_out=True),
        data_collator=collate,
        callbacks=[StopOnNaN()],
    )


def compare(
    recipe: ProbeRecipe, attentions: list[str], seeds: list[int], out: Path
) -> list[dict[str, Any]]:
    """Train every attention with every seed and measure each at every length.

    Leaves `results.json` (a record a run), `table.md` and `accuracy.png` in `out`. Runs that
    finished before are kept and one that was killed goes on.
    """
    attentions, seeds = list(dict.fromkeys(attentions)), list(dict.fromkeys(seeds))
    if not attentions or not seeds:
        raise ValueError("give at least one attention and one seed")
    if min(seeds) < 0:
        raise ValueError(f"seed {min(seeds)} is negative")
    for attention in attentions:
        build_model(recipe, attention)
    for length in {*range(recipe.min_length, recipe.max_length + 1), *recipe.evaluate_lengths}:
        for held_out in (False, True):
            draw(recipe, length, np.random.default_rng(0), held_out)
    writable_folder(out)

    results: list[dict[str, Any]] = []
    total = len(seeds) * len(attentions)
    for seed in seeds:
        for attention in attentions:
            if processes().is_main_process:
                print(f"{len(results) + 1} of {total}: {attention}, seed {seed}", flush=True)
            results.append(train(recipe, attention, seed, out / "runs" / f"{attention}-{seed}"))
    if processes().is_main_process:
        write_json(out / "results.json", results)
        (out / "table.md").write_text(table(results), encoding="utf-8")
        plots.probe(results, out / "accuracy.png")
        results = read_json(out / "results.json")
    processes().wait_for_everyone()
    return results


def table(results: list[dict[str, Any]]) -> str:
    """Answers and characters that are right, in percent: an attention a row, a length a column."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["signature"]["attention"], []).append(result)
    signed, lengths = results[0]["signature"], results[0]["by_length"]
    text = ""
    for kind, label in (("exact", "answers without a mistake"), ("characters", "characters right")):
        head = [f"{label}, %", *(str(record["length"]) for record in lengths), "parameters"]
        rows = []
        for attention, group in groups.items():
            runs = [[100 * record[kind] for record in run["by_length"]] for run in group]
            cells = [_over(list(values)) for values in zip(*runs, strict=True)]
            rows.append([attention, *cells, f"{group[0]['parameters']:,}"])
        text += markdown(head, rows) + "\n"
    recipe, machine = signed["recipe"], signed["machine"]
    return text + (
        f"{recipe['task']}, preset {recipe['preset']}: trained on lengths {recipe['min_length']} "
        f"to {recipe['max_length']}, {recipe['steps']} steps of {recipe['batch_size']}, "
        f"{len(next(iter(groups.values())))} seed(s); {recipe['evaluate_rows']} held-out prompts "
        f"of each length, generated greedily. {machine['gpu'] or machine['processor']}, "
        f"{machine['threads']} thread(s).\n"
    )


def _over(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.1f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.1f}"
