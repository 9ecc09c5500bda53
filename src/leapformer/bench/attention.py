"""The op against torch's SDPA and others: over lengths, and one step of decoding.

A backend is timed only once its laws held in the same run (`laws.py`), and its speed is also told
as a share of the limits: what torch.mm and a copy reach in the same rounds (`cases.py`).
"""

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from .. import plots
from ..ops import LeapState, choose_backend, leap_attention
from ..ops.checks import known
from ..proportion import LeaP
from ..results import json_file, signature, write_json
from ..timing import once, peak_bytes, seconds, spread
from ..timing import threads as limited
from .cases import (
    CASES,
    DECODER,
    Case,
    forward_bytes,
    inputs,
    limits,
    operations,
    share,
    step_bytes,
    yardsticks,
)
from .goals import goals, report
from .laws import errors
from .peers import Attend, peers, quadratic, widened

CONTEXTS = (1024, 8192, 32768)
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
QUADRATIC = ("sdpa", "quadratic")
"""Contenders whose time grows with the square of the length."""
SCORES = 2**26
"""How many the quadratic form may hold: beyond that it is not measured."""
ROUNDS_UP_TO, ONCE_UP_TO = 20.0, 300.0
"""Seconds that a call may be expected to take to be measured in every round, or once."""


def run(
    out: Path, lengths: list[int], threads: int, rounds: int, backend: str, dtype: str
) -> dict[str, Any]:
    """Measure, and write `out` (JSON), a report (Markdown) and the picture beside it.

    `backend` names one of `leap_attention` or several, separated by commas: the first is the
    contender "leap", the others are "leap NAME". `dtype` is a name of `DTYPES`, or "auto": float32
    on a CPU, bfloat16 on a GPU. Ratios are of the same round; their median and range are over the
    rounds. Random inputs; over lengths the proportions are given, in decoding LeaP reads them.

    Raises ValueError for a name or number that does not fit, and FloatingPointError where a backend
    breaks a law.
    """
    json_file(out)
    if min(threads, rounds, *lengths) < 1:
        raise ValueError("threads, rounds and lengths must be at least 1")
    known("dtype", dtype, ("auto", *DTYPES))
    torch.manual_seed(0)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if dtype == "auto":
        dtype = "bfloat16" if device.type == "cuda" else "float32"
    chosen = [choose_backend(name.strip(), device) for name in backend.split(",")]
    backends = {f"leap {name}" if i else "leap": name for i, name in enumerate(chosen)}
    with limited(threads):
        found = {name: errors(name, device) for name in chosen}
        others, absent = peers(device, DTYPES[dtype])
        measures = yardsticks(device, DTYPES[dtype])
        bench = Bench(rounds, backends, others, device, DTYPES[dtype], measures)
        for case in CASES:
            for length in sorted(length for length in lengths if length <= case.longest):
                bench.at_length(case, length)
        for context in CONTEXTS:
            bench.decode(DECODER, context)
        result = {
            "signature": signature(
                bench="attention",
                backend=chosen[0],
                precision=dtype,
                seed=0,
                recipe={"lengths": lengths, "contexts": CONTEXTS, "rounds": rounds},
            ),
            "backends": backends,
            "errors": found,
            "peers": {"measured": list(others), "absent": absent},
            "lengths": bench.records,
            "left_out": bench.left_out,
            "decode": bench.steps,
        }
    result["goals"] = goals(result)
    write_json(out, result)
    out.with_suffix(".md").write_text(report(result), encoding="utf-8")
    plots.attention_bench(result, out.with_suffix(".png"))
    return result


