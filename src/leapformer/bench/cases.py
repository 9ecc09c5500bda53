"""What `leapformer bench attention` measures at, and what the work costs at least."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..timing import spread

TILE = 64
MATRIX = {"cpu": 1024, "cuda": 8192}
"""Rows and columns of the matrices whose product is the yardstick of operations."""
COPIED = 2**27
"""Bytes of the tensor whose copy is the yardstick of memory: more than caches hold."""


@dataclass(frozen=True)
class Case:
    """A shape to measure: B, H, D (and E = D), causal or not, up to a length."""

    batch: int
    heads: int
    width: int
    causal: bool
    longest: int = 2**16

    @property
    def visible(self) -> str:
        return "causal" if self.causal else "all"

    def __str__(self) -> str:
        kind = "causal" if self.causal else "bidirectional"
        return f"{kind}, B={self.batch}, H={self.heads}, D={self.width}"


DECODER = Case(1, 8, 64, True)
ARENA = Case(32, 2, 32, False, longest=2**13)
"""The Long-Range Arena's small model, with a batch that would not fit at any length."""
CASES = (DECODER, ARENA)


def inputs(
    case: Case, length: int, device: torch.device, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """q, k, v, p_q, p_k, all leaves, and a gradient for y. Proportions are float32, as LeaP's."""
    shape = (case.batch, length, case.heads, case.width)
    q, k, v, grad = (
        torch.randn(shape, device=device, dtype=dtype).transpose(1, 2) for _ in range(4)
    )
    p_q, p_k = torch.rand(2, case.batch, case.heads, length, device=device)
    return [x.requires_grad_() for x in (q, k, v, p_q, p_k)], grad


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


def forward_bytes(case: Case, length: int, dtype: torch.dtype) -> int:
    """What the forward pass reads and writes at least: q, k, v and y, and float32 proportions."""
    return case.batch * case.heads * length * (4 * case.width * dtype.itemsize + 2 * 4)


def step_bytes(case: Case, dtype: torch.dtype) -> int:
    """What a step of decoding reads and writes at least: the float32 state, and q, k, v and y."""
    state = 2 * case.width * (case.width + 1) * 4
    return case.batch * case.heads * (2 * state + 4 * case.width * dtype.itemsize)


def yardsticks(device: torch.device, dtype: torch.dtype) -> dict[str, Callable[[], object]]:
    """What the limits are measured with: "matmul", of `MATRIX` rows, and "copy", of `COPIED` bytes,
    which are read and written."""
    rows = MATRIX[device.type]
    matrices = torch.randn(2, rows, rows, device=device, dtype=dtype)
    here, there = torch.empty(2, COPIED, device=device, dtype=torch.uint8).fill_(1)
    return {"matmul": lambda: torch.mm(*matrices), "copy": lambda: there.copy_(here)}


def limits(taken: dict[str, list[float]], device: torch.device) -> dict[str, list[float]]:
    """Operations a second and bytes a second in each round, from the times of `yardsticks`."""
    return {
        "matmul": [2 * MATRIX[device.type] ** 3 / t for t in taken["matmul"]],
        "copy": [2 * COPIED / t for t in taken["copy"]],
    }


def share(needed: int, taken: list[float], rates: list[float]) -> dict[str, Any]:
    """The rate of so much work as a share of what was reached in the same rounds, and that."""
    rates = rates[: len(taken)]
    shares = [needed / t / rate for t, rate in zip(taken, rates, strict=True)]
    return {**spread(shares), "limit": statistics.median(rates)}
