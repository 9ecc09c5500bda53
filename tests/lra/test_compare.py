"""A comparison: one record a run, one table, one picture, and nothing done twice."""

import json
import re
import shutil
from dataclasses import replace

import matplotlib.image
import numpy as np
import pytest
from transformers import Trainer

from leapformer.tasks.lra import compare as module
from leapformer.tasks.lra.compare import compare
from leapformer.tasks.lra.tasks import TASKS

NAMES, SEEDS = ["leap", "linear"], [0, 1]


@pytest.fixture(autouse=True, scope="module")
def short_arena():
    with pytest.MonkeyPatch.context() as patched:
        short = {name: replace(task, length=128) for name, task in TASKS.items()}
        patched.setattr(module, "TASKS", short)
        yield


@pytest.fixture(scope="module")
def compared(tiny, folder, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, compare([tiny], NAMES, SEEDS, out, folder, rounds=1)


@pytest.fixture
def copied(compared, tmp_path):
    """The comparison in a folder that the test may change."""
    shutil.copytree(compared[0], tmp_path / "copy")
    return tmp_path / "copy"


def key(record):
    return record["signature"]["attention"], record["signature"]["seed"]


def test_results_hold_one_signed_record_a_run_with_its_speed(compared, tiny):
    out, results = compared
    assert json.loads((out / "results.json").read_text()) == results
    assert sorted(map(key, results)) == [(name, seed) for name in NAMES for seed in SEEDS]
    for record in results:
        assert {"versions", "commit", "machine", "backend", "precision"} <= set(record["signature"])
        run = json.loads((out / "runs" / "{}-{}".format(*key(record)) / "result.json").read_text())
        assert {name: record[name] for name in run} == run
        assert [speed["length"] for speed in record["speed"]][1:] == [128]
        for speed in record["speed"]:
            assert (speed["attention"], speed["batch"]) == (key(record)[0], tiny.timing_batch)
            assert speed["train_peak_bytes"] > speed["infer_peak_bytes"] > 0
            for rate in (speed["train_rate"], speed["infer_rate"]):
                assert 0 < rate["low"] <= rate["median"] <= rate["high"]


def test_memory_grows_with_length(compared):
    for record in compared[1]:
        usual, arena = record["speed"]
        assert usual["length"] < arena["length"]
        assert usual["train_peak_bytes"] < arena["train_peak_bytes"]


def test_table_states_each_margin_over_the_majority(compared):
    out, results = compared
    text = (out / "table.md").read_text()
    rows = dict(re.findall(r"^\| (\w+) \| (.*) \|$", text, re.MULTILINE))
    assert [name for name in rows if name != "attention"] == NAMES
    for name in NAMES:
        runs = [run for run in results if key(run)[0] == name]
        mean = np.mean([100 * run["accuracy"] for run in runs])
        deviation = np.std([100 * run["accuracy"] for run in runs], ddof=1)
        margin = mean - 100 * runs[0]["majority"]
        cells = rows[name].split(" | ")
        assert cells[:2] == [f"{mean:.1f} % ± {deviation:.1f}", f"{margin:+.1f} points"]
    assert f"the most frequent class scores {100 * results[0]['majority']:.1f} %" in text


@pytest.mark.parametrize("name", [module.PICTURE, module.CURVES])
def test_picture_shows_something(compared, name):
    picture = matplotlib.image.imread(compared[0] / name)
    height, width, _ = picture.shape
    assert width > height > 300
    colours = np.unique(picture[..., :3].reshape(-1, 3), axis=0)
    assert len(colours) > 50
    assert picture[..., :3].std() > 0.02


def test_second_call_trains_and_times_nothing(compared, copied, tiny, folder, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    monkeypatch.setattr(module, "measure", lambda *_: pytest.fail("timed again"))
    assert compare([tiny], NAMES, SEEDS, copied, folder, rounds=1) == compared[1]


def test_an_attention_added_later_keeps_the_old_runs(compared, copied, tiny, folder, monkeypatch):
    began, real = [], Trainer.train

    def counted(self, *words, **named):
        began.append(self.args.output_dir)
        return real(self, *words, **named)

    monkeypatch.setattr(Trainer, "train", counted)
    results = compare([tiny], [*NAMES, "cosformer"], [0], copied, folder, rounds=1)
    assert began == [str(copied / "runs" / "cosformer-0")]
    timing = {"speed": None, "speed_signature": None}
    old = {key(run): run | timing for run in compared[1]}
    for record in results[:2]:
        assert record["speed_signature"]["attentions"] == [*NAMES, "cosformer"]
        assert record | timing == old[key(record)]
    # Rates are compared within one measurement only, so all were timed again.
    assert {speed["attention"] for run in results for speed in run["speed"]} == {
        *NAMES,
        "cosformer",
    }
    assert (copied / "runs" / "leap-1" / "result.json").is_file()


def test_another_recipe_in_the_same_folder_is_refused(copied, tiny, folder):
    with pytest.raises(ValueError, match="holds a run with another dropout"):
        compare([replace(tiny, dropout=0.5)], NAMES, SEEDS, copied, folder, rounds=1)


@pytest.mark.parametrize(
    ("names", "seeds", "fault"),
    [
        (["leap", "flash"], [0], "unknown attention 'flash'"),
        ([], [0], "at least one attention"),
        (["leap"], [], "at least one attention and one seed"),
    ],
)
def test_bad_lists_are_refused_before_anything_is_written(tiny, tmp_path, names, seeds, fault):
    with pytest.raises(ValueError, match=fault):
        compare([tiny], names, seeds, tmp_path / "out", tmp_path / "folder", rounds=1)
    assert not list(tmp_path.iterdir())


def test_what_is_given_twice_counts_once(compared, copied, tiny, folder):
    results = compare([tiny], [*NAMES, "leap"], [0, 1, 0], copied, folder, rounds=1)
    assert len(results) == len(compared[1])
