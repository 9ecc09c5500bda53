"""Tables of a comparison, in Markdown, from the records of its runs."""

import math
import statistics
from typing import Any

from ...results import markdown
from ..comparison import grouped, over_seeds, where

BASELINE = "softmax"


def table(results: list[dict[str, Any]]) -> str:
    """One task: accuracy over the seeds, then speed and memory by length."""
    groups, first = grouped(results), results[0]
    head = ["attention", "test accuracy", "over majority", "parameters"]
    for length in [speed["length"] for speed in first["speed"]]:
        head += [f"train seq/s at {length}", f"infer seq/s at {length}", f"train MiB at {length}"]
    rows = []
    for attention, group in groups.items():
        accuracies = [100 * run["accuracy"] for run in group]
        row = [
            attention,
            over_seeds(accuracies, unit=" %"),
            f"{statistics.mean(accuracies) - 100 * first['majority']:+.1f} points",
            f"{group[0]['parameters']:,}",
        ]
        for speed in group[0]["speed"]:
            row += [
                _rate(speed["train_rate"]),
                _rate(speed["infer_rate"]),
                f"{speed['train_peak_bytes'] / 2**20:.0f}",
            ]
        rows.append(row)
    recipe, machine = first["signature"]["recipe"], first["speed_signature"]["machine"]
    data = first["signature"]["data"]
    sizes = ", ".join(f"{split['examples']:,} {name}" for name, split in data["splits"].items())
    note = (
        f"Task {recipe['task']} ({data['layout']}: {sizes}), preset {recipe['preset']}, "
        f"{recipe['steps']} steps of {recipe['batch_size']}, "
        f"{len(next(iter(groups.values())))} seed(s); always answering the most frequent class "
        f"scores {100 * first['majority']:.1f} %. Rates: median (range) over rounds in which all "
        f"attentions take turns, batch {first['speed'][0]['batch']}; memory: what a training step "
        f"holds beyond the parameters. {where(machine)}."
    )
    return markdown(head, rows) + f"\n{note}\n"


def summarise(results: list[dict[str, Any]]) -> dict[str, Any]:
    """All tasks: for each attention the accuracies (%) by task and seed, their average over tasks,
    and throughput and memory at the arena's lengths relative to softmax (or, where that is not
    among them, to the first attention): geometric means over the tasks, with the range over tasks,
    or None where no task has both.

    Averages are over the seeds that finished on every task; attentions without one have none.
    """
    tasks = {task: grouped(runs) for task, runs in grouped(results, "task").items()}
    attentions = list(grouped(results))
    baseline = BASELINE if BASELINE in attentions else attentions[0]
    rows = []
    for attention in attentions:
        accuracy = {
            task: {str(r["signature"]["seed"]): 100 * r["accuracy"] for r in groups[attention]}
            for task, groups in tasks.items()
            if attention in groups
        }
        whole = set.intersection(*(set(a) for a in accuracy.values()))
        averages = [
            statistics.mean(a[seed] for a in accuracy.values())
            for seed in sorted(whole)
            if len(accuracy) == len(tasks)
        ]
        row: dict[str, Any] = {
            "attention": attention,
            "accuracy": accuracy,
            "average": averages,
            "parameters": {
                task: groups[attention][0]["parameters"]
                for task, groups in tasks.items()
                if attention in groups
            },
        }
        for name, read in {
            "train_rate": lambda speed: speed["train_rate"]["median"],
            "infer_rate": lambda speed: speed["infer_rate"]["median"],
            "train_memory": lambda speed: speed["train_peak_bytes"],
        }.items():
            ratios = [
                read(_arena(groups[attention])) / read(_arena(groups[baseline]))
                for groups in tasks.values()
                if attention in groups and baseline in groups
            ]
            row[name] = _geometric(ratios) if ratios else None
        rows.append(row)
    return {
        "baseline": baseline,
        "majority": {
            task: 100 * next(iter(g.values()))[0]["majority"] for task, g in tasks.items()
        },
        "lengths": {task: _arena(next(iter(g.values())))["length"] for task, g in tasks.items()},
        "seeds": sorted({r["signature"]["seed"] for r in results}),
        "recipes": {
            task: next(iter(g.values()))[0]["signature"]["recipe"] for task, g in tasks.items()
        },
        "data": {task: next(iter(g.values()))[0]["signature"]["data"] for task, g in tasks.items()},
        "signature": {
            name: results[0]["speed_signature"][name] for name in ("versions", "commit", "machine")
        },
        "attentions": rows,
    }


def summary_table(summary: dict[str, Any]) -> str:
    """All tasks in one table: accuracies, their average, relative throughput and memory."""
    tasks, baseline = list(summary["majority"]), summary["baseline"]
    head = [
        "attention",
        *tasks,
        "average",
        f"training, times {baseline}",
        f"inference, times {baseline}",
        f"memory, times {baseline}",
    ]
    rows = []
    for row in sorted(summary["attentions"], key=lambda r: -statistics.mean(r["average"] or [0])):
        cells = [
            over_seeds(list(row["accuracy"][task].values()))
            if task in row["accuracy"]
            else "diverged"
            for task in tasks
        ]
        rates = [
            f"{ratio['mean']:.2f} ({ratio['low']:.2f}-{ratio['high']:.2f})" if ratio else "-"
            for ratio in (row["train_rate"], row["infer_rate"], row["train_memory"])
        ]
        average = f"**{over_seeds(row['average'])}**" if row["average"] else "-"
        rows.append([row["attention"], *cells, average, *rates])
    frequent = [f"{summary['majority'][task]:.1f}" for task in tasks]
    mean = statistics.mean(summary["majority"].values())
    rows.append(["most frequent class", *frequent, f"{mean:.1f}", "", "", ""])
    machine, recipe = summary["signature"]["machine"], next(iter(summary["recipes"].values()))
    seeds = len(summary["seeds"])
    lengths = ", ".join(f"{task} {length:,}" for task, length in summary["lengths"].items())
    note = (
        f"Test accuracy in %, preset {recipe['preset']}: mean ± deviation over {seeds} seed(s). "
        f"Throughput and memory of the model at the arena's lengths ({lengths}): geometric mean "
        f"(range) over the tasks of the ratio to {baseline}. "
        f"{where(machine)}."
    )
    return markdown(head, rows) + f"\n{note}\n"


def _arena(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The speed of an attention at the length that its task has in the arena."""
    return next(speed for speed in runs[0]["speed"] if speed["arena"])


def _geometric(ratios: list[float]) -> dict[str, float]:
    mean = math.exp(statistics.mean(math.log(ratio) for ratio in ratios))
    return {"mean": mean, "low": min(ratios), "high": max(ratios)}


def _rate(rate: dict[str, float]) -> str:
    digits = 0 if rate["median"] >= 100 else 1
    return f"{rate['median']:.{digits}f} ({rate['low']:.{digits}f}-{rate['high']:.{digits}f})"
