"""A run leaves its result, is not run twice, goes on after a kill, and stops early on errors."""

import json
import pickle
import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, Trainer

import leapformer.models  # noqa: F401 - registers the models with transformers
from leapformer.tasks.lra.data import collate, majority
from leapformer.tasks.lra.train import RESULT, last_checkpoint, load_data, train
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
def finished(request, tiny, cache, tmp_path_factory):
    out = tmp_path_factory.mktemp("runs") / request.param
    return request.param, out, train(tiny, request.param, 3, out, cache)


def test_run_leaves_a_result_with_its_signature(finished, tiny, cache):
    attention, out, result = finished
    assert json.loads((out / RESULT).read_text()) == result
    signed = result["signature"]
    assert (signed["attention"], signed["seed"], signed["precision"]) == (attention, 3, "float32")
    assert signed["recipe"]["steps"] == tiny.steps
    assert signed["recipe"]["trees"]["max_depth"] == tiny.trees.max_depth
    assert {"leapformer", "torch", "transformers"} <= set(signed["versions"])
    assert {"processor", "threads", "gpu"} <= set(signed["machine"])
    assert {"commit", "backend"} <= set(signed)
    assert result["majority"] == majority(load_data(tiny, cache)["test"])
    assert [entry["step"] for entry in curve(result) if "eval_loss" in entry] == [3, 6, 7]
    assert [entry["step"] for entry in curve(result) if "loss" in entry] == [3, 6]
    assert result["best_step"] in (3, 6, 7)
    assert not list(out.glob("checkpoint-*"))


def test_saved_model_is_the_one_that_was_tested(finished, tiny, cache):
    _, out, result = finished
    model = AutoModelForSequenceClassification.from_pretrained(out / "model").eval()
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    batch = collate(list(load_data(tiny, cache)["test"]))
    with torch.no_grad():
        answers = model(batch["input_ids"], batch["attention_mask"]).logits.argmax(-1)
    assert (answers == batch["labels"]).double().mean().item() == result["accuracy"]


def test_finished_run_is_not_run_again(finished, tiny, cache, monkeypatch):
    attention, out, result = finished
    monkeypatch.setattr(Trainer, "train", no_training)
    assert train(tiny, attention, 3, out, cache) == result


@pytest.mark.parametrize(
    ("owner", "method", "call"),
    [
        pytest.param("Trainer", "training_step", 7, id="in the second epoch"),
        pytest.param("TrainerState", "save_to_json", 2, id="while writing a checkpoint"),
        pytest.param("Trainer", "evaluate", 4, id="before the test"),
    ],
)
def test_killed_run_goes_on_as_if_nothing_had_happened(
    tiny, cache, tmp_path, monkeypatch, owner, method, call
):
    whole = train(tiny, "leap", 0, tmp_path / "whole", cache)
    out = tmp_path / "killed"
    process = subprocess.run(
        [sys.executable, "-c", KILL],
        input=pickle.dumps(((tiny, "leap", 0, out, cache), owner, method, call)),
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (out / RESULT).exists()
    assert last_checkpoint(out) is not None

    steps, real = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *x: steps.append(0) or real(*x))
    resumed = train(tiny, "leap", 0, out, cache)
    assert len(steps) < tiny.steps  # not from the start
    assert curve(resumed) == curve(whole)
    assert resumed["accuracy"] == whole["accuracy"]
    assert resumed["best_step"] == whole["best_step"]
    weights = [load_file(tmp_path / x / "model" / "model.safetensors") for x in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_another_seed_is_another_run(tiny, cache, tmp_path):
    first, again, other = (
        curve(train(tiny, "leap", seed, tmp_path / name, cache))
        for name, seed in (("first", 0), ("again", 0), ("other", 1))
    )
    assert first == again
    assert all(a["loss"] != b["loss"] for a, b in zip(first, other, strict=True) if "loss" in a)


def test_half_written_checkpoints_are_passed_over(tmp_path):
    assert last_checkpoint(tmp_path) is None
    state = json.dumps({"global_step": 0, "log_history": [{"step": 1}]})
    for step, text in {9: state, 10: state, 11: state[: len(state) // 2], 12: "", 13: None}.items():
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        if text is not None:
            text = text.replace(": 0", f": {step}")
            (folder / "trainer_state.json").write_text(text)
    assert last_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention": "linear"}, "attention"),
        ({"seed": 4}, "seed"),
        ({"recipe": {"learning_rate": 0.5}}, "learning_rate"),
        ({"source": "release"}, "source"),
    ],
    ids=["attention", "seed", "recipe", "source"],
)
def test_folder_of_another_run_is_refused(tiny, cache, tmp_path, monkeypatch, change, named):
    arguments = {"attention": "leap", "seed": 3, "recipe": tiny, "out": tmp_path / "run"}
    train(**arguments, cache=cache)
    before = (tmp_path / "run" / RESULT).read_bytes()
    if "recipe" in change:
        change = {"recipe": replace(tiny, **change["recipe"])}
    monkeypatch.setattr(Trainer, "train", no_training)
    with pytest.raises(ValueError, match=f"holds a run with another {named}: .*another --out"):
        train(**{**arguments, **change}, cache=cache)
    assert (tmp_path / "run" / RESULT).read_bytes() == before


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_unwritable_folder_is_found_before_any_work(tiny, tmp_path, place):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(OSError, match="choose another folder with --out"):
        train(tiny, "leap", 0, tmp_path / place, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_unknown_attention_is_refused_before_anything_is_written(tiny, tmp_path):
    with pytest.raises(ValueError, match=r"unknown attention 'leep' .did you mean leap"):
        train(tiny, "leep", 0, tmp_path / "run", tmp_path / "cache")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_loss_that_is_no_number_stops_the_run(attention, tiny, cache, tmp_path):
    out = tmp_path / "run"
    with pytest.raises(FloatingPointError, match="nan at step 3: lower --learning-rate"):
        train(replace(tiny, learning_rate=1e30), attention, 0, out, cache)
    assert not (out / RESULT).exists()
    assert not (out / "model").exists()


LONG = "( ( ( ( ( [MAX 2 ) 9 ) 1 ) 4 ) ] )\t9\n"


def test_sequence_longer_than_the_recipe_is_refused(tiny, tmp_path, released, monkeypatch):
    monkeypatch.setattr(Trainer, "train", no_training)
    short = replace(tiny, max_length=5)
    with pytest.raises(ValueError, match=r"has 6 tokens .* allows for 5: give --max-length 6"):
        train(short, "leap", 0, tmp_path / "run", tmp_path / "cache", released(LONG))


def test_the_cure_an_error_names_works_in_the_same_folder(tiny, tmp_path, released):
    short = replace(tiny, max_length=5, steps=1, evaluate_every=1)
    arguments = ("leap", 0, tmp_path / "run", tmp_path / "cache", released(LONG))
    with pytest.raises(ValueError, match="give --max-length 6"):
        train(short, *arguments)
    assert train(replace(short, max_length=6), *arguments)["curve"]


def test_released_files_are_trained_on(tiny, tmp_path, released):
    once = replace(tiny, steps=1, evaluate_every=1)
    result = train(once, "leap", 0, tmp_path / "run", tmp_path / "cache", released(LONG))
    assert result["majority"] == 1
    assert result["signature"]["source"] == str(tmp_path / "release")
