"""Compile each kernel for a GPU, with what the operators launch it with, on a machine without one.

Prints the kernels' names. A program of its own, since Triton's interpreter must be off.
"""

from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from leapformer import LeaP, Visible
from leapformer.ops.operator import Inputs
from leapformer.ops.triton_launch import attention
from leapformer.ops.triton_step import step

TARGET = GPUTarget("cuda", 80, 32)
SHARED = 99 * 1024
"""Bytes of shared memory that a block may have on the GPUs that have least of it."""
TYPES = {
    torch.float32: "fp32",
    torch.float16: "fp16",
    torch.bfloat16: "bf16",
    torch.int32: "i32",
    torch.uint8: "u8",
}


def kind(value: Any) -> str:
    """The type of an argument, as the compiler names it."""
    if isinstance(value, Tensor):
        return "*" + TYPES[value.dtype]
    return "fp32" if isinstance(value, float) else "i32"


def compile_only(kernel, *args, grid, warmup, **named):
    """Stands for the launch of a kernel."""
    given = dict(zip(kernel.arg_names, args, strict=False)) | named
    options = {name: given.pop(name) for name in ("num_warps", "num_stages") if name in given}
    fixed = {p.name for p in kernel.params if p.is_constexpr}
    names = list(enumerate(kernel.arg_names))
    source = ASTSource(
        kernel,
        {name: "constexpr" if name in fixed else kind(given[name]) for _, name in names},
        {(i,): given[name] for i, name in names if name in fixed},
        {(i,): [["tt.divisibility", 16]] for i, name in names if isinstance(given[name], Tensor)},
    )
    made = triton.compile(source, target=TARGET, options=options)
    assert made.metadata.shared <= SHARED, (kernel.__name__, made.metadata.shared)
    print(kernel.__name__)


def both_passes(
    dtype, width, values, visible, proportions=True, masked=False, bounds=None, elu=False
):
    batch, length = (1 if bounds else 2), 70
    q, k = (torch.zeros(batch, 2, length, width, dtype=dtype) for _ in range(2))
    v = torch.zeros(batch, 2, length, values, dtype=dtype)
    for x in (q, k, v):
        x.requires_grad_()
    p = torch.zeros(batch, 2, length) if proportions else None
    mask = torch.ones(batch, length, dtype=torch.bool) if masked else None
    sums = torch.zeros(batch, 2, (2 if proportions else 1) * width, values + 1)
    rule = visible.numbers() if isinstance(visible, Visible) else []
    counts = torch.empty(0, dtype=torch.int64) if rule else visible
    bounds = torch.tensor(bounds) if bounds else None
    y, _ = attention(
        Inputs(
            *(q, k, v, p, p, sums, counts, mask, bounds, rule),
            eps=1e-6,
            feature_map="elu" if elu else "relu",
            whole=bounds is None,
        )
    )
    y.sum().backward()


if __name__ == "__main__":
    triton.JITFunction.run = compile_only
    both_passes(torch.bfloat16, 16, 32, Visible.causal())
    both_passes(torch.float32, 32, 16, torch.arange(70).expand(2, -1), masked=True, elu=True)
    both_passes(torch.float16, 20, 33, Visible.all(), proportions=False, bounds=[0, 30, 70])
    q, k, v = torch.zeros(3, 1, 2, 1, 32)
    mask = torch.ones(1, 1, dtype=torch.bool)
    for hidden in (8, 1):
        leap = [*LeaP(32, hidden).parameters()]
        step(q, k, v, None, None, torch.zeros(1, 2, 64, 33), 1e-6, "relu", leap, leap, mask)
    step(q, k, v, None, None, torch.zeros(1, 2, 32, 33), 1e-6, "elu")
