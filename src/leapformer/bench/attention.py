"""The op against torch's SDPA and the quadratic form: over lengths, and one step of decoding.

A backend is timed only once it has agreed with the reference in the same run, and its speed is also
told as a share of what torch.mm reaches in the same rounds.
"""

import functools
import math
import statistics
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
MATRIX = 1024
"""Rows and columns of the matrices whose product is the yardstick."""
TILE = 64


@dataclass(frozen=True)
class Case:
    """A shape to measure: B, H, D (and E = D), causal or not."""

    batch: int
    heads: int
    width: int
    causal: bool

    @property
    def visible(self) -> str:
        return "causal" if self.causal else "all"

    def __str__(self) -> str:
        kind = "causal" if self.causal else "bidirectional"
        return f"{kind}, B={self.batch}, H={self.heads}, D={self.width}"


CASES = (Case(1, 8, 64, True), Case(32, 2, 32, False))


def run(out: Path, lengths: list[int], threads: int, rounds: int, backend: str) -> dict[str, Any]:
    """Measure, and write `out` (JSON) and the picture beside it.

    `backend` names one of `leap_attention` or several, separated by commas: the first is the
    contender "leap", the others are "leap NAME". Ratios are of the same round; their median and
    range are over the rounds. Float32, random inputs, learned proportions given.

    Raises ValueError for a name or number that does not fit, and FloatingPointError where a backend
    disagrees with the reference.
    """
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"--out {out}: give the name of a JSON file, such as attention.json")
    if min(threads, rounds, *lengths) < 1:
        raise ValueError("threads, rounds and lengths must be at least 1")
    writable_folder(out.parent)
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen = [choose_backend(name.strip(), device) for name in backend.split(",")]
    backends = {f"leap {name}" if i else "leap": name for i, name in enumerate(chosen)}
    with limited(threads):
        errors = {name: max(_error(case, name, device) for case in CASES) for name in chosen}
        result = {
            "signature": signature(
                bench="attention",
                backend=chosen[0],
                precision="float32",
                seed=0,
                recipe={"lengths": lengths, "contexts": CONTEXTS, "rounds": rounds},
            ),
            "backends": backends,
            "errors": errors,
            "lengths": [
                record
                for case in CASES
                for length in lengths
                for record in _at_length(case, length, rounds, backends, device)
            ],
            "decode": [
                record
                for context in CONTEXTS
                for record in _decode(CASES[0], context, rounds, chosen[0], device)
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


def operations(case: Case, length: int) -> dict[str, int]:
    """Multiplications and additions that linear attention needs, by pass.

    With tiles of `TILE` queries and keys, F = 2 D and values of width E + 1 (the normaliser): each
    token's share in the state, F (E + 1) for a reading or a writing, and inside a tile the pairs
    that see each other, D for a score and E + 1 for its use. The backward pass reads and writes the
    states again, as no implementation keeps them.
    """
    wide, values = 2 * case.width, case.width + 1
    past, pairs = length, 0
    if case.causal:
        past = max(0, length - TILE)  # the first tile reads no state, the last one leaves none
        whole, rest = divmod(length, TILE)
        pairs = (whole * TILE * (TILE + 1) + rest * (rest + 1)) // 2
    forward = 2 * past * wide * values + pairs * (case.width + values)
    backward = past * wide * (5 * values - 1)
    backward += pairs * (2 * wide + case.width + values + values - 1)
    heads = 2 * case.batch * case.heads
    return {"forward": heads * forward, "forward+backward": heads * (forward + backward)}


def _inputs(case: Case, length: int, device: torch.device) -> tuple[list[Tensor], Tensor]:
    """q, k, v, p_q, p_k and a gradient for y."""
    shape = (case.batch, length, case.heads, case.width)
    q, k, v, grad = (torch.randn(shape, device=device).transpose(1, 2) for _ in range(4))
    p_q, p_k = torch.rand(2, case.batch, case.heads, length, device=device)
    return [x.requires_grad_() for x in (q, k, v, p_q, p_k)], grad


def _error(case: Case, backend: str, device: torch.device, length: int = 300) -> float:
    """The largest relative error of y and every gradient, of a few heads, against the reference.

    Raises FloatingPointError where it is more than float32 explains.
    """
    inputs, grad = _inputs(Case(1, 2, case.width, case.causal), length, device)
    found = []
    for name, dtype in ((backend, torch.float32), ("reference", torch.float64)):
        leaves = [x.detach().to(dtype).requires_grad_() for x in inputs]
        y = leap_attention(*leaves, visible=case.visible, backend=name)
        found.append([y.detach(), *torch.autograd.grad(y, leaves, grad.to(dtype))])
    error = max(float((a - b).norm() / b.norm()) for a, b in zip(*found, strict=True))
    if not error < 1e-5:
        raise FloatingPointError(f"{backend} errs by {error:.1e} ({case}): it is not timed")
    return error


def _at_length(
    case: Case, length: int, rounds: int, backends: dict[str, str], device: torch.device
) -> list[dict[str, Any]]:
    inputs, grad = _inputs(case, length, device)
    q, k, v, p_q, p_k = inputs
    contenders: dict[str, Callable[[], Tensor]] = {
        "sdpa": lambda: scaled_dot_product_attention(q, k, v, is_causal=case.causal),
    }
    for contender, name in backends.items():
        contenders[contender] = functools.partial(
            leap_attention, *inputs, visible=case.visible, backend=name
        )
    if case.batch * case.heads * length**2 <= QUADRATIC_UP_TO * 8:
        contenders["quadratic"] = lambda: quadratic(q, k, v, p_q, p_k, case.causal)

    def forward(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return torch.no_grad()(attend)

    def both(attend: Callable[[], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(attend(), inputs, grad, allow_unused=True)

    matrices = torch.randn(2, MATRIX, MATRIX, device=device)
    records = []
    for way, wrap in (("forward", forward), ("forward+backward", both)):
        label = f"{case}, N={length}, {way}"
        runs = {name: wrap(attend) for name, attend in contenders.items()}
        taken = seconds({**runs, "matmul": lambda: torch.mm(*matrices)}, rounds, label=label)
        rates = [2 * MATRIX**3 / t for t in taken.pop("matmul")]
        needed = operations(case, length)[way]
        records += [
            {
                "case": str(case),
                "length": length,
                "pass": way,
                "contender": name,
                "seconds": spread(values),
                "times_sdpa": spread([s / t for s, t in zip(taken["sdpa"], values, strict=True)]),
            }
            | ({"of_matmul": _share(needed, values, rates)} if name in backends else {})
            for name, values in taken.items()
        ]
    return records


def _share(needed: int, taken: list[float], rates: list[float]) -> dict[str, Any]:
    """The rate of so many operations as a share of torch.mm's (operations a second), and that."""
    shares = [needed / t / rate for t, rate in zip(taken, rates, strict=True)]
    return {**spread(shares), "matmul": statistics.median(rates)}


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
