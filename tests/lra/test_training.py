"""A run leaves its result, is not run twice, goes on after a kill, and stops early on errors."""

import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, Trainer

import leapformer.models  # noqa: F401 - registers the models with transformers
from leapformer.tasks.lra.data import Collator, load, majority, prepare
from leapformer.tasks.lra.train import train
from leapformer.tasks.runs import RESULT, last_checkpoint
from leapformer.zoo import ATTENTIONS

KILL = """
import os, pickle, signal, sys
import torch
from transformers import Trainer, TrainerState
from leapformer.tasks.lra.train import train

torch.set_num_threads(1)  # as in the tests: rounding depends on it
arguments, owner, method, last = pickle.load(sys.stdin.buffer)
owner = {"Trainer": Trainer, "TrainerState": TrainerState}[owner]
real, calls = getattr(owner, method), []

def counted(*words, **named):
    calls.append(method)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **named)

setattr(owner, method, counted)
train(*arguments)
"""


def no_training(*_, **__):
    pytest.fail("training began")


def curve(result):
    """What was measured at each step, without times."""
    names = ("loss", "grad_norm", "learning_rate", "eval_loss", "eval_accuracy", "test_loss")
    return [
        {name: entry[name] for name in ("step", *names) if name in entry}
        for entry in result["curve"]
        if set(names) & set(entry)
    ]


