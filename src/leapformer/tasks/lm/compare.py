"""Language models that differ in attention alone: same parameters but for the attention's own, same
tokens, same steps; then how well they predict, how far, and how fast they train."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ... import plots
from ...results import markdown, read_json, signature, writable_folder, write_json
from ...timing import peak_bytes, seconds, spread
from ..comparison import check_grid, grouped, over_seeds, where
from ..processes import processes
from ..runs import RESULT
from .data import Tokens
from .evaluate import by_length, measure, shown_tokens
from .generate import load_model, natural_tokens, text_tokens
from .recipes import LMRecipe
from .train import build_model, load_for, train

LONGEST = 64
"""The longest window of the length curve, in lengths of a training row."""

SPANS = 16
"""Places of the test split whose tokens the length curve scores."""


def compare(
    recipe: LMRecipe,
    attentions: list[str],
    seeds: list[int],
    out: Path,
    folder: Path,
    also: list[Path],
    rounds: int = 5,
    also_natural: Sequence[Path] = (),
) -> list[dict[str, Any]]:
    """Train every attention with every seed, measure them on the test split, on the texts `also`
    and, their tokenisation undone, `also_natural`, and after ever more context, then time them.

    An attention may have positions of its own: "softmax+rotary" is softmax with rotary ones.
    Leaves `results.json` (a record a run), `table.md`, `curves.png` and `lengths.png` in `out`.
    Runs that finished before are kept and one that was killed goes on.
    """
    attentions, seeds = check_grid(attentions, seeds, rounds)
    splits, tokenizer, _ = load_for(recipe, folder)
    for name in attentions:
        build_model(*own_recipe(recipe, name), tokenizer)
    texts = {path.name: text_tokens(tokenizer, path) for path in also}
    texts |= {f"{path.name}, natural": natural_tokens(tokenizer, path) for path in also_natural}
    if len(texts) < len(set(also)) + len(set(also_natural)):
        raise ValueError("two further texts have the same name: rename one")
    shown = shown_tokens(splits["train"], len(tokenizer))
    writable_folder(out)

    runs: list[dict[str, Any]] = []
    total = len(seeds) * len(attentions)
    for seed in seeds:
        for name in attentions:
            place = out / "runs" / f"{name}-{seed}"
            if processes().is_main_process:
                print(f"{len(runs) + 1} of {total}: {name}, seed {seed}", flush=True)
            run = train(*own_recipe(recipe, name), seed, place, folder)
            if processes().is_main_process:
                more = _further(recipe, run, place, splits["test"], texts, shown)
                runs.append({"name": name, **run, **more})
    if processes().is_main_process:
        speeds = _speeds(recipe, attentions, tokenizer, rounds)
        results = [{**run, "speed": speeds[run["name"]]} for run in runs]
        write_json(out / "results.json", results)
        (out / "table.md").write_text(table(results), encoding="utf-8")
        plots.language_curves(results, out / "curves.png")
        plots.language_lengths(results, out / "lengths.png")
        runs = read_json(out / "results.json")
    processes().wait_for_everyone()
    return runs


def own_recipe(recipe: LMRecipe, name: str) -> tuple[LMRecipe, str]:
    """The recipe and the attention that a name of the comparison stands for."""
    attention, plus, positions = name.partition("+")
    return dataclasses.replace(recipe, position_embedding=positions) if plus else recipe, attention


def _further(
    recipe: LMRecipe,
    run: dict[str, Any],
    place: Path,
    test: Tokens,
    texts: dict[str, Tokens],
    shown: torch.Tensor,
) -> dict[str, Any]:
    """What is measured of a finished model, kept beside it: other texts, and the length curve."""
    kept = place / "further.json"
    window = recipe.sequence_length
    lengths = [window * 2**i for i in range(LONGEST.bit_length())]
    wanted = {
        "run": _digest((place / RESULT).read_bytes()),
        "lengths": lengths,
        "spans": SPANS,
        "texts": {
            name: [
                _digest(tokens[:].tobytes()),
                None if tokens.scored is None else _digest(tokens.scored.tobytes()),
                *(tokens.bytes, tokens.words),
            ]
            for name, tokens in texts.items()
        },
    }
    if kept.is_file() and (held := read_json(kept))["wanted"] == wanted:
        return {key: held[key] for key in ("also", "by_length")}
    model, _ = load_model(place / "model")
    found = {
        "also": {
            name: measure(model, tokens, window, recipe.context, shown)
            for name, tokens in texts.items()
        },
        "by_length": by_length(model, test.first(recipe.test_tokens), lengths, SPANS),
    }
    write_json(kept, {"wanted": wanted, **found})
    return found


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _speeds(
    recipe: LMRecipe, attentions: list[str], tokenizer: Any, rounds: int
) -> dict[str, dict[str, Any]]:
    """Training tokens a second of each attention, in steps of AdamW on what one process of the
    recipe holds at once."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    share = recipe.batch_size // processes().num_processes
    shape = (min(recipe.micro_batch or share, share), recipe.sequence_length)
    ids = torch.randint(len(tokenizer), shape, device=device)

    def step(name: str) -> Any:
        model = build_model(*own_recipe(recipe, name), tokenizer).to(device).train()
        if recipe.gradient_checkpointing:
            model.gradient_checkpointing_enable()
        optimizer = torch.optim.AdamW(model.parameters())

        def one() -> None:
            with torch.autocast(device, torch.bfloat16, enabled=recipe.precision == "bfloat16"):
                loss = model(ids, labels=ids).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return one

    steps = {name: step(name) for name in attentions}
    taken = seconds(steps, rounds, label="training speed")
    return {
        name: {
            "tokens_per_second": spread([ids.numel() / t for t in taken[name]]),
            "peak_bytes": peak_bytes(steps[name]),
            "batch": shape[0],
            "length": shape[1],
            "signature": signature(recipe=dataclasses.asdict(recipe), rounds=rounds),
        }
        for name in attentions
    }


