"""Several attentions side by side: which runs those are, and how they stand in a table."""

import math
import statistics
from collections.abc import Callable
from typing import Any


def check_grid(
    attentions: list[str], seeds: list[int], rounds: int = 1
) -> tuple[list[str], list[int]]:
    """Attentions and seeds, each once; ValueError where there are none, or no rounds."""
    if not attentions or not seeds:
        raise ValueError("give at least one attention and one seed")
    if rounds < 1:
        raise ValueError(f"rounds is {rounds}: give at least one round of timing")
    if min(seeds) < 0:
        raise ValueError(f"seed {min(seeds)} is negative")
    return list(dict.fromkeys(attentions)), list(dict.fromkeys(seeds))


def grouped(
    results: list[dict[str, Any]], key: Callable[[dict[str, Any]], str] | str = "attention"
) -> dict[str, list[Any]]:
    """Runs by an entry of theirs or of their signature, or by what `key` makes of the signature, in
    order of appearance."""
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        signed = result["signature"]
        value = key(signed) if callable(key) else {**signed, **result}[key]
        groups.setdefault(value, []).append(result)
    return groups


def over_seeds(values: list[float], digits: int = 1, unit: str = "") -> str:
    """Mean and deviation; of values that are not all finite, no deviation."""
    known = len(values) > 1 and all(map(math.isfinite, values))
    deviation = f" ± {statistics.stdev(values):.{digits}f}" if known else ""
    return f"{statistics.mean(values):,.{digits}f}{unit}{deviation}"


def where(machine: dict[str, Any]) -> str:
    """The machine of a signature, in words."""
    return f"{machine['gpu'] or machine['processor']}, {machine['threads']} thread(s)"
