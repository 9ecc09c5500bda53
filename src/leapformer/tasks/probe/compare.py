"""What a state of fixed size can hold: several attentions on one task of the probe."""

from pathlib import Path
from typing import Any

import numpy as np

from ... import plots
from ...results import markdown, read_json, writable_folder, write_json
from ..comparison import check_grid, grouped, over_seeds, where
from ..processes import processes
from .recipes import ProbeRecipe
from .tasks import draw
from .train import build_model, train


def compare(
    recipe: ProbeRecipe, attentions: list[str], seeds: list[int], out: Path
) -> list[dict[str, Any]]:
    """Train every attention with every seed and measure each at every length.

    Leaves `results.json` (a record a run), `table.md` and `accuracy.png` in `out`. Runs that
    finished before are kept and one that was killed goes on.
    """
    attentions, seeds = check_grid(attentions, seeds)
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
    groups = grouped(results)
    signed, lengths = results[0]["signature"], results[0]["by_length"]
    text = ""
    for kind, label in (("exact", "answers without a mistake"), ("characters", "characters right")):
        head = [f"{label}, %", *(str(record["length"]) for record in lengths), "parameters"]
        rows = []
        for attention, group in groups.items():
            runs = [[100 * record[kind] for record in run["by_length"]] for run in group]
            cells = [over_seeds(list(values)) for values in zip(*runs, strict=True)]
            rows.append([attention, *cells, f"{group[0]['parameters']:,}"])
        text += markdown(head, rows) + "\n"
    recipe, machine = signed["recipe"], signed["machine"]
    return text + (
        f"{recipe['task']}, preset {recipe['preset']}: trained on lengths {recipe['min_length']} "
        f"to {recipe['max_length']}, {recipe['steps']} steps of {recipe['batch_size']}, "
        f"{len(next(iter(groups.values())))} seed(s); {recipe['evaluate_rows']} held-out prompts "
        f"of each length, generated greedily. {where(machine)}.\n"
    )
