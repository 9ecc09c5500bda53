"""The processes of a run, one or several: under torchrun or accelerate launch all do the same."""

from datetime import timedelta

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Which process this is, and of how many; they talk through NCCL on GPUs, else through gloo.

    They wait for each other for up to a day: the first one alone samples data and times models.
    """
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
