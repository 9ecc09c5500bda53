"""A comparison of language models: alike but for the attention, one record a run, nothing done
twice."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial

import matplotlib.image
import numpy as np
import pytest
from transformers import Trainer

from leapformer.cli import main
from leapformer.tasks.comparison import over_seeds
from leapformer.tasks.lm import compare as module
from leapformer.tasks.lm.compare import compare
from leapformer.tasks.lm.data import load
from leapformer.tasks.lm.evaluate import measure, shown_tokens
from leapformer.tasks.lm.generate import load_model, natural_tokens, text_tokens
from leapformer.timing import seconds
from leapformer.zoo import ATTENTIONS


def test_a_mean_over_seeds_has_a_deviation_where_all_are_finite():
    assert over_seeds([1.0, 3.0], 2) == "2.00 ± 1.41"
    assert over_seeds([1.0]) == "1.0"
    assert over_seeds([1.0, math.inf]) == "inf"


NAMES, SEEDS = ["leap", "softmax", "cosformer", "linear", "softmax+rotary"], [0, 1]


@pytest.fixture(autouse=True, scope="module")
def short_timing():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "seconds", partial(seconds, least=0.001))
        yield


@pytest.fixture(scope="module")
def brief(tiny):
    """Two steps, measured on two documents."""
    return replace(tiny, steps=2, evaluate_every=1, test_tokens=20, hidden_size=8)


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("texts") / "other.txt"
    path.write_text("a dog sat on the mat\nfar from home\n")
    return path


@pytest.fixture(scope="module")
def compared(brief, folder, text, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, compare(brief, NAMES, SEEDS, out, folder, [text], rounds=1)


@pytest.fixture(scope="module")
def shown(folder):
    splits, tokenizer, _ = load(folder)
    return shown_tokens(splits["train"], len(tokenizer))


@pytest.fixture
def copied(compared, tmp_path):
    """The comparison in a folder that the test may change."""
    return shutil.copytree(compared[0], tmp_path / "copy")


@pytest.fixture
def idle(monkeypatch):
    """No training and no measuring."""
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained"))
    monkeypatch.setattr(module, "load_model", lambda *_: pytest.fail("measured"))


def key(record):
    return record["name"], record["signature"]["seed"]


def without_speed(records):
    return [{k: v for k, v in record.items() if k != "speed"} for record in records]


def test_results_hold_one_signed_record_a_run(compared, brief):
    out, results = compared
    assert json.loads((out / "results.json").read_text()) == results
    assert [key(record) for record in results] == [(n, seed) for seed in SEEDS for n in NAMES]
    for record in results:
        assert {"versions", "commit", "machine", "precision", "data"} <= set(record["signature"])
        run = json.loads((out / "runs" / "{}-{}".format(*key(record)) / "result.json").read_text())
        assert {name: record[name] for name in run} == run
        name, _, positions = record["name"].partition("+")
        assert record["signature"]["attention"] == name
        assert record["signature"]["recipe"]["position_embedding"] == (positions or "none")
        speed = record["speed"]
        assert (speed["batch"], speed["length"]) == (brief.batch_size, brief.sequence_length)
        rate = speed["tokens_per_second"]
        assert 0 < rate["low"] <= rate["median"] <= rate["high"]
        assert speed["peak_bytes"] > 4 * record["parameters"]


def test_the_models_differ_in_the_attention_alone(compared):
    """In tokens read and seen in tests too, and all parameters but the attention's own."""
    out, results = compared
    for name in ("trained_tokens", "test"):
        told = [run[name] for run in results]
        told = [(t["tokens"], t["bytes"], t["words"]) if name == "test" else t for t in told]
        assert len(set(map(str, told))) == 1
    assert len({run["test"]["loss"] for run in results}) == len(results)
    shared = []
    for run in results:
        model, _ = load_model(out / "runs" / "{}-{}".format(*key(run)) / "model")
        named = dict(model.named_parameters())
        own = {name for name in named if ".attention.attention." in name}
        assert sum(named[name].numel() for name in named) == run["parameters"]
        assert bool(own) == (key(run)[0] == "leap")
        shared.append({name: named[name].shape for name in named if name not in own})
    assert all(each == shared[0] for each in shared)


