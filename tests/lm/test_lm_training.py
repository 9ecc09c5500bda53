"""A run leaves its result and its model, cuts its batch in any way, and survives kills."""

import json
import logging
import math
import pickle
import resource
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer

from leapformer.layers import MultiHeadAttention
from leapformer.tasks.lm import train as module
from leapformer.tasks.lm.data import Collator, Rows, encode, load
from leapformer.tasks.lm.evaluate import measure
from leapformer.tasks.lm.train import build_model, train
from leapformer.tasks.runs import RESULT, last_checkpoint
from leapformer.tasks.training import arguments

pytestmark = pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.*:FutureWarning")
ADAPTIVE = {"adaptive_cutoffs": (4, 9)}
WILD = {"learning_rate": 3.0, "warmup_steps": 7}
"""The faster the worse: the best model is that of step 3."""


def curve(result, *names):
    """What was measured at each step, without times."""
    names = names or ("loss", "grad_norm", "learning_rate", "eval_loss")
    return [
        {name: entry[name] for name in ("step", *names) if name in entry}
        for entry in result["curve"]
        if set(names) & set(entry)
    ]


def assert_close(one, other, rel):
    assert len(one) == len(other) > 0
    for a, b in zip(one, other, strict=True):
        assert a == pytest.approx(b, rel=rel)


def weights(out):
    return load_file(out / "model" / "model.safetensors")


def test_run_leaves_a_result_with_its_signature(finished, tiny, folder):
    out, result = finished
    assert json.loads((out / RESULT).read_text()) == json.loads(json.dumps(result))
    signed = result["signature"]
    assert (signed["attention"], signed["seed"], signed["precision"]) == ("leap", 3, "float32")
    assert signed["recipe"] == asdict(tiny)
    assert signed["data"] == json.loads((folder / "about.json").read_text())
    assert all(len(split["sha256"]) == 64 for split in signed["data"]["splits"].values())
    assert {"leapformer", "torch", "transformers"} <= set(signed["versions"])
    assert {"processor", "threads", "gpu"} <= set(signed["machine"])
    assert {"commit", "processes"} <= set(signed)
    assert result["trained_tokens"] == 7 * 8 * 16
    assert [e["step"] for e in curve(result, "eval_loss")] == [3, 6, 7]
    assert [e["step"] for e in curve(result, "loss")] == list(range(1, 8))
    assert {path.name for path in out.iterdir()} == {RESULT, "run.json", "model"}


def test_the_saved_model_and_tokenizer_are_those_that_were_tested(finished, tiny, folder):
    out, result = finished
    model = AutoModelForCausalLM.from_pretrained(out / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(out / "model")
    splits, trained, _ = load(folder)
    text = "the cat <eos> far\nhome"
    assert encode(tokenizer, text) == encode(trained, text)
    assert tokenizer.eos_token_id == model.config.eos_token_id == trained.eos_token_id
    assert measure(model, splits["test"], 16, tiny.context) == result["test"]
    assert result["test"]["tokens"] == len(splits["test"]) - 1
    assert sum(p.numel() for p in model.parameters()) == result["parameters"]
    assert model.lm_head.weight is model.get_input_embeddings().weight


def test_finished_run_is_not_run_again(finished, tiny, folder, monkeypatch):
    kept = json.loads((finished[0] / RESULT).read_text())
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("training began"))
    assert train(tiny, "leap", 3, finished[0], folder) == kept


@pytest.mark.parametrize("documents", ["joined", "apart"])
@pytest.mark.parametrize(("optimizer", "rate"), [("adamw", 0.03), ("nesterov", 0.3)])
def test_a_model_learns(tiny, folder, tmp_path, optimizer, rate, documents):
    longer = {"steps": 30, "evaluate_every": 30, "momentum": 0.9, "learning_rate": rate}
    chosen = replace(tiny, optimizer=optimizer, documents=documents, **longer)
    result = train(chosen, "leap", 0, tmp_path / "run", folder)
    (first, *_), ((last),) = curve(result, "loss"), curve(result, "eval_loss")
    assert first["loss"] == pytest.approx(math.log(270), abs=0.3)  # it knows nothing yet
    assert max(last["eval_loss"], result["test"]["loss"]) < first["loss"] - 1.5


