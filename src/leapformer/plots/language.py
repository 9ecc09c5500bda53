"""Language models: losses over steps, and after ever more context."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .signs import signs


def language_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss over the tokens read, a line a run; `results` are those of
    `leapformer lm compare`."""
    names = list(dict.fromkeys(result["signature"]["attention"] for result in results))
    sign = signs(names)
    figure = Figure(figsize=(11.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    measured = (("loss", "training loss (nats a token)"), ("eval_loss", "validation loss"))
    for axes, (key, label) in zip(panels, measured, strict=True):
        for result in results:
            name, recipe = result["signature"]["attention"], result["signature"]["recipe"]
            tokens = recipe["batch_size"] * recipe["sequence_length"]
            points = [(tokens * e["step"], e[key]) for e in result["curve"] if key in e]
            shown = name not in axes.get_legend_handles_labels()[1]
            axes.plot(
                *zip(*points, strict=True),
                label=name if shown else None,
                linewidth=1,
                **(sign[name] | {"markersize": 3}),
            )
        axes.set_xlabel("tokens read")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M")
        axes.grid(alpha=0.25)
    panels[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    recipe = results[0]["signature"]["recipe"]
    figure.suptitle(f"language model, preset {recipe['preset']}: a line a run", fontsize=11)
    figure.savefig(path, dpi=150)


def language_lengths(results: list[dict[str, Any]], path: Path) -> None:
    """Loss in the second half of windows of growing length; a dotted line at the trained one."""
    names = list(dict.fromkeys(result["signature"]["attention"] for result in results))
    sign = signs(names)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for result in results:
        name = result["signature"]["attention"]
        points = [(r["length"], r["loss"]) for r in result["by_length"] if "loss" in r]
        shown = name not in axes.get_legend_handles_labels()[1]
        if points:
            axes.plot(
                *zip(*points, strict=True),
                label=name if shown else None,
                linewidth=1,
                **(sign[name] | {"markersize": 4}),
            )
    axes.axvline(
        results[0]["signature"]["recipe"]["sequence_length"],
        color="grey",
        linestyle=":",
        linewidth=1,
    )
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.set_xlabel("length of the window (dotted: trained)")
    axes.set_ylabel("loss in its second half (nats a token)")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
