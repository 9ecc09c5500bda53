"""Checks that end in one clear sentence."""

import difflib
from collections.abc import Iterable

import torch
from torch import Tensor


def known(kind: str, name: str, names: Iterable[str]) -> str:
    """`name`, if it is one of the names; else ValueError with the nearest and all of them."""
    names = list(names)
    if name not in names:
        near = difflib.get_close_matches(str(name), names, 1)
        hint = f" (did you mean {near[0]}?)" if near else ""
        raise ValueError(f"unknown {kind} {name!r}{hint}: choose from {', '.join(names)}")
    return name


def require(holds: Tensor, message: str) -> None:
    """Raise ValueError unless the one-element bool tensor holds.

    On a GPU and under torch.compile nothing may wait for the value: there the device itself checks,
    and raises RuntimeError later.
    """
    if holds.device.type != "cpu" or torch.compiler.is_compiling():
        torch._assert_async(holds, message)
    elif not holds:
        raise ValueError(message)
