"""Several attentions side by side: train them all, time them all, one table and one picture."""

import dataclasses
import json
import statistics
from pathlib import Path
from typing import Any

from datasets import DatasetDict

from ... import plots
from ...results import read_json, signature, writable_folder, write_json
from .data import lengths
from .recipes import Recipe
from .speed import ARENA_LENGTH, measure
from .train import build_model, load_data, train


def compare(
    recipe: Recipe,
    attentions: list[str],
    seeds: list[int],
    out: Path,
    cache: Path,
    source: Path | None = None,
    rounds: int = 5,
) -> list[dict[str, Any]]:
    """Train every attention with every seed, then time them, and write the results to `out`:

    `results.json` (a record a run), `table.md` and `quality_throughput.png`. Runs that finished
    before are kept and one that was killed goes on, so a comparison can be started again at any
    time, also with more attentions or seeds.
    """
    attentions, seeds = list(dict.fromkeys(attentions)), list(dict.fromkeys(seeds))
    if not attentions or not seeds or rounds < 1:
        raise ValueError("give at least one attention, one seed and one round of timing")
    for attention in attentions:
        build_model(recipe, attention)
    writable_folder(out)
    data = load_data(recipe, cache, source)

    runs = []
    for seed in seeds:
        for attention in attentions:
            print(f"{attention}, seed {seed}: {recipe.steps} steps", flush=True)
            folder = out / "runs" / f"{attention}-{seed}"
            runs.append(train(recipe, attention, seed, folder, cache, source))

    timed = sorted({_usual_length(data, recipe), ARENA_LENGTH})
    speeds = _speeds(recipe, attentions, timed, out, rounds)
    results = [
        {
            **run,
            "speed": [
                record
                for record in speeds["records"]
                if record["attention"] == run["signature"]["attention"]
            ],
            "speed_signature": speeds["signature"],
        }
        for run in runs
    ]
    write_json(out / "results.json", results)
    (out / "table.md").write_text(table(results), encoding="utf-8")
    plots.quality_throughput(results, out / "quality_throughput.png")
    return results


def _usual_length(data: DatasetDict, recipe: Recipe) -> int:
    """The median length that training batches are padded to."""
    size = recipe.batch_size
    first = lengths(data["train"])[: 100 * size]
    return int(statistics.median(first[i : i + size].max() for i in range(0, len(first), size)))


def _speeds(
    recipe: Recipe, attentions: list[str], timed: list[int], out: Path, rounds: int
) -> dict[str, Any]:
    """Timings of all attentions from one measurement, kept in `speed.json`; rates of different
    measurements are not comparable, so another list of attentions is measured anew."""
    kept = out / "speed.json"
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


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table: accuracy over the seeds, then speed and memory by length."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["signature"]["attention"], []).append(result)
    first = results[0]
    head = ["attention", "test accuracy", "over majority", "parameters"]
    for length in [speed["length"] for speed in first["speed"]]:
        head += [f"train seq/s at {length}", f"infer seq/s at {length}", f"train MiB at {length}"]
    rows = [head, ["---"] + ["---:"] * (len(head) - 1)]
    for attention, group in groups.items():
        accuracies = [100 * run["accuracy"] for run in group]
        mean = statistics.mean(accuracies)
        deviation = f" ± {statistics.stdev(accuracies):.1f}" if len(accuracies) > 1 else ""
        row = [
            attention,
            f"{mean:.1f} %{deviation}",
            f"{mean - 100 * first['majority']:+.1f} points",
            f"{group[0]['parameters']:,}",
        ]
        for speed in group[0]["speed"]:
            row += [
                _rate(speed["train_rate"]),
                _rate(speed["infer_rate"]),
                f"{speed['train_peak_bytes'] / 2**20:.0f}",
            ]
        rows.append(row)
    recipe, machine = first["signature"]["recipe"], first["signature"]["machine"]
    note = (
        f"Task {recipe['task']}, preset {recipe['preset']}, {recipe['steps']} steps, "
        f"{len(next(iter(groups.values())))} seed(s); always answering the most frequent class "
        f"scores {100 * first['majority']:.1f} %. Rates: median (range) over rounds in which all "
        f"attentions take turns, batch {recipe['batch_size']}; memory: what a training step holds "
        f"beyond the parameters. {machine['gpu'] or machine['processor']}, "
        f"{machine['threads']} thread(s)."
    )
    return "\n".join("| " + " | ".join(row) + " |" for row in rows) + f"\n\n{note}\n"


def _rate(rate: dict[str, float]) -> str:
    digits = 0 if rate["median"] >= 100 else 1
    return f"{rate['median']:.{digits}f} ({rate['low']:.{digits}f}-{rate['high']:.{digits}f})"