@dataclass
class Bench:
    """Measures, and gathers what it found in `records`, `left_out` and `steps`."""

    rounds: int
    backends: dict[str, str]
    peers: dict[str, Attend]
    device: torch.device
    dtype: torch.dtype
    yardsticks: dict[str, Callable[[], object]]
    records: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)

    def at_length(self, case: Case, length: int) -> None:
        """Forward, and forward and backward, of all contenders; lengths come in rising order."""
        leaves, grad = inputs(case, length, self.device, self.dtype)
        q, k, v, p_q, p_k = leaves
        contenders: dict[str, tuple[Callable[[], Tensor], list[Tensor]]] = {
            "sdpa": (
                lambda: scaled_dot_product_attention(q, k, v, is_causal=case.causal),
                [q, k, v],
            )
        }
        for name, backend in self.backends.items():
            attend = functools.partial(
                leap_attention, *leaves, visible=case.visible, backend=backend
            )
            contenders[name] = (attend, leaves)
        if case.batch * case.heads * length**2 <= SCORES:
            contenders["quadratic"] = (lambda: quadratic(q, k, v, p_q, p_k, case.causal), leaves)
        for name, peer in self.peers.items() if case.causal else ():
            wide = widened(*leaves)
            contenders[name] = (functools.partial(peer, *wide), wide)

        forward = {name: torch.no_grad()(attend) for name, (attend, _) in contenders.items()}
        both = {
            name: functools.partial(_differentiate, attend, wanted, grad)
            for name, (attend, wanted) in contenders.items()
        }
        self._pass(case, length, "forward", forward)
        self._pass(case, length, "forward+backward", both)

    def _pass(
        self, case: Case, length: int, way: str, runs: Mapping[str, Callable[[], object]]
    ) -> None:
        label, where = f"{case}, N={length}, {way}", {"case": str(case), "length": length}
        expected = {name: self._expected(str(case), length, way, name) for name in runs}
        taken = seconds(
            {name: run for name, run in runs.items() if expected[name] <= ROUNDS_UP_TO}
            | self.yardsticks,
            self.rounds,
            label=label,
        )
        reached = limits(taken, self.device)
        for name, run in runs.items():
            if expected[name] > ONCE_UP_TO:
                reason = f"expected to take {expected[name]:.0f} s"
                self.left_out.append({**where, "pass": way, "contender": name, "reason": reason})
            elif name not in taken:
                taken[name] = [once(run)]
        for name in (name for name in runs if name in taken):
            record = {**where, "pass": way, "contender": name, **_timed(name, taken)}
            if expected[name] <= ROUNDS_UP_TO:
                record["peak_bytes"] = peak_bytes(runs[name])
            if name in self.backends:
                needed = operations(case, length)[way]
                record["of_matmul"] = share(needed, taken[name], reached["matmul"])
            if name in self.backends and way == "forward":
                needed = forward_bytes(case, length, self.dtype)
                record["of_bandwidth"] = share(needed, taken[name], reached["copy"])
            self.records.append(record)

    def _expected(self, case: str, length: int, way: str, name: str) -> float:
        """Seconds a call should take, from the length before; 0 for the first."""
        told = [
            record
            for record in self.records + self.left_out
            if (record["case"], record["pass"], record["contender"]) == (case, way, name)
        ]
        if not told:
            return 0.0
        if "seconds" not in told[-1]:
            return math.inf
        growth = length / told[-1]["length"]
        return float(told[-1]["seconds"]["median"] * growth ** (2 if name in QUADRATIC else 1))

    def decode(self, case: Case, context: int) -> None:
        """One token more after `context` tokens: against SDPA over a full static cache."""
        made = {"device": self.device, "dtype": self.dtype}
        cache = (case.batch, case.heads, context, case.width)
        keys, values = torch.randn(2, *cache, **made)  # type: ignore[call-overload]
        shape = (3, case.batch, case.heads, 1, case.width)
        q, k, v = torch.randn(shape, **made)  # type: ignore[call-overload]
        leaps = [LeaP(case.width).to(self.device, self.dtype) for _ in range(2)]
        empty = LeapState.empty(*cache[:2], case.width, case.width, device=self.device)
        state = empty.extend(keys, values, torch.rand(cache[:3], device=self.device))

        @torch.inference_mode()
        def sdpa() -> object:
            keys[:, :, -1:], values[:, :, -1:] = k, v
            return scaled_dot_product_attention(q, keys, values)

        @torch.inference_mode()
        def leap(backend: str) -> object:
            return leap_attention(
                *(q, k, v, *leaps),
                visible="causal",
                state=state,
                return_state=True,
                backend=backend,
            )

        runs: dict[str, Callable[[], object]] = {"sdpa": sdpa}
        for name, backend in self.backends.items():
            runs[name] = functools.partial(leap, backend)
        taken = seconds(runs | self.yardsticks, self.rounds, label=f"decode after {context}")
        copied = limits(taken, self.device)["copy"]
        for name in runs:
            record = {"context": context, "contender": name, **_timed(name, taken)}
            record["peak_bytes"] = peak_bytes(runs[name])
            if name in self.backends:
                needed = step_bytes(case, self.dtype)
                record["of_bandwidth"] = share(needed, taken[name], copied)
            self.steps.append(record)


def _differentiate(attend: Callable[[], Tensor], wanted: list[Tensor], grad: Tensor) -> object:
    return torch.autograd.grad(attend(), wanted, grad)


def _timed(name: str, taken: dict[str, list[float]]) -> dict[str, Any]:
    """Seconds, in how many rounds, and how many times as fast as SDPA, where that was measured."""
    record: dict[str, Any] = {"rounds": len(taken[name]), "seconds": spread(taken[name])}
    if "sdpa" in taken:
        each = max(len(taken[name]), len(taken["sdpa"]))
        sdpa, mine = (x * (each // len(x)) for x in (taken["sdpa"], taken[name]))
        record["times_sdpa"] = spread([s / t for s, t in zip(sdpa, mine, strict=True)])
    return record
