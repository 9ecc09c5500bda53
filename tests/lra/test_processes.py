"""Two processes that share a batch do what one does with all of it."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from leapformer.tasks.lra.data import load
from leapformer.tasks.runs import RESULT

RUN = """
import os, sys, json
import torch
torch.set_num_threads(1)
from leapformer.cli import main
sys.exit(main(json.loads(os.environ["WORDS"])))
"""
MEASURED = ("loss", "grad_norm", "learning_rate", "eval_accuracy", "eval_cross_entropy")


@pytest.fixture(scope="module")
def runs(tiny, folder, tmp_path_factory):
    """The same recipe in one process and in two, with a test split that no batch divides."""
    odd = replace(tiny, test_examples=19, validation_examples=17, dropout=0.0)
    load(odd, folder)
    out = tmp_path_factory.mktemp("processes")
    script = out / "run.py"
    script.write_text(RUN)
    found = {}
    for count in (1, 2):
        words = ["lra", "train", "--data", str(folder), "--out", str(out / str(count))]
        for name in (
            *("train_examples", "validation_examples", "test_examples", "dropout", "steps"),
            *("batch_size", "hidden_size", "intermediate_size", "learning_rate"),
            *("warmup_steps", "evaluate_every", "timing_batch"),
        ):
            words += [f"--{name.replace('_', '-')}", str(getattr(odd, name))]
        launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(count)]
        done = subprocess.run(
            [sys.executable, *launch, str(script)],
            env={"WORDS": json.dumps(words), "OMP_NUM_THREADS": "1", "PATH": ""},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout.count("test accuracy") == 1
        found[count] = json.loads((out / str(count) / RESULT).read_text())
    return found


def test_the_number_of_processes_is_signed(runs):
    assert {count: run["signature"]["processes"] for count, run in runs.items()} == {1: 1, 2: 2}


def test_both_have_the_same_curve(runs):
    one, two = (
        [{k: e[k] for k in ("step", *MEASURED) if k in e} for e in run["curve"]]
        for run in runs.values()
    )
    assert len([entry for entry in one if "loss" in entry]) == 2
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


def test_both_are_tested_on_every_example_once(runs):
    one, two = runs.values()
    assert one["accuracy"] * 19 == pytest.approx(round(one["accuracy"] * 19))
    assert one["accuracy"] == two["accuracy"]
    assert one["loss"] == pytest.approx(two["loss"], rel=1e-4)
    assert one["majority"] == two["majority"]
