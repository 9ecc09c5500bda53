"""What a state can hold: accuracy against length."""

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from .signs import signs


def probe(results: list[dict[str, Any]], path: Path) -> None:
    """Answers and characters that are right over the length, a line a run; a dotted line at the
    longest length of training, a dashed one at chance. `results` are those of `leapformer lm
    probe`."""
    sign = signs(list(dict.fromkeys(result["signature"]["attention"] for result in results)))
    recipe = results[0]["signature"]["recipe"]
    what = {"copy": "letters of the string", "phonebook": "entries in the book"}[recipe["task"]]
    chance = {"copy": recipe["letters"], "phonebook": 10}[recipe["task"]]
    figure = Figure(figsize=(10.5, 4.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = (("exact", "answers without a mistake (%)"), ("characters", "characters right (%)"))
    for axes, (kind, label) in zip(panels, kinds, strict=True):
        for result in results:
            name = result["signature"]["attention"]
            points = sorted((r["length"], 100 * r[kind]) for r in result["by_length"])
            shown = name not in axes.get_legend_handles_labels()[1]
            axes.plot(
                *zip(*points, strict=True),
                label=name if shown else None,
                linewidth=1,
                **(sign[name] | {"markersize": 4}),
            )
        axes.axvline(recipe["max_length"], color="grey", linestyle=":", linewidth=1)
        axes.set_ylim(-3, 103)
        axes.set_xlabel(f"{what} (dotted: the longest trained)")
        axes.set_ylabel(label)
        axes.grid(alpha=0.25)
    panels[1].axhline(100 / chance, color="grey", linestyle="--", linewidth=1, label="chance")
    panels[1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)
