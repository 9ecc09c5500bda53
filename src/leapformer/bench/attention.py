"""The op against torch's SDPA and the quadratic form: over lengths, and one step of decoding."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import plots
from ..ops import LeapState, choose_backend, leap_attention
from ..results import signature, writable_folder, write_json
from ..timing import seconds, spread
from ..timing import threads as limited

CONTEXTS = (1024, 8192, 32768)
QUADRATIC_UP_TO = 2**24
"""Scores the quadratic form may hold: beyond that it is left out."""


@dataclass(frozen=True)
class Case:
    """A shape to measure: B, H, D (and E = D), causal or not."""

    batch: int
    heads: int
    width: int
    causal: bool

    def __str__(self) -> str:
        kind = "causal" if self.causal else "bidirectional"
        return f"{kind}, B={self.batch}, H={self.heads}, D={self.width}"


CASES = (Case(1, 8, 64, True), Case(32, 2, 32, False))


def run(out: Path, lengths: list[int], threads: int, rounds: int, backend: str) -> dict[str, Any]:
    """Measure, and write `out` (JSON) and the picture beside it.

    Ratios are of the same round; their median and range are over the rounds. Float32, random
    inputs, learned proportions given.
    """
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"--out {out}: give the name of a JSON file, such as attention.json")
    if min(threads, rounds, *lengths) < 1:
        raise ValueError("threads, rounds and lengths must be at least 1")
    writable_folder(out.parent)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with limited(threads):
        result = {
            "signature": signature(
                bench="attention",
                backend=choose_backend(backend, device),
                precision="float32",
                seed=0,
                recipe={"lengths": lengths, "contexts": CONTEXTS, "rounds": rounds},
            ),
            "lengths": [
                record
                for case in CASES
                for length in lengths
                for record in _at_length(case, length, rounds, backend, device)
            ],
            "decode": [
                record
                for context in CONTEXTS
                for record in _decode(CASES[0], context, rounds, backend, device)
            ],
        }
    write_json(out, result)
    plots.attention_bench(result, out.with_suffix(".png"))
    return result


def quadratic(q: Tensor, k: Tensor, v: Tensor, p_q: Tensor, p_k: Tensor, causal: bool) -> Tensor:
    """The formula as one would write it first, in the inputs' dtype, every weight held."""
    angle = (p_q.unsqueeze(-1) - p_k.unsqueeze(-2)) * (math.pi / 2)
    weights = (q.relu() @ k.relu().mT) * angle.cos()
    if causal:
        weights = weights.tril()
    return (weights @ v) / weights.sum(-1, keepdim=True).clamp_min(1e-6)


def _at_length(
    case: Case, length: int, rounds: int, backend: str, device: torch.device
) -> list[dict[str, Any]]:
    shape = (case.batch, length, case.heads, case.width)
    q, k, v, grad = (torch.randn(shape, device=device).transpose(1, 2) for _ in range(4))
    p_q, p_k = torch.rand(2, case.batch, case.heads, length, device=device)
    inputs = [x.requires_grad_() for x in (q, k, v, p_q, p_k)]
    visible = "causal" if case.causal else "all"
    contenders: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=case.causal),
        "leap": lambda: leap_attention(q, k, v, p_q, p_k, visible=visible, backend=backend),
    }
    if case.batch * case.heads * length**2 <= QUADRATIC_UP_TO * 8:
        contenders["quadratic"] = lambda: quadratic(q, k, v, p_q, p_k, case.causal)

    def forward(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(attend)

    def both(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(), inputs, grad, allow_unused=True)

    records = []
    for way, wrap in (("forward", forward), ("forward+backward", both)):
        label = f"{case}, N={length}, {way}"
        taken = seconds({n: wrap(f) for n, f in contenders.items()}, rounds, label=label)
        records += [
            {
                "case": str(case),
                "length": length,
                "pass": way,
                "contender": name,
                "seconds": spread(values),
                "times_sdpa": spread([s / t for s, t in zip(taken["sdpa"], values, strict=True)]),
            }
            for name, values in taken.items()
        ]
    return records


def _decode(
    case: Case, context: int, rounds: int, backend: str, device: torch.device
) -> list[dict[str, Any]]:
    """One token more after `context` tokens: against SDPA over a full static cache."""
    cache = (1, case.heads, context, case.width)
    keys, values = torch.randn(2, *cache, device=device)
    q, k, v = torch.randn(3, 1, case.heads, 1, case.width, device=device)
    p_q, p_k = torch.rand(2, 1, case.heads, 1, device=device)
    empty = LeapState.empty(1, case.heads, case.width, case.width, device=device)
    state = empty.extend(keys, values, torch.rand(cache[:3], device=device))

    @torch.inference_mode()
    def sdpa() -> object:
        keys[:, :, -1:], values[:, :, -1:] = k, v
        return scaled_dot_product_attention(q, keys, values)

    @torch.inference_mode()
    def leap() -> object:
        return leap_attention(
            q,
            k,
            v,
            p_q,
            p_k,
            visible="causal",
            state=state,
            return_state=True,
            backend=backend,
        )

    taken = seconds({"sdpa": sdpa, "leap": leap}, rounds, label=f"decode after {context}")
    return [
        {
            "context": context,
            "contender": name,
            "seconds": spread(values),
            "times_sdpa": spread([s / t for s, t in zip(taken["sdpa"], values, strict=True)]),
        }
        for name, values in taken.items()
    ]
