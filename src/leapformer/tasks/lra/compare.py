"""Several attentions side by side: train them all, time them all, one table and one picture."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ... import plots
from ...results import read_json, signature, writable_folder, write_json
from ..comparison import check_grid
from ..processes import processes
from . import tables
from .data import lengths, load
from .recipes import Recipe
from .speed import measure
from .tasks import TASKS
from .train import build_model, train

PICTURE = "quality_throughput.png"
CURVES = "curves.png"


def compare(
    recipes: list[Recipe],
    attentions: list[str],
    seeds: list[int],
    out: Path,
    folder: Path,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Train every attention on every task with every seed, then time them.

    Leaves in `out`, or for several tasks in a folder of `out` for each, `results.json` (a record a
    run), `table.md`, a picture and the learning curves; for several tasks also `summary.json`, a
    table and a picture of all. Runs that finished before are kept and one that was killed goes on,
    so a comparison can be started again at any time, also with more attentions or seeds.

    A run whose loss is no number is left out, the rest goes on, and FloatingPointError names it at
    the end.
    """
    attentions, seeds = check_grid(attentions, seeds, rounds)
    for recipe in recipes:
        for attention in attentions:
            build_model(recipe, attention)
    writable_folder(out)
    # Prepared data first: what is missing is found before anything is sampled.
    data = {
        recipe.task: load(recipe, folder)[0]
        for recipe in sorted(recipes, key=lambda recipe: not recipe.prepared)
    }

    results: list[dict[str, Any]] = []
    failed: list[str] = []
    total, began = len(recipes) * len(seeds) * len(attentions), 0
    for recipe in recipes:
        place = out if len(recipes) == 1 else out / recipe.task
        runs = []
        for seed in seeds:
            for attention in attentions:
                began += 1
                label = f"{recipe.task}, {attention}, seed {seed}"
                _say(f"{began} of {total}: {label}, {recipe.steps} steps")
                run = place / "runs" / f"{attention}-{seed}"
                try:
                    runs.append(train(recipe, attention, seed, run, folder))
                except FloatingPointError as error:
                    failed.append(f"{label}: {error}")
        if runs and processes().is_main_process:
            timed = sorted({_usual_length(data[recipe.task], recipe), TASKS[recipe.task].length})
            results += _report(
                recipe, runs, _speeds(recipe, attentions, timed, place, rounds), place
            )
    if len(recipes) > 1 and results and processes().is_main_process:
        summary = tables.summarise(results)
        write_json(out / "summary.json", summary)
        (out / "table.md").write_text(tables.summary_table(summary), encoding="utf-8")
        plots.arena(summary, out / PICTURE)
    processes().wait_for_everyone()
    if failed:
        raise FloatingPointError("; ".join(failed))
    return results


def _report(
    recipe: Recipe, runs: list[dict[str, Any]], speeds: dict[str, Any], place: Path
) -> list[dict[str, Any]]:
    """Runs with their speeds, written to `place` as JSON, table and picture."""
    results = [
        {
            **run,
            "speed": [
                {**record, "arena": record["length"] == TASKS[recipe.task].length}
                for record in speeds["records"]
                if record["attention"] == run["signature"]["attention"]
            ],
            "speed_signature": speeds["signature"],
        }
        for run in runs
    ]
    write_json(place / "results.json", results)
    (place / "table.md").write_text(tables.table(results), encoding="utf-8")
    plots.quality_throughput(results, place / PICTURE)
    plots.curves(results, place / CURVES)
    return results


def _say(text: str) -> None:
    if processes().is_main_process:
        print(text, flush=True)


def _usual_length(data: DatasetDict, recipe: Recipe) -> int:
    """The median length that training batches are padded to."""
    size = recipe.batch_size
    first = lengths(data["train"].select(range(min(len(data["train"]), 100 * size))), recipe)
    return int(statistics.median(first[i : i + size].max() for i in range(0, len(first), size)))


def _speeds(
    recipe: Recipe, attentions: list[str], timed: list[int], place: Path, rounds: int
) -> dict[str, Any]:
    """Timings of all attentions from one measurement, kept in `speed.json`; rates of different
    measurements are not comparable, so another list of attentions is measured anew."""
    kept = place / "speed.json"
    wanted = json.loads(
        json.dumps(
            signature(
                attentions=attentions,
                lengths=timed,
                rounds=rounds,
                recipe=dataclasses.asdict(recipe),
            )
        )
    )
    if kept.is_file() and (held := read_json(kept))["signature"] == wanted:
        return dict(held)
    print("throughput and memory", flush=True)
    speeds = {"signature": wanted, "records": measure(recipe, attentions, timed, rounds)}
    write_json(kept, speeds)
    return speeds
