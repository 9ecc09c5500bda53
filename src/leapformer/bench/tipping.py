"""The tipping point of a mechanism: the length from which on it is faster than softmax."""

import math
import statistics
from typing import Any

from ..results import markdown

BASELINE = "softmax"


def tipping_points(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """For each mechanism, case and pass the length from which on it is faster than softmax: median
    and range over the rounds. 0 stands for "at every length", None for "at none that was measured".
    """
    cases: dict[tuple[str, str, str], dict[str, dict[int, list[float]]]] = {}
    for record in records:
        case = cases.setdefault((record["scope"], record["visible"], record["pass"]), {})
        case.setdefault(record["attention"], {})[record["length"]] = record["rounds"]
    points = []
    for (scope, visible, which), times in cases.items():
        for name in times.keys() - {BASELINE}:
            shared = sorted(times[name].keys() & times[BASELINE].keys())
            found = sorted(
                _crossing(shared, [a / b for a, b in zip(mine, softmax, strict=True)])
                for mine, softmax in zip(
                    zip(*(times[name][n] for n in shared), strict=True),
                    zip(*(times[BASELINE][n] for n in shared), strict=True),
                    strict=True,
                )
            )
            points.append(
                {
                    "attention": name,
                    "scope": scope,
                    "visible": visible,
                    "pass": which,
                    **{
                        key: value if math.isfinite(value) else None
                        for key, value in {
                            "median": statistics.median_low(found),
                            "low": found[0],
                            "high": found[-1],
                        }.items()
                    },
                }
            )
    order = list(dict.fromkeys(record["attention"] for record in records))
    return sorted(
        points, key=lambda p: (p["scope"], p["visible"], p["pass"], order.index(p["attention"]))
    )


def _crossing(lengths: list[int], ratios: list[float]) -> float:
    """The length beyond which the time's ratio to softmax stays below one; between two measured
    lengths the ratio is taken to follow a power of the length."""
    slower = [i for i, ratio in enumerate(ratios) if ratio >= 1]
    if not slower:
        return 0.0
    last = slower[-1]
    if last == len(lengths) - 1:
        return math.inf
    a, b = math.log(ratios[last]), math.log(ratios[last + 1])
    return lengths[last] * (lengths[last + 1] / lengths[last]) ** (a / (a - b))


def table(result: dict[str, Any]) -> str:
    """The tipping points as a Markdown table."""
    columns = list(dict.fromkeys((p["scope"], p["visible"], p["pass"]) for p in result["tipping"]))
    points = {(p["attention"], p["scope"], p["visible"], p["pass"]): p for p in result["tipping"]}
    names = [name for name in result["signature"]["attentions"] if name != BASELINE]
    head = ["attention", *(", ".join(column) for column in columns)]
    rows = [
        [name, *(_said(points.get((name, *column)), result) for column in columns)]
        for name in names
    ]
    machine = result["signature"]["machine"]
    note = (
        "Tokens from which on a mechanism is faster than softmax: median (range) over "
        f"{result['signature']['rounds']} rounds. Width {result['signature']['hidden_size']}, "
        f"{result['signature']['heads']} heads, batch {result['signature']['batch']}; the model "
        f"has two layers. {machine['gpu'] or machine['processor']}, {machine['threads']} thread(s)."
    )
    return markdown(head, rows) + f"\n{note}\n"


def _said(point: dict[str, Any] | None, result: dict[str, Any]) -> str:
    if point is None:
        return "-"
    longest, shortest = max(result["signature"]["lengths"]), min(result["signature"]["lengths"])

    def number(value: float | None) -> str:
        if value is None:
            return f"> {longest:,}"
        return f"{value:,.0f}" if value else f"< {shortest:,}"

    middle, low, high = (number(point[key]) for key in ("median", "low", "high"))
    return middle if low == high else f"{middle} ({low} to {high})"
