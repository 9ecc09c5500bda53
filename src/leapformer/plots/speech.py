"""Speech translation: quality against latency, and what a stream costs."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .signs import signs


def speech_curve(groups: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """BLEU and chrF over the latency, a line a group of runs through the means of its waits, which
    stand beside the points, a faint dot a run; dashed: with the time that computing took. `groups`
    are records of `leapformer speech evaluate` by name."""
    sign = signs(list(groups))
    figure = Figure(figsize=(11.5, 4.6), layout="constrained")
    for axes, key in zip(figure.subplots(1, 2), ("bleu", "chrf"), strict=True):
        for name, group in groups.items():
            look = sign[name]
            for way, style in (("CU", "-"), ("CA", "--")):
                line = []
                for points in zip(*(run["points"] for run in group), strict=True):
                    found = [
                        (point["omnisteval"][f"LAAL ({way})"] / 1000, point[key])
                        for point in points
                        if point["omnisteval"]
                    ]
                    if not found:
                        continue
                    line.append([statistics.mean(x) for x in zip(*found, strict=True)])
                    if way == "CU":
                        axes.scatter(*zip(*found, strict=True), s=8, color=look["color"], alpha=0.4)
                        wait = str(points[0]["wait"] or "all")
                        axes.annotate(
                            wait, line[-1], (3, -9), textcoords="offset points", fontsize=7
                        )
                label = name if way == "CU" else None
                width = 1.5 if way == "CU" else 0.8
                size = {"markersize": 4 if way == "CU" else 2}
                at = zip(*line, strict=True)
                axes.plot(*at, label=label, linestyle=style, linewidth=width, **(look | size))
        axes.set_xlabel("LAAL (s), dashed: with the time of computing")
        axes.set_ylabel({"bleu": "BLEU", "chrf": "chrF"}[key])
        axes.grid(alpha=0.25)
    axes.legend(fontsize=8, loc="lower right")
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=150)


def speech_bench(bench: dict[str, Any], path: Path) -> None:
    """Work and state of one session over the minutes it has heard; the real-time factor of many
    sessions together. `bench` is that of `leapformer bench speech`."""
    recipe = bench["signature"]["recipe"]
    sign = signs(recipe["cross_attention"])
    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    work, memory, many = figure.subplots(1, 3)
    for record in bench["one"]:
        look = sign[record["attention"]] | {"marker": "", "linewidth": 1.2}
        minutes = [one["minute"] for one in record["minutes"]]
        label = f"{record['attention']} cross-attention"
        factors = [one["real_time_factor"] for one in record["minutes"]]
        kept = [one["state_bytes"] / 2**10 for one in record["minutes"]]
        work.plot(minutes, factors, label=label, **look)
        memory.plot(minutes, kept, label=label, **look)
    work.set_ylabel("seconds of computing a second of sound")
    memory.set_ylabel("state (KiB)")
    memory.set_yscale("log")
    for axes in (work, memory):
        axes.set_xlabel("minutes heard")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    work.set_ylim(bottom=0)
    counts = [record["sessions"] for record in bench["many"]]
    many.plot(counts, [record["real_time_factor"] for record in bench["many"]], marker="o")
    many.axhline(1, color="grey", linestyle=":", linewidth=1)
    many.set_xlabel(f"sessions at once ({recipe['cross_attention'][0]}; dotted: real time)")
    many.set_ylabel("seconds of computing a second of all")
    many.set_ylim(bottom=0)
    many.grid(alpha=0.25)
    machine = bench["signature"]["machine"]
    figure.suptitle(
        f"streams, preset {recipe['preset']}, wait {recipe['wait']}: "
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} thread(s)",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)
