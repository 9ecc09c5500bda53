"""The processes of a run, one or several: under torchrun or accelerate launch all do the same."""

import os
from datetime import timedelta

import torch
from accelerate import PartialState


def processes() -> PartialState:
    """Which process this is, and of how many; they talk through NCCL on GPUs, else through gloo.

    They wait for each other for up to a day: the first one alone samples data and times models.
    Under FSDP a checkpoint holds whole weights: shards are no model that can be tested and loaded.
    """
    os.environ["FSDP_STATE_DICT_TYPE"] = "FULL_STATE_DICT"
    return PartialState(cpu=not torch.cuda.is_available(), timeout=timedelta(days=1))