def test_further_texts_and_lengths_are_those_of_the_saved_model(compared, brief, text, shown):
    out, results = compared
    for run in results:
        model, tokenizer = load_model(out / "runs" / "{}-{}".format(*key(run)) / "model")
        expected = measure(model, text_tokens(tokenizer, text), 16, brief.context, shown)
        assert run["also"] == {"other.txt": expected}
        assert expected["bytes"] == len(text.read_bytes())
        lengths = [record["length"] for record in run["by_length"]]
        assert lengths == [16, 32, 64, 128, 256, 512, 1024]
        read = [record["length"] for record in run["by_length"] if "loss" in record]
        assert read == ([16] if key(run)[0] == "cosformer" else [16, 32])  # of so short a text
        assert all(record["error"] for record in run["by_length"] if "loss" not in record)


def test_the_table_is_what_the_records_say(compared):
    out, results = compared
    said = (out / "table.md").read_text()
    rows = dict(re.findall(r"^\| ([\w+]+) \| (.*) \|$", said, re.MULTILINE))
    assert list(rows) == ["attention", *NAMES]
    assert rows["attention"].split(" | ")[3] == "bits a byte, other.txt"
    for name in NAMES:
        runs = [run for run in results if key(run)[0] == name]

        def over(value, digits, runs=runs):
            values = [value(run) for run in runs]
            return f"{np.mean(values):,.{digits}f} ± {np.std(values, ddof=1):.{digits}f}"

        assert rows[name].split(" | ") == [
            over(lambda run: run["test"]["perplexity"], 2),
            over(lambda run: run["test"]["word_perplexity"], 1),
            over(lambda run: run["test"]["bits_per_byte"], 3),
            over(lambda run: run["also"]["other.txt"]["bits_per_byte"], 3),
            over(lambda run: run["also"]["other.txt"]["shown"]["perplexity"], 2),
            f"{runs[0]['parameters']:,}",
            f"{runs[0]['speed']['tokens_per_second']['median']:,.0f}",
            f"{runs[0]['speed']['peak_bytes'] / 2**20:,.0f}",
        ]
    test = results[0]["test"]["tokens"]
    assert f"2 steps of 8 x 16 tokens, 2 seed(s); test: {test:,} tokens in windows of 16" in said


@pytest.mark.parametrize("name", ["curves.png", "lengths.png"])
def test_picture_shows_something(compared, name):
    picture = matplotlib.image.imread(compared[0] / name)
    height, width, _ = picture.shape
    assert width > height > 300
    colours = np.unique(picture[..., :3].reshape(-1, 3), axis=0)
    assert len(colours) > 50
    assert picture[..., :3].std() > 0.02


@pytest.mark.usefixtures("idle")
def test_second_call_trains_and_measures_nothing(compared, copied, brief, folder, text):
    again = compare(brief, NAMES, SEEDS, copied, folder, [text], rounds=1)
    assert without_speed(again) == without_speed(compared[1])


@pytest.mark.usefixtures("idle")
def test_what_is_given_twice_counts_once(compared, copied, brief, folder, text):
    results = compare(brief, [*NAMES, "leap"], [0, 1, 0], copied, folder, [text, text], rounds=1)
    assert len(results) == len(compared[1])


def test_an_attention_added_later_keeps_the_old_runs(
    compared, copied, brief, folder, text, monkeypatch
):
    began, real = [], Trainer.train

    def counted(self, *words, **named):
        began.append(self.args.output_dir)
        return real(self, *words, **named)

    monkeypatch.setattr(Trainer, "train", counted)
    results = compare(brief, ["leap", "performer"], [0], copied, folder, [text], rounds=1)
    assert began == [str(copied / "runs" / "performer-0")]
    assert without_speed(results[:1]) == without_speed(compared[1][:1])
    assert key(results[1]) == ("performer", 0)
    assert (copied / "runs" / "softmax-1" / "result.json").is_file()


def test_a_text_that_changed_is_measured_anew(
    compared, copied, brief, folder, text, tmp_path, shown
):
    """Though it has the name of the old one; the runs are kept."""
    other = tmp_path / text.name
    other.write_text("home\n")
    (found, *_) = compare(brief, ["leap"], [0], copied, folder, [other], rounds=1)
    model, tokenizer = load_model(copied / "runs" / "leap-0" / "model")
    expected = measure(model, text_tokens(tokenizer, other), 16, brief.context, shown)
    assert found["also"] == {text.name: expected} != compared[1][0]["also"]
    assert found["test"] == compared[1][0]["test"]


