"""Quality against throughput, learning curves, and what the data look like."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .signs import signs

AREA = 700.0


def quality_throughput(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over training throughput, a panel a length; a bubble's area is its peak memory.

    `results` are the records of one task of `leapformer lra compare`, one a run. Whiskers: range of
    the rate over rounds, deviation of the accuracy over seeds.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["signature"]["attention"], []).append(result)
    first = results[0]
    lengths = [speed["length"] for speed in first["speed"]]

    figure = Figure(figsize=(5.2 * len(lengths) + 1.6, 4.8), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for panel, (axes, length) in enumerate(zip(panels, lengths, strict=True)):
        points = [
            {
                "name": attention,
                "x": group[0]["speed"][panel]["train_rate"],
                "y": [100 * run["accuracy"] for run in group],
                "size": group[0]["speed"][panel]["train_peak_bytes"],
                "label": f"{attention}, {_mebibytes(group[0]['speed'][panel])} MiB",
            }
            for attention, group in groups.items()
        ]
        _bubbles(axes, points)
        _majority(axes, 100 * first["majority"])
        axes.set_xlabel(f"training throughput at {length:,} tokens (examples/s)")
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    panels[0].set_ylabel("test accuracy (%)")
    recipe = first["signature"]["recipe"]
    figure.suptitle(
        f"{_run(recipe)}: quality against throughput (area: peak memory of a training step)",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def curves(results: list[dict[str, Any]], path: Path) -> None:
    """Training loss and validation accuracy over the steps, a line a run; `results` of one task."""
    names = list(dict.fromkeys(result["signature"]["attention"] for result in results))
    sign = signs(names)
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2)
    measured = (("loss", 1, "training loss"), ("eval_accuracy", 100, "validation accuracy (%)"))
    for axes, (key, scale, label) in zip(panels, measured, strict=True):
        for result in results:
            name = result["signature"]["attention"]
            points = [(e["step"], scale * e[key]) for e in result["curve"] if key in e]
            axes.plot(
                *zip(*points, strict=True),
                label=name if result is _first(results, name) else None,
                markersize=3,
                linewidth=1,
                **sign[name],
            )
        axes.set_xlabel("steps")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    recipe = results[0]["signature"]["recipe"]
    figure.suptitle(f"{_run(recipe)}: a line a run", fontsize=11)
    figure.savefig(path, dpi=150)


def _first(results: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return next(result for result in results if result["signature"]["attention"] == name)


def arena(summary: dict[str, Any], path: Path) -> None:
    """All tasks: accuracy averaged over them against throughput relative to the baseline, and the
    accuracies task by task. `summary` is that of `leapformer lra compare --task all`."""
    rows = [row for row in summary["attentions"] if row["average"] and row["train_rate"]]
    names, baseline = [row["attention"] for row in summary["attentions"]], summary["baseline"]
    figure = Figure(figsize=(14.5, 5.4), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    points = [
        {
            "name": row["attention"],
            "x": {"median": row["train_rate"]["mean"]},
            "y": row["average"],
            "size": row["train_memory"]["mean"],
            "label": f"{row['attention']}, {_times(row['train_memory'])}",
        }
        for row in rows
    ]
    _bubbles(left, points, names, whiskers=False)
    left.axvline(1, color="grey", linestyle=":", linewidth=1)
    left.set_xscale("log", base=2)
    for axis in (left.xaxis.set_major_formatter, left.xaxis.set_minor_formatter):
        axis(lambda x, _: f"{x:g}")
    left.set_xlabel(f"training throughput, times {baseline}'s (mean over tasks)")
    left.set_ylabel("test accuracy, average over tasks (%)")
    if points:
        left.legend(
            title=f"memory, times {baseline}'s",
            loc="upper left",
            bbox_to_anchor=(1.0, 1.0),
            fontsize=8,
            title_fontsize=8,
            frameon=False,
        )

    tasks, sign = list(summary["majority"]), signs(names)
    for place, row in enumerate(summary["attentions"]):
        for column, task in enumerate(tasks):
            values = list(row["accuracy"].get(task, {}).values())
            over = [value - summary["majority"][task] for value in values]
            x = column + 0.8 * ((place + 0.5) / len(names) - 0.5)
            right.plot(
                [x] * len(over), over, linestyle="", markersize=4.5, **sign[row["attention"]]
            )
    for edge in range(len(tasks) - 1):
        right.axvline(edge + 0.5, color="black", alpha=0.15, linewidth=0.8)
    right.axhline(0, color="grey", linestyle=":", linewidth=1)
    right.set_xticks(range(len(tasks)), tasks)
    right.set_ylabel("points over the most frequent class, a mark a seed")
    right.grid(alpha=0.25, axis="y")
    preset = next(iter(summary["recipes"].values()))["preset"]
    figure.suptitle(
        f"Long-Range Arena, preset {preset}: quality against throughput "
        "(area: peak memory of a training step)",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def samples(rows: list[tuple[str, list[list[int]]]], side: int, path: Path) -> None:
    """Grey pictures to look at, a row a label: its title and pictures of side * side pixels."""
    most = max(len(pictures) for _, pictures in rows)
    figure = Figure(figsize=(1.5 * most, 1.7 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), most, squeeze=False)
    for places, (title, pictures) in zip(axes, rows, strict=True):
        for place in places:
            place.set_axis_off()
        for place, pixels in zip(places, pictures, strict=False):
            lines = [pixels[i : i + side] for i in range(0, len(pixels), side)]
            place.imshow(lines, cmap="gray", vmin=0, vmax=255)
        places[0].set_title(title, loc="left", fontsize=9)
    figure.savefig(path, dpi=120)


def _mebibytes(speed: dict[str, Any]) -> str:
    size = speed["train_peak_bytes"] / 2**20
    return f"{size:,.0f}" if size >= 10 else f"{size:.1f}"


def _times(ratio: dict[str, float]) -> str:
    return f"{ratio['mean']:.2f}"


def _bubbles(
    axes: Axes, points: list[dict[str, Any]], names: list[str] | None = None, whiskers: bool = True
) -> None:
    """A bubble a contender at (rate, mean accuracy), its area in proportion to its memory."""
    sign = signs(names or [point["name"] for point in points])
    most = max((point["size"] for point in points), default=1)
    for point in points:
        look = sign[point["name"]]
        x, y = point["x"]["median"], statistics.mean(point["y"])
        axes.errorbar(
            x,
            y,
            xerr=[[x - point["x"]["low"]], [point["x"]["high"] - x]] if whiskers else None,
            yerr=statistics.stdev(point["y"]) if len(point["y"]) > 1 else None,
            color=look["color"],
            linewidth=1,
        )
        area = AREA * point["size"] / most
        axes.scatter(x, y, s=area, alpha=0.35, linewidth=0, color=look["color"], marker="o")
        axes.plot(x, y, linestyle="", markersize=6, label=point["label"], **look)
    axes.grid(alpha=0.25)


def _majority(axes: Axes, value: float) -> None:
    """A line at the accuracy of always giving the most frequent answer, and room for it."""
    axes.axhline(value, color="grey", linestyle=":", linewidth=1)
    axes.text(
        0.99,
        value,
        "most frequent class",
        transform=axes.get_yaxis_transform(),
        ha="right",
        va="bottom",
        color="grey",
        fontsize=8,
    )
    low, high = axes.get_ylim()
    axes.set_ylim(min(low, value - 2), high + 0.06 * (high - low))


def _run(recipe: dict[str, Any]) -> str:
    """A recipe in words; what was overridden by hand is seen from its numbers."""
    return (
        f"{recipe['task']}, preset {recipe['preset']}, {recipe['max_length']:,} tokens, "
        f"{recipe['steps']:,} steps of {recipe['batch_size']}"
    )