@pytest.mark.parametrize("options", [{}, ADAPTIVE], ids=["dense", "adaptive"])
def test_the_best_model_is_kept_whole_and_tied(tiny, words, tmp_path, caplog, monkeypatch, options):
    monkeypatch.setattr(logging.getLogger("transformers"), "propagate", True)
    wild = replace(tiny, **WILD, **options)
    result = train(wild, "leap", 3, tmp_path, words)
    assert not [r for r in caplog.records if "missing" in r.getMessage()]
    losses = {e["step"]: e["eval_loss"] for e in curve(result, "eval_loss")}
    assert min(losses, key=losses.__getitem__) == result["best_step"] == 3
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "model").eval()
    assert all(name not in weights(tmp_path) for name in model._tied_weights_keys)
    for name, source in model._tied_weights_keys.items():
        assert model.get_parameter(name) is model.get_parameter(source)
    rows = Rows(load(words)[0]["validation"], 16)
    with torch.no_grad():
        batch = Collator(wild)([rows[i] for i in range(len(rows) // 8 * 8 or len(rows))])
        assert model(**batch).loss.item() == pytest.approx(losses[3], rel=1e-5)


def test_documents_apart_have_the_loss_of_each_alone(tiny, folder):
    splits, tokenizer, _ = load(folder)
    rows = [*Rows(splits["train"], 16)][:20]
    assert sum(len(row["starts"]) > 1 for row in rows) > 1
    model = build_model(replace(tiny, initializer_range=0.5), "leap", tokenizer).eval()
    alone = [
        model.token_losses(row["input_ids"][None, a:b])
        for row in rows
        for a, b in zip(row["starts"], [*row["starts"][1:], 16], strict=True)
    ]
    expected = torch.cat(alone, 1).mean()
    apart = model(**Collator(replace(tiny, documents="apart"))(rows)).loss
    joined = model(**Collator(tiny)(rows)).loss
    torch.testing.assert_close(apart, expected)
    assert abs(joined - expected) > 0.01


@pytest.mark.parametrize("options", [{}, {"documents": "apart", **ADAPTIVE}], ids=str)
def test_a_batch_may_be_added_up_from_parts(tiny, words, tmp_path, options):
    """Also where the parts predict different numbers of tokens. In linear attention, which is
    smooth: where rounding turns a relu off, a gradient jumps."""
    chosen = replace(tiny, **options)
    whole = train(chosen, "linear", 0, tmp_path / "whole", words)
    parts = train(replace(chosen, micro_batch=2), "linear", 0, tmp_path / "parts", words)
    names = ("loss", "grad_norm", "eval_loss")
    assert_close(*(curve(x, *(names if not options else names[:2])) for x in (whole, parts)), 1e-4)


def test_gradient_checkpointing_computes_twice_and_changes_nothing(
    tiny, folder, tmp_path, monkeypatch
):
    calls, real = [], MultiHeadAttention.forward

    def counted(self, *words, **named):
        calls[-1] += self.training
        return real(self, *words, **named)

    monkeypatch.setattr(MultiHeadAttention, "forward", counted)
    found = []
    for checkpointing in (False, True):
        calls.append(0)
        chosen = replace(tiny, gradient_checkpointing=checkpointing)
        found.append(train(chosen, "leap", 0, tmp_path / str(checkpointing), folder))
    assert calls == [7 * 2, 2 * 7 * 2]
    assert_close(*map(curve, found), 1e-5)


def test_bfloat16_computes_coarsely_what_float32_does(finished, tiny, folder, tmp_path):
    result = train(replace(tiny, precision="bfloat16"), "leap", 3, tmp_path / "run", folder)
    assert result["signature"]["precision"] == "bfloat16"
    assert curve(result, "loss") != curve(finished[1], "loss")
    assert_close(curve(result, "loss"), curve(finished[1], "loss"), 0.02)
    assert {x.dtype for x in weights(tmp_path / "run").values()} == {torch.float32}


KILL = """
import os, pickle, signal, sys
import torch
from transformers import Trainer, TrainerState
from leapformer.tasks.lm import train

torch.set_num_threads(1)  # as in the tests: rounding depends on it
arguments, owner, method, last = pickle.load(sys.stdin.buffer)
owner = {"Trainer": Trainer, "TrainerState": TrainerState, "train": train}[owner]
real, calls = getattr(owner, method), []

def counted(*words, **named):
    calls.append(method)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **named)

setattr(owner, method, counted)
train.train(*arguments)
"""


@pytest.mark.parametrize(
    ("owner", "method", "call", "options"),
    [
        pytest.param("Trainer", "training_step", 5, {"dropout": 0.1}, id="in the second epoch"),
        pytest.param("TrainerState", "save_to_json", 2, ADAPTIVE, id="writing a checkpoint"),
        pytest.param("train", "measure", 1, WILD, id="in the test"),
    ],
)
def test_killed_run_goes_on_as_if_nothing_had_happened(
    tiny, words, tmp_path, monkeypatch, owner, method, call, options
):
    chosen, (whole, killed) = replace(tiny, **options), (tmp_path / x for x in ("whole", "killed"))
    expected = train(chosen, "leap", 3, whole, words)
    process = subprocess.run(
        [sys.executable, "-c", KILL],
        input=pickle.dumps(((chosen, "leap", 3, killed, words), owner, method, call)),
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert not (killed / RESULT).exists()
    assert last_checkpoint(killed) is not None

    steps, real = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *x: steps.append(0) or real(*x))
    resumed = train(chosen, "leap", 3, killed, words)
    assert len(steps) == (0 if method == "measure" else 4)  # not from the start
    assert curve(resumed) == curve(expected)
    assert (resumed["test"], resumed["best_step"]) == (expected["test"], expected["best_step"])
    one, other = weights(whole), weights(killed)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def half(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


@pytest.mark.parametrize("damage", [half, lambda x: x.write_bytes(b""), lambda x: x.unlink()])
@pytest.mark.parametrize(
    "name", ["model.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.bin"]
)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(
    finished, tiny, folder, tmp_path, monkeypatch, name, damage
):
    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(module, "measure", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, "leap", 3, tmp_path, folder)
    before, last = sorted(tmp_path.glob("checkpoint-*"), key=lambda x: int(x.name[11:]))
    assert last_checkpoint(tmp_path) == last
    if name == "optimizer.bin":  # FSDP's
        (last / "optimizer.pt").rename(last / name)
    damage(last / name)
    assert last_checkpoint(tmp_path) == before
    again = train(tiny, "leap", 3, tmp_path, folder)
    assert (curve(again), again["test"]) == (curve(finished[1]), finished[1]["test"])


def test_going_on_with_another_number_of_processes_is_told(
    tiny, folder, tmp_path, monkeypatch, capsys
):
    def killed(*_):
        if last_checkpoint(tmp_path):
            raise KeyboardInterrupt
        return real(*_)

    real = Trainer.training_step
    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", killed)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, "leap", 3, tmp_path, folder)
    state = last_checkpoint(tmp_path) / "rng_state.pth"
    shutil.copy(state, state.with_name("rng_state_1.pth"))
    state.rename(state.with_name("rng_state_0.pth"))
    train(tiny, "leap", 3, tmp_path, folder)
    assert "is of 2 process(es), not 1: dropout is drawn anew" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("vocabulary", "cutoffs", "held"),
    [
        ("folder", (4, 9), r"more than 9 words .* holds 270 \(bpe\)"),
        ("words", (4, 60), "more than 60 words"),
    ],
)
def test_adaptive_cutoffs_want_words_beyond_them(
    tiny, vocabulary, cutoffs, held, request, tmp_path
):
    data = request.getfixturevalue(vocabulary)
    with pytest.raises(ValueError, match=f"{held}.*--vocabulary words --vocab-size None"):
        train(replace(tiny, adaptive_cutoffs=cutoffs), "leap", 0, tmp_path, data)


def test_a_process_has_one_gpu_of_those_it_sees(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda _: None)
    found = arguments(tiny, 0, tmp_path, 100)
    assert (found.n_gpu, found.train_batch_size) == (1, tiny.batch_size)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"attention": "linear"}, "attention"),
        ({"seed": 4}, "seed"),
        ({"recipe": {"learning_rate": 0.5, "context": 3}}, "learning_rate and context"),
        ({"folder": "words"}, "data"),
    ],
    ids=str,
)
def test_folder_of_another_run_is_refused(
    finished, tiny, folder, words, monkeypatch, change, named
):
    before = ((out := finished[0]) / RESULT).read_bytes()
    given = {"attention": "leap", "seed": 3, "recipe": tiny, "out": out, "folder": folder, **change}
    if "recipe" in change:
        given["recipe"] = replace(tiny, **change["recipe"])
    if "folder" in change:
        given["folder"] = words
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ValueError, match=f"holds a run with another {named}: .*another --out"):
        train(**given)
    assert (out / RESULT).read_bytes() == before