def test_a_text_may_be_measured_as_published_and_as_natural_text(
    compared, copied, brief, folder, text, tmp_path, shown
):
    published = tmp_path / text.name
    published.write_text(" the cat <unk> , far @-@ away\n")
    both = {"also": [published], "also_natural": [published]}
    (found,) = compare(brief, ["leap"], [0], copied, folder, rounds=1, **both)
    model, tokenizer = load_model(copied / "runs" / "leap-0" / "model")
    natural = natural_tokens(tokenizer, published)
    assert found["also"] == {
        "other.txt": measure(model, text_tokens(tokenizer, published), 16, brief.context, shown),
        "other.txt, natural": measure(model, natural, 16, brief.context, shown),
    }
    assert "bits a byte, other.txt, natural" in (copied / "table.md").read_text()


def test_a_run_made_anew_is_measured_anew(compared, copied, brief, folder, text):
    (copied / "runs" / "leap-0" / "result.json").unlink()
    longer = replace(brief, steps=3, context=3)
    (found,) = compare(longer, ["leap"], [0], copied, folder, [text], rounds=1)
    assert found["also"]["other.txt"]["context"] == 3
    assert found["by_length"] != compared[1][0]["by_length"]


def test_a_text_too_short_for_the_first_length_still_has_its_pictures(tiny, folder, tmp_path):
    longer = replace(tiny, steps=1, sequence_length=64, batch_size=2, test_tokens=3)
    (run,) = compare(longer, ["leap"], [0], tmp_path, folder, [], rounds=1)
    assert all("shorter than" in record["error"] for record in run["by_length"])
    assert (tmp_path / "lengths.png").stat().st_size > 1000


def test_another_recipe_in_the_same_folder_is_refused(copied, brief, folder, text):
    with pytest.raises(ValueError, match="holds a run with another dropout"):
        compare(replace(brief, dropout=0.5), NAMES, SEEDS, copied, folder, [text], rounds=1)


CAUSAL = [name for name, kind in ATTENTIONS.items() if kind.traits.causal]


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"attentions": ["leap", "flash"]}, "unknown attention 'flash'"),
        ({"attentions": ["leap", "bigbird"]}, "cannot hide .* from " + ", ".join(CAUSAL) + "$"),
        ({"attentions": ["leap+rotary"]}, "rotary positions turn dot products"),
        ({"attentions": ["leap+round"]}, "unknown positions 'round'"),
        ({"attentions": []}, "at least one attention"),
        ({"seeds": []}, "at least one attention and one seed"),
        ({"seeds": [0, -1]}, "seed -1 is negative"),
        ({"rounds": 0}, "one round of timing"),
        ({"also": ["empty.txt"]}, "empty.txt: no text in it"),
        ({"also": ["other.txt", "more/other.txt"]}, "two further texts have the same name"),
    ],
    ids=str,
)
def test_mistakes_are_found_before_any_work(brief, folder, text, tmp_path, change, fault):
    (tmp_path / "more").mkdir()
    for name in ("empty.txt", "other.txt", "more/other.txt"):
        (tmp_path / name).write_text(name.removesuffix("empty.txt"))
    given = {"attentions": ["leap"], "seeds": [0], "also": [], "rounds": 1} | change
    given["also"] = [tmp_path / name for name in given["also"]]
    with pytest.raises(ValueError, match=fault):
        compare(brief, out=tmp_path / "out", folder=folder, **given)
    assert not (tmp_path / "out").exists()


def test_the_command_compares_and_shows_the_table(compared, copied, brief, folder, text, capsys):
    line = (
        f"lm compare --out {copied} --data {folder} --attentions linear,leap --seeds 1 --rounds 1"
    )
    line += f" --also {text} --steps 2 --evaluate-every 1 --test-tokens 20 --hidden-size 8"
    for name in ("sequence_length", "num_attention_heads", "intermediate_size", "batch_size"):
        line += f" --{name.replace('_', '-')} {getattr(brief, name)}"
    line += " --learning-rate 0.01 --warmup-steps 1 --validation-rows None --context 8"
    assert main(line.split()) == 0
    said = capsys.readouterr().out
    assert said.endswith((copied / "table.md").read_text() + "\n")
    assert "1 of 2: linear, seed 1\n" in said
    assert said.count("the run is finished") == 2