@pytest.fixture(scope="module", params=ATTENTIONS)
def finished(request, tiny, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    return request.param, out, train(tiny, request.param, 3, out, folder)


def test_run_leaves_a_result_with_its_signature(finished, tiny, folder):
    attention, out, result = finished
    assert json.loads((out / RESULT).read_text()) == result
    signed = result["signature"]
    assert (signed["attention"], signed["seed"], signed["precision"]) == (attention, 3, "float32")
    assert signed["recipe"]["steps"] == tiny.steps
    assert signed["recipe"]["trees"]["max_depth"] == tiny.trees.max_depth
    assert {"leapformer", "torch", "transformers"} <= set(signed["versions"])
    assert {"processor", "threads", "gpu"} <= set(signed["machine"])
    assert {"commit", "backend"} <= set(signed)
    assert result["majority"] == majority(load(tiny, folder)[0]["test"])
    assert [entry["step"] for entry in curve(result) if "eval_loss" in entry] == [3, 6, 7]
    assert [entry["step"] for entry in curve(result) if "loss" in entry] == [3, 6]
    assert result["best_step"] in (3, 6, 7)
    assert not list(out.glob("checkpoint-*"))


def test_saved_model_is_the_one_that_was_tested(finished, tiny, folder):
    _, out, result = finished
    model = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    batch = Collator(tiny)(list(load(tiny, folder)[0]["test"]))
    with torch.no_grad():
        answers = model(batch["input_ids"], batch.get("attention_mask")).logits.argmax(-1)
    assert (answers == batch["labels"]).double().mean().item() == result["accuracy"]


def test_finished_run_is_not_run_again(finished, tiny, folder, monkeypatch):
    attention, out, result = finished
    monkeypatch.setattr(Trainer, "train", no_training)
    assert train(tiny, attention, 3, out, folder) == result


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        pytest.param("Trainer", "training_step", 7, id="in the second epoch"),
        pytest.param("TrainerState", "save_to_json", 2, id="while writing a checkpoint"),
        pytest.param("Trainer", "evaluate", 4, id="before the test"),
    ],
)
def test_killed_run_goes_on_as_if_nothing_had_happened(
    tiny, folder, tmp_path, monkeypatch, owner, method, call
):
    whole = train(tiny, "leap", 0, tmp_path / "whole", folder)
    out = tmp_path / "killed"
    process = subprocess.run(
        [sys.executable, "-c", KILL],
        input=pickle.dumps(((tiny, "leap", 0, out, folder), owner, method, call)),
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (out / RESULT).exists()
    assert last_checkpoint(out) is not None

    steps, real = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *x: steps.append(0) or real(*x))
    resumed = train(tiny, "leap", 0, out, folder)
    assert len(steps) < tiny.steps  # not from the start
    assert curve(resumed) == curve(whole)
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["best_step"] == whole["best_step"]
    weights = [load_file(tmp_path / x / "model" / "model.safetensors") for x in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_seed_is_another_run(tiny, folder, tmp_path):
    first, again, other = (
        curve(train(tiny, "leap", seed, tmp_path / name, folder))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert all(a["loss"] != b["loss"] for a, b in zip(first, other, strict=True) if "loss" in a)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    state = json.dumps({"global_step": 0, "log_history": [{"step": 1}]})
    for step, text in {9: state, 10: state, 11: state[: len(state) // 2], 12: "", 13: None}.items():
        place = tmp_path / f"checkpoint-{step}"
        place.mkdir()
        save_file({}, place / "model.safetensors")
        for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
            torch.save({}, place / name)
        if text is not None:
            text = text.replace(": 0", f": {step}")
            (place / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention": "linear"}, "attention"),
        ({"seed": 4}, "seed"),
        ({"recipe": {"learning_rate": 0.5}}, "learning_rate"),
        ({"recipe": {"data_seed": 1}}, "data and data_seed"),
    ],
    ids=["attention", "seed", "recipe", "data"],
)
def test_folder_of_another_run_is_refused(tiny, folder, tmp_path, monkeypatch, change, named):
    arguments = {"attention": "leap", "seed": 3, "recipe": tiny, "out": tmp_path / "run"}
    train(**arguments, folder=folder)
    before = (tmp_path / "run" / RESULT).read_bytes()
    if "recipe" in change:
        change = {"recipe": replace(tiny, **change["recipe"])}
    monkeypatch.setattr(Trainer, "train", no_training)
    with pytest.raises(ValueError, match=f"holds a run with another {named}: .*another --out"):
        train(**{**arguments, **change}, folder=folder)
    assert (tmp_path / "run" / RESULT).read_bytes() == before


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_unwritable_folder_is_found_before_any_work(tiny, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="choose another folder with --out"):
        train(tiny, "leap", 0, tmp_path / place, tmp_path / "data")
    assert not (tmp_path / "data").exists()


def test_unknown_attention_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"unknown attention 'leep' .did you mean leap"):
        train(tiny, "leep", 0, tmp_path / "run", tmp_path / "data")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_loss_that_is_no_number_stops_the_run(attention, tiny, folder, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="nan at step 3: lower --learning-rate"):
        train(replace(tiny, learning_rate=1e30), attention, 0, out, folder)
    assert not (out / RESULT).exists()
    assert not (out / "model").exists()


def test_evaluation_that_is_no_number_stops_the_run_too(tiny, folder, tmp_path):
    once = replace(tiny, steps=1, evaluate_every=1, warmup_steps=0, learning_rate=1e30)
    with pytest.raises(FloatingPointError, match="validation loss is nan at step 1"):
        train(once, "leap", 0, tmp_path / "run", folder)
    assert not (tmp_path / "run" / RESULT).exists()


@pytest.mark.parametrize("last", [5, 7], ids=["in the middle", "at the end"])
def test_a_run_that_was_moved_is_tested_with_its_best_model(
    tiny, folder, tmp_path, monkeypatch, last
):
    whole = train(tiny, "leap", 0, tmp_path / "whole", folder)
    steps, real = [], Trainer.training_step

    def stopped(*arguments):
        steps.append(0)
        if len(steps) == last:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, "leap", 0, tmp_path / "here", folder)
    (tmp_path / "here").rename(tmp_path / "there")
    moved = train(tiny, "leap", 0, tmp_path / "there", folder)
    assert (moved["best_step"], moved["accuracy"]) == (whole["best_step"], whole["accuracy"])
    weights = [load_file(tmp_path / x / "model" / "model.safetensors") for x in ("whole", "there")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


LONG = "( ( ( ( ( [MAX 2 ) 9 ) 1 ) 4 ) ] )\t9\n"


@pytest.fixture
def trees(tiny, tmp_path, released):
    """A recipe of one step on one released tree of six tokens, and the folder of its data."""
    prepare("listops", released(LONG), tmp_path / "data" / "listops", partial=True)
    one = {"train_examples": 1, "validation_examples": 1, "test_examples": 1, "batch_size": 1}
    return replace(tiny, prepared=True, steps=1, evaluate_every=1, **one), tmp_path / "data"


def test_the_cure_an_error_names_works_in_the_same_folder(trees, tmp_path):
    recipe, data = trees
    with pytest.raises(ValueError, match=r"has 6 tokens .* allows for 5: give --max-length 6"):
        train(replace(recipe, max_length=5), "leap", 0, tmp_path / "run", data)
    assert train(replace(recipe, max_length=6), "leap", 0, tmp_path / "run", data)["curve"]


def test_released_files_are_trained_on_and_signed(trees, tmp_path):
    recipe, data = trees
    result = train(recipe, "leap", 0, tmp_path / "run", data)
    assert result["majority"] == 1
    about = json.loads((data / "listops" / "about.json").read_text())
    assert result["signature"]["data"] == about
    assert about["layout"] == "basic_*.tsv"


def test_a_batch_larger_than_the_training_split_is_refused(tiny, folder, tmp_path):
    with pytest.raises(ValueError, match="batch of 33 is more than the 32 rows"):
        train(replace(tiny, batch_size=33), "leap", 0, tmp_path / "run", folder)
