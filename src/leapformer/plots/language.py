"""Language models: losses over steps, and after ever more context."""

from collections.abc import Iterable
from pathlib import Path
from statistics import fmean
from typing import Any

from matplotlib.figure import Figure

from .signs import signs

BASELINE = "softmax"


def language_curves(results: list[dict[str, Any]], path: Path) -> None:
    """Training and validation loss over the tokens read, a line a run, and how far validation
    losses are above the mean of softmax's (of the first mechanism's without it); `results` are
    those of `leapformer lm compare`."""
    names = list(dict.fromkeys(result["name"] for result in results))
    sign = signs(names)
    base = next((name for name in names if name.startswith(BASELINE)), names[0])
    figure = Figure(figsize=(15, 4.4), layout="constrained")
    panels = figure.subplots(1, 3)
    level = _mean_by_tokens(r for r in results if r["name"] == base)
    for result in results:
        name = result["name"]
        validation = _by_tokens(result, "eval_loss")
        lines = (
            _by_tokens(result, "loss"),
            validation,
            {x: y - level[x] for x, y in validation.items() if x in level},
        )
        for axes, points in zip(panels, lines, strict=True):
            shown = name not in axes.get_legend_handles_labels()[1]
            axes.plot(
                list(points),
                list(points.values()),
                label=name if shown else None,
                linewidth=1,
                **(sign[name] | {"markersize": 3}),
            )
    labels = ("training loss (nats a token)", "validation loss", f"validation loss above {base}'s")
    for axes, label in zip(panels, labels, strict=True):
        axes.set_xlabel("tokens read")
        axes.set_ylabel(label)
        axes.xaxis.set_major_formatter(lambda x, _: f"{x / 1e6:g} M")
        axes.grid(alpha=0.25)
    panels[-1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    recipe = results[0]["signature"]["recipe"]
    figure.suptitle(
        f"language model, preset {recipe['preset']}, {recipe['steps']:,} steps: a line a run",
        fontsize=11,
    )
    figure.savefig(path, dpi=150)


def _by_tokens(result: dict[str, Any], key: str) -> dict[int, float]:
    """A loss of the run's curve, by how many tokens were read."""
    recipe = result["signature"]["recipe"]
    tokens = recipe["batch_size"] * recipe["sequence_length"]
    return {tokens * e["step"]: e[key] for e in result["curve"] if key in e}


def _mean_by_tokens(results: Iterable[dict[str, Any]]) -> dict[int, float]:
    """The validation loss, mean over the runs, where all have one."""
    curves = [_by_tokens(result, "eval_loss") for result in results]
    shared = set.intersection(*(set(curve) for curve in curves))
    return {x: fmean(curve[x] for curve in curves) for x in shared}


def language_lengths(results: list[dict[str, Any]], path: Path) -> None:
    """Loss of the same tokens after ever more context; a dotted line at the trained length."""
    names = list(dict.fromkeys(result["name"] for result in results))
    sign = signs(names)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    axes = figure.subplots()
    for result in results:
        name = result["name"]
        read = [record for record in result["by_length"] if "loss" in record]
        shown = name not in axes.get_legend_handles_labels()[1]
        axes.plot(
            [record["length"] for record in read],
            [record["loss"] for record in read],
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
    axes.set_ylabel("loss of its last tokens (nats a token)")
    axes.grid(alpha=0.25)
    axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def language_bench(bench: dict[str, Any], path: Path) -> None:
    """Memory of a training step over its length; time a token and what the cache holds over the
    length of the generated text. `bench` is that of `leapformer bench language`."""
    names = bench["signature"]["recipe"]["attentions"]
    sign = signs(names)
    figure = Figure(figsize=(14.0, 4.2), layout="constrained")
    training, clock, memory = figure.subplots(1, 3)
    for name in names:
        steps = [r for r in bench["training"] if r["attention"] == name]
        look = sign[name] | {"markersize": 4, "linewidth": 1.2, "label": name}
        training.plot(
            [r["length"] for r in steps], [r["peak_bytes"] / 2**20 for r in steps], **look
        )
        blocks = next(r["blocks"] for r in bench["generation"] if r["attention"] == name)
        tokens = [block["tokens"] for block in blocks]
        look |= {"marker": ""}
        clock.plot(tokens, [1e3 * block["seconds"] for block in blocks], **look)
        memory.plot(tokens, [block["cache_bytes"] / 2**20 for block in blocks], **look)
    training.set_ylabel("training step: memory (MiB)")
    clock.set_ylabel("generation: ms a token")
    memory.set_ylabel("generation: cache (MiB)")
    training.set_xscale("log", base=2)
    training.set_yscale("log", base=2)
    clock.set_ylim(bottom=0)
    for axes in (training, clock, memory):
        axes.set_xlabel("length of the row" if axes is training else "tokens generated")
        axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
    training.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    figure.savefig(path, dpi=150)
