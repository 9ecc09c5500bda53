"""Pictures from saved results. Reads plain values, imports no torch."""

import statistics
from itertools import cycle
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

# The same colour for the same contender in every picture (Okabe & Ito: safe for colour blindness).
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#F0E442", "#000000")
AREA = 900.0


def quality_throughput(results: list[dict[str, Any]], path: Path) -> None:
    """Accuracy over training throughput, a panel a length; a bubble's area is its peak memory.

    `results` are the records of `leapformer lra compare`, one a run. Whiskers: range of the rate
    over rounds, deviation of the accuracy over seeds.
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        groups.setdefault(result["signature"]["attention"], []).append(result)
    first = results[0]
    lengths = [speed["length"] for speed in first["speed"]]

    figure = Figure(figsize=(5.6 * len(lengths), 4.6), layout="constrained")
    panels = figure.subplots(1, len(lengths), sharey=True, squeeze=False)[0]
    for panel, (axes, length) in enumerate(zip(panels, lengths, strict=True)):
        _bubbles(axes, groups, panel)
        axes.axhline(100 * first["majority"], color="grey", linestyle=":", linewidth=1)
        axes.text(
            0.99,
            100 * first["majority"],
            "most frequent class",
            transform=axes.get_yaxis_transform(),
            ha="right",
            va="bottom",
            color="grey",
            fontsize=8,
        )
        axes.set_xlabel(f"training throughput at {length:,} tokens (sequences/s)")
        axes.grid(alpha=0.25)
    panels[0].set_ylabel("test accuracy (%)")
    low, high = panels[0].get_ylim()
    panels[0].set_ylim(min(low, 100 * first["majority"] - 2), high + 0.06 * (high - low))
    recipe = first["signature"]["recipe"]
    figure.suptitle(
        f"{recipe['task']}, preset {recipe['preset']}: quality against throughput "
        "(area: peak memory of a training step)",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def _bubbles(axes: Axes, groups: dict[str, list[dict[str, Any]]], panel: int) -> None:
    most = max(group[0]["speed"][panel]["train_peak_bytes"] for group in groups.values())
    right = max(group[0]["speed"][panel]["train_rate"]["high"] for group in groups.values())
    for colour, (attention, group) in zip(cycle(COLOURS), groups.items(), strict=False):
        speed = group[0]["speed"][panel]
        rate = speed["train_rate"]
        accuracies = [100 * run["accuracy"] for run in group]
        x, y = rate["median"], statistics.mean(accuracies)
        axes.errorbar(
            x,
            y,
            xerr=[[x - rate["low"]], [rate["high"] - x]],
            yerr=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
            color=colour,
            linewidth=1,
        )
        area = AREA * speed["train_peak_bytes"] / most
        axes.scatter(x, y, s=area, color=colour, alpha=0.4, linewidth=0)
        mebibytes = speed["train_peak_bytes"] / 2**20
        axes.plot(x, y, "o", color=colour, label=f"{attention}, {mebibytes:,.0f} MiB")
    axes.set_xlim(left=0, right=1.2 * right)
    axes.legend(loc="best", fontsize=9)


def attention_bench(bench: dict[str, Any], path: Path) -> None:
    """How many times faster than SDPA the op is, over lengths, and the cost of a decoding step."""
    cases = list(dict.fromkeys(record["case"] for record in bench["lengths"]))
    figure = Figure(figsize=(5.0 * (len(cases) + 1), 4.2), layout="constrained")
    panels = figure.subplots(1, len(cases) + 1, squeeze=False)[0]
    for axes, case in zip(panels, cases, strict=False):
        lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for record in bench["lengths"]:
            if record["case"] == case and record["contender"] != "sdpa":
                lines.setdefault((record["contender"], record["pass"]), []).append(record)
        for colour, ((contender, way), records) in zip(cycle(COLOURS), lines.items(), strict=False):
            x = [record["length"] for record in records]
            ratios = [record["times_sdpa"] for record in records]
            axes.plot(
                x,
                [r["median"] for r in ratios],
                "o-" if contender == "leap" else "s--",
                color=colour,
                label=f"{contender}, {way}",
                markersize=4,
            )
            axes.fill_between(
                x, [r["low"] for r in ratios], [r["high"] for r in ratios], color=colour, alpha=0.2
            )
        axes.axhline(1, color="black", linewidth=0.8)
        axes.set_title(case, fontsize=10)
        axes.set_ylabel("times as fast as SDPA")
        _length_axis(axes)
    axes = panels[-1]
    for colour, contender in zip(COLOURS, ("leap", "sdpa"), strict=False):
        records = [record for record in bench["decode"] if record["contender"] == contender]
        axes.plot(
            [record["context"] for record in records],
            [1e6 * record["seconds"]["median"] for record in records],
            "o-",
            color=colour,
            label=contender,
        )
    axes.set_title("one decoding step", fontsize=10)
    axes.set_ylabel("microseconds")
    _length_axis(axes)
    figure.savefig(path, dpi=150)


def _length_axis(axes: Axes) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("length")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.grid(alpha=0.25, which="both")
    axes.legend(fontsize=8)
