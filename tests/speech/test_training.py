"""Training on utterances: batches hold what they should and draw what can be drawn again, a run
learns, goes on after a kill as if nothing had happened, and is tested as its stream would write."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import Trainer

from leapformer.cli import main
from leapformer.tasks.runs import RESULT
from leapformer.tasks.speech.audio import read_audio
from leapformer.tasks.speech.batches import ByLength, Collator, hidden
from leapformer.tasks.speech.recipes import RECIPES, recipe
from leapformer.tasks.speech.session import translate
from leapformer.tasks.speech.train import RECOGNITION, train
from leapformer.tasks.speech.translator import Translator


@given(
    lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200),
    batch=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_every_utterance_comes_once_an_epoch(lengths, batch, seed):
    sampler = ByLength(np.array(lengths), batch, seed)
    first = list(sampler)
    assert sorted(first) == list(range(len(lengths)))
    assert list(sampler) == first
    sampler.set_epoch(1)
    second = list(sampler)
    assert sorted(second) == list(range(len(lengths)))
    if len(set(lengths)) > 40 and batch < 4:
        assert second != first


def test_utterances_of_a_batch_are_of_like_length():
    lengths = np.random.default_rng(0).integers(1, 1000, 4000)
    sampler = ByLength(lengths, 8, 0)
    batches = lengths[list(sampler)].reshape(-1, 8)
    assert np.ptp(batches, 1).mean() < 50
    means = batches.mean(1)
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2  # in no order


def test_a_batch_is_its_utterances(data, tiny):
    items = [data.splits["train"][i] for i in (0, 2, 4)]
    batch = Collator(data, tiny)(items)
    lengths = [len(item["input_features"]) for item in items]
    assert batch["input_features"].shape == (3, max(lengths), 80)
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert batch["wait_k"] == tiny.validation_wait
    tokenizer = data.processor.tokenizer
    for i, item in enumerate(items):
        sound = batch["input_features"][i, : lengths[i]]
        np.testing.assert_array_equal(sound.numpy(), item["input_features"])
        assert not batch["input_features"][i, lengths[i] :].any()
        ids = [x for x in batch["labels"][i].tolist() if x != -100]
        assert ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(ids, skip_special_tokens=True) == item["translation"]
        said = [x for x in batch["ctc_labels"][i].tolist() if x != -100]
        assert data.transcript_tokenizer.decode(said) == item["transcript"]
        assert min(said) > 3


def test_a_recogniser_is_given_transcripts(data, tiny):
    items = [data.splits["train"][i] for i in (0, 2)]
    batch = Collator(data, tiny, recognise=True)(items)
    assert batch.keys() == {"input_features", "attention_mask", "labels"}
    ids = [[x for x in row if x != -100] for row in batch["labels"].tolist()]
    texts = [data.transcript_tokenizer.decode(row, skip_special_tokens=True) for row in ids]
    assert texts == [item["transcript"] for item in items]


def test_what_is_drawn_follows_from_the_utterances(data, tiny):
    items = [data.splits["train"][i] for i in range(48)]
    order, drawn = ByLength(data.splits["train"].frames, 4, 0), []
    for _ in range(2):
        collate = Collator(data, tiny, 3, order)
        drawn.append([collate(items[i : i + 4]) for i in range(0, 48, 4)])
    for a, b in zip(*drawn, strict=True):
        assert torch.equal(a["input_features"], b["input_features"])
        assert a["wait_k"] == b["wait_k"]
    assert {batch["wait_k"] for batch in drawn[0]} == {1, 2, None}
    again = Collator(data, tiny, 4, order)(items[:4])["input_features"]
    assert not torch.equal(again, drawn[0][0]["input_features"])
    order.set_epoch(1)
    later = [Collator(data, tiny, 3, order)(items[i : i + 4]) for i in range(0, 48, 4)]
    for name in ("input_features", "wait_k"):
        assert any(str(a[name]) != str(b[name]) for a, b in zip(later, drawn[0], strict=True))


@pytest.mark.parametrize("batches", [1, 3, 8, 40, 300])
def test_utterances_of_a_small_corpus_meet_others_in_each_epoch(batches):
    lengths = np.random.default_rng(0).integers(100, 800, 8 * batches)
    sampler, met = ByLength(lengths, 8, 0), []
    for epoch in range(2):
        sampler.set_epoch(epoch)
        met.append({frozenset(x) for x in np.array(list(sampler)).reshape(-1, 8).tolist()})
    assert len(met[0] & met[1]) <= (batches == 1)


@given(frames=st.integers(1, 60), seed=st.integers(0, 999))
def test_what_is_hidden_is_bands_and_spans(frames, seed, tiny):
    chosen = replace(tiny, frequency_masks=1, frequency_width=9, time_masks=1, time_width=7)
    whole = torch.ones(frames, 80)
    found = hidden(whole, chosen, np.random.default_rng(seed))
    assert whole.all()
    bins, times = (found == 0).all(0), (found == 0).all(1)
    assert int(bins.sum()) <= 9
    assert int(times.sum()) <= min(7, frames // 5)
    assert torch.equal(found == 0, bins[None] | times[:, None])
    for gone in (bins, times):
        places = gone.nonzero().flatten()
        assert not len(places) or int(places[-1] - places[0]) + 1 == len(places)


def test_a_translator_learns(learned):
    _, run = learned
    losses = [entry["loss"] for entry in run["curve"] if "loss" in entry]
    assert losses[-1] < 0.2 * losses[0]
    assert [record["wait"] for record in run["test"]] == [1, 2, 0]
    assert run["test"][-1]["exact"] > 0.4  # of 39 things to say
    assert run["parameters"] > 0


def test_the_test_is_what_streams_write(learned, data):
    out, run = learned
    split = data.splits["test"]
    for record in run["test"]:
        session = Translator.load(out / "model", record["wait"] or None).session()
        right = 0
        for i in range(len(split)):
            session.reset()
            text = "".join(part for _, part in translate(session, split[i]["audio"], 0.037))
            right += text == split[i]["translation"]
        assert right / len(split) == record["exact"]


def test_the_command_prints_the_translation_as_it_comes(learned, data, capsys):
    out, _ = learned
    audio = str(data.splits["test"][2]["audio"])
    line = ["speech", "translate", "--model", str(out / "model"), "--audio", audio]
    session = Translator.load(out / "model", 1).session()
    wanted = session.push(read_audio(data.splits["test"][2]["audio"])) + session.finish()
    assert main([*line, "--wait", "1"]) == 0
    assert capsys.readouterr().out == wanted + "\n"
    assert main([*line, "--wait", "1", "--times"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert "".join(part.split(" s ", 1)[1] for part in said if " s " in part) == wanted


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(
    folder, tmp_path, monkeypatch, tiny
):
    whole = train(tiny, 5, tmp_path / "whole", folder)
    save = Trainer._save_checkpoint

    def stopped(self, *words, **named):
        save(self, *words, **named)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "_save_checkpoint", stopped)
        with pytest.raises(KeyboardInterrupt):
            train(tiny, 5, tmp_path / "parts", folder)
    resumed = train(tiny, 5, tmp_path / "parts", folder)
    kept = [
        [{k: e[k] for k in ("step", "loss", "eval_loss") if k in e} for e in run["curve"]]
        for run in (whole, resumed)
    ]
    assert kept[0] == kept[1]
    assert whole["test"] == resumed["test"]


def test_recognition_comes_first_and_gives_its_encoder(folder, tmp_path, tiny):
    chosen = replace(tiny, recognition_steps=2, steps=1, evaluate_every=1, learning_rate=1e-9)
    train(chosen, 0, tmp_path, folder)
    first = Translator.load(tmp_path / "model", None).model
    source = type(first).from_pretrained(tmp_path / RECOGNITION / "model")
    for a, b in zip(first.encoder.parameters(), source.encoder.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-6, rtol=1e-4)
    assert "test" not in json.loads((tmp_path / RECOGNITION / RESULT).read_text())


@pytest.mark.parametrize("cross", ["softmax", "cosformer", "linear"])
def test_other_cross_attention_trains_too(folder, tmp_path, cross, tiny):
    chosen = replace(tiny, steps=1, evaluate_every=1, cross_attention=cross, learned_progress=False)
    run = train(chosen, 0, tmp_path, folder)
    assert run["signature"]["recipe"]["cross_attention"] == cross


def truncate(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "cure"),
    [
        (shutil.rmtree, "holds no model"),
        (truncate, "cannot read the model"),
        (lambda x: (x / "tokenizer.json").unlink(), "tokenizer.json is missing"),
        (lambda x: (x / "processor_config.json").unlink(), "cannot read the model"),
    ],
)
def test_a_damaged_model_is_one_line(learned, tmp_path, capsys, damage, cure):
    shutil.copytree(learned[0] / "model", tmp_path / "model")
    damage(tmp_path / "model")
    line = ["speech", "translate", "--model", str(tmp_path / "model"), "--audio", "x.wav"]
    assert main(line) == 2
    assert cure in capsys.readouterr().err


def test_recipes_are_whole(tiny):
    for name in RECIPES:
        assert recipe(name).preset == name
    with pytest.raises(ValueError, match="unknown preset"):
        recipe("digit")
    with pytest.raises(ValueError, match="waits is empty"):
        replace(tiny, waits=())
    with pytest.raises(ValueError, match="waits is -1"):
        replace(tiny, waits=(-1,))