@pytest.mark.parametrize("every", [3, 1], ids=["training", "validation"])
def test_a_loss_that_is_no_number_stops_the_run(tiny, folder, tmp_path, every):
    lost = replace(tiny, learning_rate=1e30, evaluate_every=every, warmup_steps=every // 3)
    said = ("training loss is nan at step 3", "validation loss is nan at step 1")[every == 1]
    with pytest.raises(FloatingPointError, match=f"{said}: lower --learning-rate or raise"):
        train(lost, "leap", 0, tmp_path, folder)
    assert {path.name for path in tmp_path.iterdir()} <= {"run.json", "checkpoint-1"}


@pytest.mark.parametrize(
    ("attention", "options", "fault"),
    [
        ("leep", {}, "unknown attention 'leep' .did you mean leap"),
        ("bigbird", {}, "bigbird cannot hide the future.*choose from leap, .*softmax"),
        ("leap", {"num_attention_heads": 3}, "hidden_size 16 is no multiple of .*heads 3"),
        ("leap", {"micro_batch": 3}, "8 cannot be shared by 1 process.es. in parts of 3: change"),
        ("leap", {"batch_size": 900}, "batch of 900 is more than the .* rows .* --batch-size"),
        ("leap", {"sequence_length": 900}, "fewer than a row of 900: give a smaller --sequence-l"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny, folder, tmp_path, monkeypatch, attention, options, fault
):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("training began"))
    with pytest.raises(ValueError, match=fault):
        train(replace(tiny, **options), attention, 0, tmp_path, folder)


@pytest.mark.parametrize("size", [0, 2000, 25_000], ids=["result", "weights", "state"])
def test_a_full_disk_is_said_and_the_run_goes_on_when_there_is_room(
    finished, tiny, folder, tmp_path, monkeypatch, size
):
    def full(*arguments):  # no file grows beyond `size` bytes; Python ignores the signal
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
        return real(*arguments)

    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    real = module.make_trainer if size else module.measure
    with monkeypatch.context() as patched:
        patched.setattr(module, real.__name__, full)
        try:
            with pytest.raises(OSError, match=r"too large|is the disk full\?"):
                train(tiny, "leap", 3, tmp_path / "run", folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert not (tmp_path / "run" / RESULT).exists()
    again = train(tiny, "leap", 3, tmp_path / "run", folder)
    assert (curve(again), again["test"]) == (curve(finished[1]), finished[1]["test"])
