"""What `leapformer bench attention` is measured against, and its report in Markdown."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ..results import markdown
from .cases import ARENA, CASES, DECODER, Case

Result = dict[str, Any]
TRAINING = "forward+backward"


@dataclass(frozen=True)
class Goal:
    """A bound on what a run on a device ("cpu", "gpu", "any") measures; `of` gives None where the
    run did not measure it."""

    device: str
    name: str
    bound: float
    of: Callable[[Result], float | None]
    least: bool = True


def _smallest(values: Iterable[float]) -> float | None:
    return min(values, default=None)


def _found(
    result: Result, case: Case, way: str, fits: Callable[[int], bool], contender: str = "leap"
) -> list[dict[str, Any]]:
    return [
        record
        for record in result["lengths"]
        if (record["case"], record["pass"], record["contender"]) == (str(case), way, contender)
        and fits(record["length"])
    ]


def _times_sdpa(case: Case, fits: Callable[[int], bool]) -> Callable[[Result], float | None]:
    """How many times as fast as SDPA in training, at the worst of the lengths."""

    def of(result: Result) -> float | None:
        records = _found(result, case, TRAINING, fits)
        return _smallest(r["times_sdpa"]["median"] for r in records if "times_sdpa" in r)

    return of


def _times_peer(peer: str, fits: Callable[[int], bool]) -> Callable[[Result], float | None]:
    def of(result: Result) -> float | None:
        mine, theirs = (
            {
                record["length"]: record["seconds"]["median"]
                for record in _found(result, DECODER, TRAINING, fits, contender)
            }
            for contender in ("leap", peer)
        )
        return _smallest(theirs[n] / mine[n] for n in mine.keys() & theirs.keys())

    return of


def _of_matmul(result: Result) -> float | None:
    records = _found(result, DECODER, TRAINING, lambda n: n == 4096)
    return _smallest(record["of_matmul"]["median"] for record in records)


def _of_bandwidth(result: Result) -> float | None:
    records = _found(result, DECODER, "forward", lambda n: n >= 2048)
    return _smallest(record["of_bandwidth"]["median"] for record in records)


def _decode(result: Result) -> float | None:
    steps = [r for r in result["decode"] if (r["contender"], r["context"]) == ("leap", 32768)]
    return _smallest(step["times_sdpa"]["median"] for step in steps)


def _half_error(result: Result) -> float | None:
    found = result["errors"][result["backends"]["leap"]]
    return max(found["bfloat16"], found["float16"])


GOALS = [
    Goal("cpu", "training at 4,096: times SDPA", 10, _times_sdpa(DECODER, lambda n: n == 4096)),
    Goal("cpu", "training at 16,384: times SDPA", 25, _times_sdpa(DECODER, lambda n: n == 16384)),
    Goal("cpu", "training from 128: times SDPA", 1, _times_sdpa(DECODER, lambda n: n >= 128)),
    Goal("cpu", "training at 4,096: share of torch.mm's rate", 0.75, _of_matmul),
    Goal(
        "cpu",
        "bidirectional training at 2,048: times SDPA",
        12,
        _times_sdpa(ARENA, lambda n: n == 2048),
    ),
    Goal("cpu", "a step of decoding after 32,768: times SDPA", 150, _decode),
    Goal(
        "gpu",
        "training from 2,048: times flash-linear-attention",
        1.5,
        _times_peer("flash-linear-attention", lambda n: n >= 2048),
    ),
    Goal("gpu", "training from 2,048: times SDPA", 1, _times_sdpa(DECODER, lambda n: n >= 2048)),
    Goal("gpu", "forward from 2,048: share of the copy's rate", 0.5, _of_bandwidth),
    Goal("any", "error in half precision: times plain torch's", 2.0, _half_error, least=False),
]
"""Causal where nothing else is said."""


def _lacks(device: str, signature: Result) -> str:
    """What a run lacks for the goals of a device: those of the CPU are for one thread, float32."""
    gpu = bool(signature["machine"]["gpu"])
    if device == "gpu":
        return "" if gpu else "needs a GPU"
    if device == "cpu" and gpu:
        return "needs a run without a GPU"
    plain = signature["machine"]["threads"] == 1 and signature["precision"] == "float32"
    return "" if device == "any" or plain else "needs one thread and float32"


def goals(result: Result) -> list[dict[str, Any]]:
    """Every goal with what was measured; where nothing was, `reached` is None and `reason` says
    why."""
    told = []
    for goal in GOALS:
        reason, value, reached = _lacks(goal.device, result["signature"]), None, None
        if not reason:
            value = goal.of(result)
            reason = "needs other lengths, or the peer" if value is None else ""
        if value is not None:
            reached = value >= goal.bound if goal.least else value <= goal.bound
        told.append(
            {
                "goal": goal.name,
                "device": goal.device,
                "bound": ("at least " if goal.least else "at most ") + f"{goal.bound:g}",
                "measured": value,
                "reached": reached,
                "reason": reason,
            }
        )
    return told


def report(result: Result) -> str:
    """Goals, speed and memory over lengths, decoding, and who is absent, as Markdown."""
    said = {None: "not measured", True: "reached", False: "missed"}
    rows = [
        [
            f"{g['goal']} ({g['device'].upper()})" if g["device"] != "any" else g["goal"],
            g["bound"],
            _number(g["measured"]),
            ": ".join(filter(None, (said[g["reached"]], g["reason"]))),
        ]
        for g in result["goals"]
    ]
    machine = result["signature"]["machine"]
    parts = [
        f"{machine['gpu'] or machine['processor']}, {machine['threads']} thread(s), "
        f"{result['signature']['precision']}. Medians over the rounds.\n",
        markdown(["goal", "bound", "measured", ""], rows),
    ]
    for case in map(str, CASES):
        for way in ("forward", TRAINING):
            records = [r for r in result["lengths"] if (r["case"], r["pass"]) == (case, way)]
            parts += [f"{case}, {way}\n", _over(records, "length")] if records else []
    parts += ["One step of decoding, batch 1\n", _over(result["decode"], "context")]
    for name, why in result["peers"]["absent"].items():
        parts.append(f"{name} is absent: {why}\n")
    for r in result["left_out"]:
        parts.append(
            f"{r['contender']} is left out at {r['length']:,}, {r['pass']} ({r['case']}): "
            f"{r['reason']}\n"
        )
    return "\n".join(parts)


def _over(records: list[dict[str, Any]], over: str) -> str:
    """A row for each length and contender."""
    head = [over, "contender", "ms", "rounds", "times SDPA", "MiB", "of torch.mm", "of copy"]
    rows = [
        [
            f"{r[over]:,}",
            r["contender"],
            f"{1e3 * r['seconds']['median']:.3g}",
            str(r["rounds"]),
            _number(r.get("times_sdpa", {}).get("median")),
            f"{r['peak_bytes'] / 2**20:.3g}" if "peak_bytes" in r else "-",
            *(_percent(r.get(limit)) for limit in ("of_matmul", "of_bandwidth")),
        ]
        for r in records
    ]
    return markdown(head, rows)


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _percent(share: dict[str, float] | None) -> str:
    return "-" if share is None else f"{100 * share['median']:.0f} %"
