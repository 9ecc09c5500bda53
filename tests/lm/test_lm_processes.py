"""Two processes that share a batch, and under FSDP the weights too, do what one does with all of
it."""

import json
import subprocess
import sys
from dataclasses import fields, replace

import pytest
import torch
from safetensors.torch import load_file

from leapformer.tasks.lm.recipes import recipe
from leapformer.tasks.lm.train import train
from leapformer.tasks.runs import RESULT

RUN = """
import os, sys, json
import torch
from accelerate import PartialState
from accelerate.utils import DistributedType
from leapformer.cli import main

torch.set_num_threads(1)
real = PartialState.__init__

def accelerated(self, *words, **named):  # accelerate shards nothing on what it knows to be CPUs
    real(self, *words, **named)
    if self.distributed_type == DistributedType.MULTI_CPU:
        self.distributed_type = DistributedType.MULTI_GPU

if "ACCELERATE_USE_FSDP" in os.environ:
    PartialState.__init__ = accelerated
sys.exit(main(json.loads(os.environ["WORDS"])))
"""
FSDP = {  # what `accelerate launch --use_fsdp --fsdp_version 2 --fsdp_auto_wrap_policy ...` sets
    "ACCELERATE_USE_FSDP": "true",
    "FSDP_VERSION": "2",
    "FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP",
    "FSDP_CPU_RAM_EFFICIENT_LOADING": "true",
    "FSDP_RESHARD_AFTER_FORWARD": "true",
}
WAYS = {
    "share a batch": ({"documents": "apart"}, {}),
    "share the weights": ({"position_embedding": "learned", "micro_batch": 2}, FSDP),
}


@pytest.fixture(scope="module", params=WAYS)
def runs(request, tiny, folder, tmp_path_factory):
    """The same recipe in one process and in two; the best model is not the last."""
    options, environment = WAYS[request.param]
    options = {"position_embedding": "sinusoidal", **options}
    chosen = replace(tiny, learning_rate=1.0, warmup_steps=7, **options)
    out, usual = tmp_path_factory.mktemp("processes"), recipe("quick")
    train(chosen, "leap", 3, out / "1", folder)
    words = ["lm", "train", "--data", str(folder), "--out", str(out / "2"), "--seed", "3"]
    for name in (field.name for field in fields(chosen)):
        if getattr(chosen, name) != getattr(usual, name):
            words += [f"--{name.replace('_', '-')}", str(getattr(chosen, name))]
    (out / "run.py").write_text(RUN)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(out / "run.py")],
        env={"WORDS": json.dumps(words), "OMP_NUM_THREADS": "1", "PATH": "", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("leap: perplexity") == 1
    return out, *(json.loads((out / count / RESULT).read_text()) for count in "12")


def test_both_have_the_same_curve(runs):
    _, *both = runs
    names = ("step", "loss", "grad_norm", "learning_rate", "eval_loss")
    one, two = ([{k: e[k] for k in names if k in e} for e in run["curve"]] for run in both)
    assert len([entry for entry in one if "loss" in entry]) == 7
    assert len([entry for entry in one if "eval_loss" in entry]) == 3
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3)


def test_both_are_tested_alike(runs):
    _, one, two = runs
    assert one["test"] == pytest.approx(two["test"], rel=1e-3)
    assert one["best_step"] == two["best_step"] == 3
    assert one["parameters"] == two["parameters"]
    assert [run["signature"]["processes"] for run in (one, two)] == [1, 2]


def test_both_leave_the_same_model(runs):
    out, *_ = runs
    one, two = (load_file(out / count / "model" / "model.safetensors") for count in "12")
    assert one.keys() == two.keys()
    for name in one:
        torch.testing.assert_close(one[name], two[name], rtol=1e-3, atol=1e-4)
    kept = [{path.name for path in (out / count / "model").iterdir()} for count in "12"]
    assert kept[0] == kept[1]
