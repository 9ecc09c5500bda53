"""Checks of values, as opposed to shapes: on a GPU, or while compiling, they must not wait."""

import torch
from torch import Tensor


def require(holds: Tensor, message: str) -> None:
    """Raise ValueError unless the one-element bool tensor holds.

    On a GPU and under torch.compile the device itself checks, and raises RuntimeError later.
    """
    if holds.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)
