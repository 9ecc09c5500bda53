"""The door to the GPU backend: what it serves, and the kernels loaded at their first use.

Nothing here imports Triton before it is asked for: importing leapformer stays light, and works
where there is none.
"""

import functools
import importlib.util
from typing import Any

import torch
from torch import Tensor

from .operator import Inputs

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
WIDEST = 128
CAPABILITY = (8, 0)
LITTLE, ENOUGH = 64, 160 * 1024
"""Heads wider than `LITTLE` need so many bytes of shared memory (A100 and H100 have them)."""


def triton(inputs: Inputs) -> tuple[Tensor, Tensor]:
    """As `chunked`, for inputs that `refuses` has nothing against."""
    from .triton_launch import attention

    return attention(inputs)


def triton_step(*args: Any) -> tuple[Tensor, Tensor]:
    """One step of decoding, `leapformer.ops.step`, in one launch."""
    from .triton_step import step

    return step(*args)


def refuses(device: torch.device, dtype: torch.dtype, width: int) -> str:
    """Why the kernels do not serve such inputs, `width` being that of the wider of keys and values;
    empty where they do."""
    if dtype not in DTYPES:
        return f"takes float32, float16 and bfloat16, and the inputs are {dtype}"
    if width > WIDEST:
        return f"takes heads up to {WIDEST} wide, and these are {width}"
    return _lacks(device.type, device.index, width > LITTLE)


def _lacks(kind: str, index: int | None, wide: bool) -> str:
    """What such a device lacks for the kernels."""
    if not _installed():
        return "needs Triton, which is not installed (pip install triton)"
    if kind == "cuda" and not _capable(index):
        return "needs an NVIDIA GPU of compute capability {}.{} or later".format(*CAPABILITY)
    if kind == "cuda" and wide and not _roomy(index):
        return f"takes heads up to {LITTLE} wide on this GPU, for want of shared memory"
    if kind == "cpu" and not _interpreted():
        return "runs on a CPU only in Triton's interpreter (TRITON_INTERPRET=1 before its import)"
    if kind not in ("cuda", "cpu", "meta"):
        return f"runs on an NVIDIA GPU and the inputs are on {kind}"
    return ""


# As in native.py: torch.compile takes the answer as a constant.
_lacks._dynamo_marked_constant = True  # type: ignore[attr-defined]


@functools.cache
def _installed() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _capable(index: int | None) -> bool:
    return torch.version.hip is None and torch.cuda.get_device_capability(index) >= CAPABILITY


@functools.cache
def _roomy(index: int | None) -> bool:
    properties: Any = torch.cuda.get_device_properties(index)
    return properties.shared_memory_per_block_optin >= ENOUGH


@functools.cache
def _interpreted() -> bool:
    from .triton_kernels import INTERPRETED

    return bool(INTERPRETED.value)
