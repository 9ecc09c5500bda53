"""The command line: one line a mistake, before work is lost; recipes overridden by name."""

import json
import re
from dataclasses import fields, replace

import pytest
from transformers import Trainer

from leapformer.bench.attention import Bench
from leapformer.cli import COMMANDS, main
from leapformer.tasks.lra import compare as comparison
from leapformer.tasks.lra import listops
from leapformer.tasks.lra import train as training
from leapformer.tasks.lra.recipes import RECIPES, recipe
from leapformer.tasks.lra.tasks import TASKS
from leapformer.zoo import ATTENTIONS

TRAIN = "lra train --out {folder}/run --data {folder}/data"
COMPARE = "lra compare --out {folder}/run --data {folder}/data"
PREPARE = "lra prepare --source {folder}/release --out {folder}/made"
BENCH = "bench attention --lengths 128 --rounds 1"


@pytest.fixture
def folder(tmp_path):
    """A folder with a file in it, and a release whose second line is malformed."""
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "release").mkdir()
    for split in ("train", "val", "test"):
        text = "Source\tTarget\n( ( ( [MAX 2 ) 9 ) ] )\t7\n"
        (tmp_path / "release" / f"basic_{split}.tsv").write_text(text)
    return tmp_path


@pytest.fixture
def idle(monkeypatch):
    """Any work fails the test."""
    for owner, name in (
        (listops, "sample"),
        (Trainer, "train"),
        (Bench, "at_length"),
        (Bench, "decode"),
    ):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("work began"))


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("line", "cure"),
    [
        ("lra fly", "unknown command 'lra fly'.*lra train"),
        (TRAIN + " --task pathfnder", "unknown task 'pathfnder' .did you mean pathfinder"),
        (TRAIN + " --task all", "unknown task 'all'.*choose from listops, text"),
        (COMPARE + " --task all", "no data for text in .*: leapformer lra prepare --task text"),
        (COMPARE + " --seeds -1", "seed -1 is negative"),
        (PREPARE + " --task lisops", "unknown task 'lisops' .did you mean listops"),
        (TRAIN + " --preset quik", "unknown preset 'quik' .did you mean quick.*paper"),
        (TRAIN + " --attention leep", "unknown attention 'leep' .did you mean leap"),
        (COMPARE + " --attentions leap,leep", "unknown attention 'leep' .did you mean leap"),
        (COMPARE + " --attentions ,", "give at least one attention"),
        (COMPARE + " --rounds 0", "one round of timing"),
        (COMPARE + " --num-attention-heads 3", "hidden_size 64 is no multiple of .*heads 3"),
        (COMPARE + " --seeds 0,one", "--seeds 0,one: give whole numbers, such as 0,1,2"),
        (COMPARE + " --seeds 0.5", "--seeds 0.5: give whole numbers"),
        ("lra train --out {folder}/file", "cannot write to .*file .*choose another .*--out"),
        ("lra compare --out {folder}/file/x", "cannot write to .*x .*choose another .*--out"),
        (BENCH + " --out {folder}/file/x.json", "cannot write to .*choose another .*--out"),
        (BENCH + " --out {folder}/x.json --backend cudnn", "unknown backend 'cudnn': choose"),
        (PREPARE + " --task listops", r"basic_train\.tsv:2: .*the tree's value, 9"),
        (
            "lra prepare --task listops --source {folder}/nowhere --out {folder}/made",
            "nowhere.*expected a folder with basic_train",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_cure(folder, capsys, line, cure):
    assert main(line.format(folder=folder).split()) == 2
    output = capsys.readouterr()
    last = output.err.split("\r")[-1]  # what stands when the progress bar is gone
    assert re.fullmatch(f"leapformer: .*{cure}.*\n", last)
    assert output.out == ""


@pytest.mark.usefixtures("idle")
def test_bench_refuses_a_folder_for_its_file_before_it_measures(folder, capsys):
    assert main([*BENCH.split(), "--out", str(folder / "release")]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]], ids=["nothing", "--help", "-h"])
def test_usage_lists_every_command(capsys, words):
    assert main(words) == 0
    said = capsys.readouterr().out
    assert all(f"leapformer {name}" in said for name in COMMANDS)


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_helps(capsys, name):
    with pytest.raises(SystemExit) as left:
        main([*name.split(), "--help"])
    assert left.value.code == 0
    said = capsys.readouterr().out
    options = {field.name for field in fields(COMMANDS[name])} - {"recipe"}  # shown as its own
    assert all(f"--{option.replace('_', '-')}" in said for option in options)


def test_debug_shows_the_traceback(folder):
    with pytest.raises(ValueError, match="unknown attention"):
        main(["--debug", *TRAIN.format(folder=folder).split(), "--attention", "leep"])


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_options_override_the_recipe_by_name(folder, monkeypatch, preset):
    given = []

    def recorded(*arguments):
        given.append(arguments)
        return {"accuracy": 0.0, "majority": 0.0}

    monkeypatch.setattr(training, "train", recorded)
    line = TRAIN + f" --preset {preset} --steps 2 --trees.max-depth 3 --seed 5 --attention linear"
    assert main(line.format(folder=folder).split()) == 0
    start = recipe("listops", preset)
    wanted = replace(start, steps=2, trees=replace(start.trees, max_depth=3))
    assert given == [(wanted, "linear", 5, folder / "run", folder / "data")]


@pytest.mark.parametrize("preset", ["quick", "paper"])
def test_all_tasks_are_compared_with_the_same_overrides(folder, monkeypatch, preset):
    given = []

    def recorded(*arguments):
        given.append(arguments)
        (folder / "run").mkdir()
        (folder / "run" / "table.md").write_text("")

    monkeypatch.setattr(comparison, "compare", recorded)
    line = (
        f" --task all --preset {preset} --steps 2 --budget.features 4 --attentions all --seeds 0,3"
    )
    assert main((COMPARE + line).format(folder=folder).split()) == 0
    recipes = []
    for task in RECIPES:
        start = recipe(task, preset)
        recipes.append(replace(start, steps=2, budget=replace(start.budget, features=4)))
    assert list(RECIPES) == list(TASKS)
    assert given == [(recipes, list(ATTENTIONS), [0, 3], folder / "run", folder / "data", 5)]


def test_train_prints_the_accuracy_beside_the_majority(folder, capsys):
    line = (
        TRAIN + " --steps 2 --evaluate-every 2 --batch-size 4 --hidden-size 8 --train-examples 8"
        " --validation-examples 4 --test-examples 4 --intermediate-size 8 --trees.max-depth 3"
    )
    assert main(line.format(folder=folder).split()) == 0
    result = json.loads((folder / "run" / "result.json").read_text())
    assert result["signature"]["recipe"]["trees"]["max_depth"] == 3
    assert (
        f"leap: test accuracy {100 * result['accuracy']:.1f} %, "
        f"most frequent class {100 * result['majority']:.1f} %"
    ) in capsys.readouterr().out
