"""Time and memory over lengths."""

import statistics
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from .signs import COLOURS, signs


def profile(result: dict[str, Any], path: Path) -> None:
    """Training: times as fast as softmax, and peak memory, over lengths; a column a case. `result`
    is that of `leapformer profile`. Bands: range over the rounds."""
    names = result["signature"]["attentions"]
    cases = list(dict.fromkeys((r["scope"], r["visible"]) for r in result["records"]))
    figure = Figure(figsize=(5.0 * len(cases) + 1.5, 8.2), layout="constrained")
    grid = figure.subplots(2, len(cases), squeeze=False, sharex=True)
    sign = signs(names)
    for (scope, visible), (upper, lower) in zip(cases, grid.T, strict=True):
        rows = {
            (record["attention"], record["length"]): record
            for record in result["records"]
            if (record["scope"], record["visible"], record["pass"]) == (scope, visible, "training")
        }
        for name in names:
            mine = [record for (attention, _), record in rows.items() if attention == name]
            shared = [record for record in mine if ("softmax", record["length"]) in rows]
            ratios = [
                [
                    s / m
                    for s, m in zip(
                        rows["softmax", r["length"]]["rounds"], r["rounds"], strict=True
                    )
                ]
                for r in shared
            ]
            x = [record["length"] for record in shared]
            look = sign[name] | {"markersize": 4, "linewidth": 1.2, "label": name}
            upper.plot(x, [statistics.median(r) for r in ratios], **look)
            upper.fill_between(
                x,
                [min(r) for r in ratios],
                [max(r) for r in ratios],
                alpha=0.15,
                color=look["color"],
            )
            lower.plot(
                [record["length"] for record in mine],
                [record["peak_bytes"] / 2**20 for record in mine],
                **look,
            )
        upper.axhline(1, color="black", linewidth=0.8)
        upper.set_title(f"{scope}, {'all visible' if visible == 'all' else visible}", fontsize=10)
        for axes in (upper, lower):
            _length_axis(axes, legend=False)
    grid[0, 0].set_ylabel("training: times as fast as softmax")
    grid[1, 0].set_ylabel("training: peak memory (MiB)")
    grid[0, -1].legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), fontsize=8, frameon=False)
    figure.savefig(path, dpi=150)


def attention_bench(bench: dict[str, Any], path: Path) -> None:
    """Above, how many times as fast as SDPA each contender is over lengths, a column a case, and
    the cost of a decoding step; below, what training holds, and leap's share of the limits."""
    cases = list(dict.fromkeys(record["case"] for record in bench["lengths"]))
    everything = bench["lengths"] + bench["decode"]
    names = list(dict.fromkeys(record["contender"] for record in everything))
    sign = {name: look | {"markersize": 4, "linewidth": 1.2} for name, look in signs(names).items()}
    styles = {"forward": "--", "forward+backward": "-"}
    figure = Figure(figsize=(5.0 * (len(cases) + 1), 8.2), layout="constrained")
    grid = figure.subplots(2, len(cases) + 1, squeeze=False)
    shares = grid[1, -1]
    for (upper, lower), case in zip(grid.T, cases, strict=False):
        lines: dict[tuple[str, str], list[dict[str, Any]]] = {}
        for record in bench["lengths"]:
            if record["case"] == case:
                lines.setdefault((record["contender"], record["pass"]), []).append(record)
        for (name, way), records in lines.items():
            look = sign[name] | {"linestyle": styles[way]}
            if way == "forward+backward":
                look["label"] = name
            if name != "sdpa":
                _band(upper, "length", records, "times_sdpa", look)
            if way == "forward+backward":
                held = [record for record in records if "peak_bytes" in record]
                x = [record["length"] for record in held]
                y = [record["peak_bytes"] / 2**20 for record in held]
                lower.plot(x, y, **look)
        upper.axhline(1, color="black", linewidth=0.8)
        upper.set_title(case, fontsize=10)
        upper.set_ylabel("times as fast as SDPA (dashed: forward alone)")
        lower.set_ylabel("forward+backward: peak memory (MiB)")
    for number, case in enumerate(cases):
        mine = [
            record
            for record in bench["lengths"]
            if (record["case"], record["contender"]) == (case, "leap")
        ]
        kind = case.split(",")[0]
        look = {"color": COLOURS[number], "marker": "o", "markersize": 4, "linewidth": 1.2}
        for way, limit, of in (
            ("forward+backward", "of_matmul", "torch.mm"),
            ("forward", "of_bandwidth", "a copy"),
        ):
            chosen = [record for record in mine if record["pass"] == way]
            label = {"linestyle": styles[way], "label": f"{kind}, {way}: of {of}"}
            _band(shares, "length", chosen, limit, look | label)
    shares.set_ylabel("leap: share of the rate")
    for name in dict.fromkeys(record["contender"] for record in bench["decode"]):
        steps = [record for record in bench["decode"] if record["contender"] == name]
        _band(grid[0, -1], "context", steps, "seconds", sign[name] | {"label": name}, 1e6)
    grid[0, -1].set_title("one decoding step", fontsize=10)
    grid[0, -1].set_ylabel("microseconds")
    for axes in grid.flat:
        _length_axis(axes)
    figure.savefig(path, dpi=150)


def _band(
    axes: Axes,
    over: str,
    records: list[dict[str, Any]],
    what: str,
    look: dict[str, Any],
    unit: float = 1.0,
) -> None:
    """A line of medians with the range over the rounds behind it."""
    told = [record for record in records if what in record]
    x = [record[over] for record in told]
    low, middle, high = (
        [unit * record[what][key] for record in told] for key in ("low", "median", "high")
    )
    axes.plot(x, middle, **look)
    axes.fill_between(x, low, high, alpha=0.15, color=look["color"])


def _length_axis(axes: Axes, legend: bool = True) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("length")
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,g}")
    axes.yaxis.set_minor_formatter(lambda y, _: f"{y:,g}" if f"{y:e}"[0] in "25" else "")
    axes.grid(alpha=0.25, which="both")
    if legend:
        axes.legend(fontsize=8)