def _other(found: list[dict[str, Any]]) -> list[str]:
    """What the table says of a further text."""
    shown = [one["shown"]["perplexity"] for one in found if one["shown"]["tokens"]]
    return [
        over_seeds([one["bits_per_byte"] for one in found], 3),
        over_seeds(shown, 2) if shown else "-",
    ]


def _shares(also: dict[str, Any]) -> str:
    """How much of the further texts is made of tokens that training showed."""
    parts = [
        f"{100 * x['shown']['tokens'] / x['tokens']:.1f} % of {name}" for name, x in also.items()
    ]
    return f"Training showed the tokens of {', '.join(parts)}. " if parts else ""


def table(results: list[dict[str, Any]]) -> str:
    """Perplexities over the seeds, then speed and memory, an attention a row."""
    groups, first = grouped(results, "name"), results[0]
    texts = list(first["also"])
    head = ["attention", "perplexity", "a word", "bits a byte"]
    for name in texts:
        head += [f"bits a byte, {name}", f"perplexity of shown tokens, {name}"]
    head += ["parameters", "tokens/s in training", "MiB of a step"]
    rows = []
    for name, group in groups.items():
        speed = group[0]["speed"]
        rows.append(
            [
                name,
                over_seeds([run["test"]["perplexity"] for run in group], 2),
                over_seeds([run["test"]["word_perplexity"] for run in group], 1),
                over_seeds([run["test"]["bits_per_byte"] for run in group], 3),
                *(x for name in texts for x in _other([run["also"][name] for run in group])),
                f"{group[0]['parameters']:,}",
                f"{speed['tokens_per_second']['median']:,.0f}",
                f"{speed['peak_bytes'] / 2**20:,.0f}",
            ]
        )
    recipe, data = first["signature"]["recipe"], first["signature"]["data"]
    machine = first["speed"]["signature"]["machine"]
    note = (
        f"{data['layout']}, {data['splits']['train']['tokens']:,} training tokens of "
        f"{data['vocabulary']} ({data['vocab_size']:,}); preset {recipe['preset']}, "
        f"{recipe['steps']} steps of {recipe['batch_size']} x {recipe['sequence_length']} tokens, "
        f"{len(next(iter(groups.values())))} seed(s); test: {first['test']['tokens']:,} tokens in "
        f"windows of {first['test']['window']}, at least {first['test']['context']} of context. "
        f"{_shares(first['also'])}Timed: steps of AdamW on {first['speed']['batch']} x "
        f"{first['speed']['length']} tokens; {where(machine)}."
    )
    return markdown(head, rows) + f"\n{note}\n"
