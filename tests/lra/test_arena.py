"""The whole arena: its recipes, its data on disk, and five tasks compared at once, through kills,
runs that diverge and full disks."""

import json
import pickle
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import partial
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
import torch
from numpy.random import Generator
from PIL import Image
from transformers import Trainer

from leapformer import cli
from leapformer.tasks.lra import compare as module
from leapformer.tasks.lra import image, listops, pathfinder, speed, tables, text
from leapformer.tasks.lra import train as training
from leapformer.tasks.lra.compare import PICTURE, compare
from leapformer.tasks.lra.data import load, prepare
from leapformer.tasks.lra.recipes import RECIPES, Budget, Recipe, recipe
from leapformer.tasks.lra.tasks import TASKS
from leapformer.tasks.lra.train import build_model, train
from leapformer.tasks.runs import RESULT
from leapformer.zoo import ATTENTIONS

NAMES, SEEDS = ["leap", "softmax", "linear"], [0, 1]
PREPARED = ["text", "retrieval", "image"]
LENGTHS = {"listops": 40, "text": 48, "retrieval": 36, "image": 72, "pathfinder": 80}
OUTPUTS = {"results.json", "table.md", PICTURE, module.CURVES, "runs", "speed.json"}
RATIOS: dict[str, Callable[[dict], float]] = {
    "train_rate": lambda measured: measured["train_rate"]["median"],
    "infer_rate": lambda measured: measured["infer_rate"]["median"],
    "train_memory": lambda measured: measured["train_peak_bytes"],
}


def small(task: str) -> Recipe:
    """Two steps of a tiny model on the data of `sources`."""
    own = {
        "listops": {"trees": listops.TreeShape(4, 30, 3, 4), "train_examples": 16},
        "text": {},
        "retrieval": {},
        "image": {"shrink": 4},
        "pathfinder": {"shrink": 2, "train_examples": 16},
    }
    return replace(
        recipe(task, "quick"),
        hidden_size=8,
        intermediate_size=8,
        max_length=64 if TASKS[task].side else 30,
        validation_examples=8,
        test_examples=10,
        batch_size=8,
        learning_rate=0.1,
        warmup_steps=1,
        steps=2,
        evaluate_every=1,
        timing_batch=1,
        **own[task],
    )


def words(random: Generator) -> str:
    return bytes(random.integers(97, 123, random.integers(5, 40), np.uint8)).decode()


def write_lines(file: Path, rows: list[str]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(f"{row}\n" for row in rows))


def write_picture(file: Path, random: Generator) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(random.integers(0, 256, (32, 32), np.uint8)).save(file)


def trees(folder: Path, random: Generator) -> dict[str, int]:
    for name, count in (("train", 9), ("val", 2), ("test", 3)):
        pairs = random.integers(0, 10, (count, 2)).tolist()
        rows = [f"( ( ( [MAX {a} ) {b} ) ] )\t{max(a, b)}" for a, b in pairs]
        write_lines(folder / f"basic_{name}.tsv", ["Source\tTarget", *rows])
    return {"train": 9, "validation": 2, "test": 3}


def json_lines(keys: list[str], folder: Path, random: Generator) -> dict[str, int]:
    for name, count in (("train", 30), ("test", 12)):
        rows = [{"label": i % 2, **{key: words(random) for key in keys}} for i in range(count)]
        write_lines(folder / f"{name}.jsonl", [json.dumps(row) for row in rows])
    return {"train": 30, "test": 12}


def reviews(folder: Path, random: Generator) -> dict[str, int]:
    for leaf in ("train/neg", "train/pos", "test/neg", "test/pos"):
        for i in range(text.PER_CLASS):
            write_lines(folder / "aclImdb" / leaf / f"{i}_1.txt", [words(random)])
    return dict.fromkeys(("train", "test"), 2 * text.PER_CLASS)


def pairs(folder: Path, random: Generator) -> dict[str, int]:
    for name, count in (("train", 4), ("eval", 2), ("test", 3)):
        rows = [f"{i % 2}.0\tA\tB\t{words(random)}\t{words(random)}" for i in range(count)]
        write_lines(folder / f"new_aan_pairs.{name}.tsv", rows)
    return {"train": 4, "validation": 2, "test": 3}


def links(folder: Path, random: Generator) -> dict[str, int]:
    rows = [json.dumps({"id": str(i), "text": words(random)}) for i in range(200)]
    write_lines(folder / "docs.jsonl", rows)
    write_lines(folder / "citations.tsv", [f"{i}\t{(i + 7) % 200}" for i in range(200)])
    return {"train": 320, "validation": 40, "test": 40}


def batches(suffix: str, folder: Path, random: Generator) -> dict[str, int]:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        pixels = random.integers(0, 256, (image.BATCH, 3072), np.uint8)
        labels = np.arange(image.BATCH, dtype=np.uint8)
        records = np.column_stack([labels, pixels]).tobytes()
        pickled = pickle.dumps({b"data": pixels, b"labels": labels.tolist()}, 2)
        (folder / (name + suffix)).write_bytes(records if suffix else pickled)
    return {"train": 5 * image.BATCH, "test": image.BATCH}


def class_folders(folder: Path, random: Generator) -> dict[str, int]:
    for split, count in (("train", 3), ("test", 2)):
        for i in range(10 * count):
            write_picture(folder / split / f"class {i % 10}" / f"{i}.png", random)
    return {"train": 30, "test": 20}


def curves(folder: Path, random: Generator) -> dict[str, int]:
    folder = folder / pathfinder.HARD
    for i in range(20):
        write_picture(folder / "imgs" / "0" / f"sample_{i}.png", random)
    rows = [f"imgs/0 sample_{i}.png {i} {i % 2}" for i in range(20)]
    write_lines(folder / "metadata" / "0.npy", rows)
    return {"train": 16, "validation": 2, "test": 2}


LAYOUTS = [
    ("listops", "basic_*.tsv", trees),
    ("text", "JSON lines", partial(json_lines, ["text"])),
    ("text", "aclImdb", reviews),
    ("retrieval", "JSON lines", partial(json_lines, ["text1", "text2"])),
    ("retrieval", "documents with links", links),
    ("retrieval", "Long-Range Arena's release", pairs),
    ("image", "folders of pictures", class_folders),
    ("image", "cifar-10-batches-py", partial(batches, "")),
    ("image", "cifar-10-batches-bin", partial(batches, ".bin")),
    ("pathfinder", "pathfinder32", curves),
]
CUT = {"basic_*.tsv", "Long-Range Arena's release", "pathfinder32"}
"""Layouts of a release of which there is only a part here."""


@pytest.fixture(autouse=True, scope="module")
def short_arena() -> Iterator[None]:
    """Short sequences, short timings, and small data sets as if they were whole."""
    with pytest.MonkeyPatch.context() as patched:
        short = {name: replace(task, length=LENGTHS[name]) for name, task in TASKS.items()}
        patched.setattr(module, "TASKS", short)
        patched.setattr(speed, "seconds", partial(speed.seconds, least=0.001))
        patched.setattr(text, "PER_CLASS", 3)
        patched.setattr(image, "BATCH", 10)
        yield


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a user has of each task that is prepared: the first layout of each."""
    folder, random = tmp_path_factory.mktemp("sources"), np.random.default_rng(0)
    for task, _, write in reversed(LAYOUTS):
        shutil.rmtree(folder / task, ignore_errors=True)
        (folder / task).mkdir()
        write(folder / task, random)
    return folder


@pytest.fixture(scope="module")
def made(sources: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where data are kept, prepared."""
    folder = tmp_path_factory.mktemp("made")
    for task in PREPARED:
        prepare(task, sources / task, folder / task)
    return folder


@pytest.fixture(scope="module")
def compared(made: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict]]:
    out = tmp_path_factory.mktemp("compared")
    return out, compare([small(task) for task in TASKS], NAMES, SEEDS, out, made, rounds=1)


@pytest.fixture
def copied(compared: tuple[Path, list[dict]], tmp_path: Path) -> Path:
    """The comparison in a folder that the test may change."""
    return Path(shutil.copytree(compared[0], tmp_path / "copy"))


def read(file: Path):
    return json.loads(file.read_text())


def rows_of(file: Path) -> dict[str, list[str]]:
    """The cells of a table by the first of each row, its head and its rule left out."""
    lines = [line[2:-2].split(" | ") for line in file.read_text().splitlines() if line[:1] == "|"]
    return {first: cells for first, *cells in lines[2:]}


def spread(values) -> str:
    several = f" ± {np.std(values, ddof=1):.1f}" if len(values) > 1 else ""
    return f"{np.mean(values):.1f}{several}"


def visible(folder: Path) -> list[str]:
    """What could be taken for data or results; hidden ones are never looked at."""
    return [path.name for path in folder.glob("*") if not path.name.startswith(".")]


def test_each_task_has_its_folder_and_the_arena_a_summary(compared):
    out, results = compared
    assert {path.name for path in out.iterdir()} == {*TASKS, "summary.json", "table.md", PICTURE}
    assert results == [run for task in TASKS for run in read(out / task / "results.json")]
    for task in TASKS:
        assert {path.name for path in (out / task).iterdir()} == OUTPUTS
        mine = [run["signature"] for run in read(out / task / "results.json")]
        assert {run["task"] for run in mine} == {task}
        assert [(run["attention"], run["seed"]) for run in mine] == [
            (name, seed) for seed in SEEDS for name in NAMES
        ]
    for picture in out.rglob(PICTURE):
        assert matplotlib.image.imread(picture)[..., :3].std() > 0.02


def test_the_summary_is_what_the_records_say(compared):
    out, _ = compared
    summary = read(out / "summary.json")
    runs = {
        (task, run["signature"]["attention"], run["signature"]["seed"]): run
        for task in TASKS
        for run in read(out / task / "results.json")
    }

    def measured(task: str, name: str, value: Callable[[dict], float]) -> float:
        (found,) = (s for s in runs[task, name, 0]["speed"] if s["length"] == LENGTHS[task])
        return value(found)

    assert len({run["accuracy"] for run in runs.values()}) > 5
    assert (summary["baseline"], summary["lengths"]) == ("softmax", LENGTHS)
    assert summary["seeds"] == SEEDS
    assert summary["majority"] == pytest.approx(
        {task: 100 * runs[task, "leap", 0]["majority"] for task in TASKS}
    )
    assert [row["attention"] for row in summary["attentions"]] == NAMES
    for row in summary["attentions"]:
        name = row["attention"]
        scores = {t: {str(s): 100 * runs[t, name, s]["accuracy"] for s in SEEDS} for t in TASKS}
        assert row["accuracy"] == scores
        assert row["parameters"] == {task: runs[task, name, 0]["parameters"] for task in TASKS}
        average = [sum(scores[task][str(seed)] for task in TASKS) / 5 for seed in SEEDS]
        assert row["average"] == pytest.approx(average)
        for key, value in RATIOS.items():
            ratios = [measured(t, name, value) / measured(t, "softmax", value) for t in TASKS]
            mean = np.prod(ratios) ** (1 / 5)
            expected = {"mean": mean, "low": min(ratios), "high": max(ratios)}
            assert row[key] == pytest.approx(expected)


def test_the_table_is_what_the_summary_says(compared):
    out, _ = compared
    summary, rows = read(out / "summary.json"), rows_of(out / "table.md")
    ranked = sorted(summary["attentions"], key=lambda row: np.mean(row["average"]), reverse=True)
    assert list(rows) == [*(row["attention"] for row in ranked), "most frequent class"]
    for row in ranked:
        *scores, average, train, infer, memory = rows[row["attention"]]
        assert scores == [spread(list(row["accuracy"][task].values())) for task in TASKS]
        assert average == f"**{spread(row['average'])}**"
        for cell, key in zip((train, infer, memory), RATIOS, strict=True):
            mean, low, high = (row[key][name] for name in ("mean", "low", "high"))
            assert cell == f"{mean:.2f} ({low:.2f}-{high:.2f})"
    frequent = list(summary["majority"].values())
    expected = [*(f"{share:.1f}" for share in frequent), f"{np.mean(frequent):.1f}"]
    assert rows["most frequent class"] == [*expected, "", "", ""]
    said = (out / "table.md").read_text()
    assert said.startswith(f"| attention | {' | '.join(TASKS)} | average | training, times softmax")
    assert "listops 40, text 48" in said
    assert "2 seed(s)" in said


def test_without_softmax_the_first_attention_is_the_baseline(compared):
    runs = [run for run in compared[1] if run["signature"]["attention"] != "softmax"]
    for order, first in ((runs, "leap"), (runs[::-1], "linear")):
        summary = tables.summarise(order)
        assert (summary["baseline"], summary["attentions"][0]["attention"]) == (first, first)
        assert all(summary["attentions"][0][key]["mean"] == pytest.approx(1) for key in RATIOS)
        assert f"training, times {first}" in tables.summary_table(summary)


KILL = """
import os, pickle, signal, sys
from dataclasses import replace
import torch
from transformers import Trainer
from leapformer.tasks.lra import compare
from leapformer.tasks.lra.tasks import TASKS

torch.set_num_threads(1)  # as in the tests: rounding depends on it
arguments, lengths, last = pickle.load(sys.stdin.buffer)
compare.TASKS = {name: replace(task, length=lengths[name]) for name, task in TASKS.items()}
real, calls = Trainer.training_step, []

def counted(*words, **named):
    calls.append(0)
    if len(calls) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*words, **named)

Trainer.training_step = counted
compare.compare(*arguments)
"""


def test_a_killed_comparison_goes_on_where_it_was(compared, made, tmp_path, monkeypatch):
    """Four runs of two steps; killed in the second step of the third, first of the second task."""
    arguments = [small("listops"), small("text")], ["leap", "linear"], [0], tmp_path, made, 1
    process = subprocess.run(
        [sys.executable, "-c", KILL],
        input=pickle.dumps((arguments, LENGTHS, 6)),
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    kept = sorted(str(file.relative_to(tmp_path)) for file in tmp_path.rglob(RESULT))
    assert kept == [f"listops/runs/{name}-0/{RESULT}" for name in ("leap", "linear")]

    steps, real = [], Trainer.training_step

    def counted(self: Trainer, *words):
        steps.append(self.args.output_dir)
        return real(self, *words)

    monkeypatch.setattr(Trainer, "training_step", counted)
    resumed = compare(*arguments)
    assert [str(Path(step).relative_to(tmp_path)) for step in steps] == [
        "text/runs/leap-0",
        *["text/runs/linear-0"] * 2,
    ]
    whole = {
        (run["signature"]["task"], run["signature"]["attention"]): run["accuracy"]
        for run in compared[1]
        if run["signature"]["seed"] == 0
    }
    assert len(resumed) == 4
    for run in resumed:
        signed = run["signature"]
        assert run["accuracy"] == whole[signed["task"], signed["attention"]]
    assert read(tmp_path / "summary.json")["seeds"] == [0]


def diverging(*lost: tuple[str, str, int]) -> Callable[..., dict]:
    """`train` at a learning rate that these runs do not survive."""

    def run(recipe: Recipe, attention: str, seed: int, out: Path, folder: Path) -> dict:
        if (recipe.task, attention, seed) in lost:
            recipe = replace(recipe, learning_rate=1e30, warmup_steps=0)
            out = out.with_name(f"{out.name}-diverging")
        return train(recipe, attention, seed, out, folder)

    return run


def compare_without(monkeypatch, copied: Path, made: Path, tasks: list[str], *lost) -> None:
    """Compare on these tasks with these runs lost; they are named at the end, and no others."""
    monkeypatch.setattr(module, "train", diverging(*lost))
    for file in (*copied.glob("*.*"), *copied.glob("*/results.json"), *copied.glob("*/*.md")):
        file.unlink()
    with pytest.raises(FloatingPointError) as raised:
        compare([small(task) for task in tasks], NAMES, SEEDS, copied, made, rounds=1)
    said = str(raised.value)
    for task, name, seed in lost:
        assert f"{task}, {name}, seed {seed}: the validation loss is nan at step 1" in said
    assert said.count("loss is nan") == len(lost)


def test_what_diverges_is_left_out_and_named_at_the_end(compared, copied, made, monkeypatch):
    lost = ("text", "linear", 0), ("text", "linear", 1), ("image", "leap", 1)
    compare_without(monkeypatch, copied, made, list(TASKS), *lost)
    before = {row["attention"]: row for row in read(compared[0] / "summary.json")["attentions"]}
    after = {row["attention"]: row for row in read(copied / "summary.json")["attentions"]}
    assert after["softmax"] == before["softmax"]
    assert after["leap"]["average"] == before["leap"]["average"][:1]  # of the seed that is whole
    assert after["linear"]["average"] == []
    assert "text" not in after["linear"]["accuracy"]
    assert list(rows_of(copied / "text" / "table.md")) == ["leap", "softmax"]
    rows = rows_of(copied / "table.md")
    assert list(rows)[2:] == ["linear", "most frequent class"]
    assert [rows["linear"][i] for i in (1, 5)] == ["diverged", "-"]
    assert rows["linear"][0] == rows_of(compared[0] / "table.md")["linear"][0]
    for place in (copied, copied / "text"):
        picture = matplotlib.image.imread(place / PICTURE)
        assert picture[..., :3].std() > 0.02


def test_ratios_need_a_task_that_both_survived(copied, made, monkeypatch):
    lost = [("text", "softmax", 0), ("text", "softmax", 1)]
    lost += [("listops", "leap", 0), ("listops", "leap", 1)]
    compare_without(monkeypatch, copied, made, ["listops", "text"], *lost)
    rows = rows_of(copied / "table.md")
    assert next(iter(rows)) == "linear"
    assert rows["leap"][0] == rows["softmax"][1] == "diverged"
    assert rows["leap"][2:] == ["-"] * 4
    assert rows["softmax"][3:] == ["1.00 (1.00-1.00)"] * 3


def test_where_all_diverge_all_are_named(made, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "train", diverging(("listops", "leap", 0), ("text", "leap", 0)))
    with pytest.raises(FloatingPointError, match=r"listops, leap, seed 0: .*; text, leap, seed 0"):
        compare([small("listops"), small("text")], ["leap"], [0], tmp_path, made, rounds=1)
    assert not list(tmp_path.rglob("*.md"))


def test_where_none_survives_all_tasks_there_is_a_table_and_a_picture_all_the_same(
    made, tmp_path, monkeypatch
):
    monkeypatch.setattr(module, "train", diverging(("listops", "leap", 0), ("text", "linear", 0)))
    with pytest.raises(FloatingPointError, match="text, linear, seed 0"):
        compare([small("listops"), small("text")], ["leap", "linear"], [0], tmp_path, made, 1)
    rows = rows_of(tmp_path / "table.md")
    assert rows["leap"][0] == rows["linear"][1] == "diverged"
    assert rows["leap"][2] == rows["linear"][2] == "-"
    assert (tmp_path / PICTURE).stat().st_size > 1000


@pytest.mark.parametrize("missing", PREPARED)
def test_missing_data_are_found_before_any_work(made, tmp_path, monkeypatch, missing):
    for owner, name in ((listops, "sample"), (pathfinder, "sample"), (Trainer, "train")):
        monkeypatch.setattr(owner, name, lambda *_, **__: pytest.fail("work began"))
    for task in {*PREPARED} - {missing}:
        shutil.copytree(made / task, tmp_path / "data" / task)
    with pytest.raises(FileNotFoundError, match=f"leapformer lra prepare --task {missing} "):
        compare([small(t) for t in TASKS], NAMES, SEEDS, tmp_path / "out", tmp_path / "data", 1)
    assert list((tmp_path / "out").iterdir()) == []


@contextmanager
def little_room(size: int) -> Iterator[None]:
    """No file grows beyond `size` bytes, as on a disk that is full. (Python ignores the signal.)"""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, most))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))


def fault(capsys, line: list) -> str:
    """The one line that a command leaves beside its progress bars."""
    assert cli.main([str(word) for word in line]) == 2
    lines = re.split(r"[\r\n]+", capsys.readouterr().err)  # between progress bars
    (said,) = (line for line in lines if "leapformer: " in line)
    return said


@pytest.mark.parametrize("size", [0, 300, 2000])
@pytest.mark.parametrize("task", PREPARED)
def test_a_full_disk_leaves_no_data(sources, tmp_path, capsys, task, size):
    line = ["lra", "prepare", "--task", task, "--source", sources / task, "--out", tmp_path / "x"]
    with little_room(size):
        assert "File too large" in fault(capsys, line)
    assert list(tmp_path.iterdir()) == []
    assert cli.main([str(word) for word in line]) == 0
    assert visible(tmp_path) == ["x"]


TINY = (
    "--steps 4 --evaluate-every 2 --batch-size 8 --hidden-size 8 --intermediate-size 8"
    " --train-examples 16 --validation-examples 8 --test-examples 8"
)


def test_a_full_disk_leaves_no_sampled_data(tmp_path, capsys):
    line = ["lra", "train", "--out", tmp_path / "run", "--data", tmp_path / "data", *TINY.split()]
    with little_room(500):
        assert "File too large" in fault(capsys, line)
    assert list((tmp_path / "data").iterdir()) == []
    assert cli.main([str(word) for word in line]) == 0


@pytest.mark.parametrize("size", [0, 2000, 8000], ids=["result", "weights", "state"])
@pytest.mark.parametrize("end", [False, True], ids=["on the way", "at the end"])
def test_a_run_goes_on_when_there_is_room(tmp_path, capsys, monkeypatch, size, end):
    def line(name):
        return [
            "lra",
            "train",
            "--out",
            tmp_path / name,
            "--data",
            tmp_path / "data",
            *TINY.split(),
        ]

    assert cli.main([str(word) for word in line("whole")]) == 0
    whole = read(tmp_path / "whole" / RESULT)
    capsys.readouterr()
    owner, name = (Trainer, "evaluate") if end else (training, "make_trainer")
    real, full = getattr(owner, name), little_room(size)

    def filled(*words, **named):
        found = real(*words, **named)
        if not end or named.get("metric_key_prefix") == "test":
            full.__enter__()
        return found

    with monkeypatch.context() as patched:
        patched.setattr(owner, name, filled)
        try:
            said = fault(capsys, line("run"))
        finally:
            full.__exit__(None, None, None)
    assert "too large" in said or "is the disk full?" in said
    assert not (tmp_path / "run" / RESULT).exists()

    steps, real_step = [], Trainer.training_step
    monkeypatch.setattr(Trainer, "training_step", lambda *x: steps.append(0) or real_step(*x))
    assert cli.main([str(word) for word in line("run")]) == 0
    assert len(steps) == (0 if end else 4)
    again = read(tmp_path / "run" / RESULT)
    assert (again["accuracy"], again["loss"]) == (whole["accuracy"], whole["loss"])
    assert sorted(visible(tmp_path / "run")) == sorted(visible(tmp_path / "whole"))


KILL_PREPARE = """
import os, pickle, signal, sys
from pathlib import Path
from leapformer.tasks.lra import data

source, out, name = pickle.load(sys.stdin.buffer)
dead = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)
owner = data.DatasetDict if name == "save_to_disk" else data
if name == "second split":
    real, calls = data._write_split, []
    data._write_split = lambda *x: dead() if calls else calls.append(0) or real(*x)
else:
    setattr(owner, name, dead)
data.prepare("text", source, out)
"""


@pytest.mark.parametrize("place", ["second split", "write_json"])
def test_killed_preparing_leaves_nothing_that_is_taken_for_data(sources, tmp_path, place):
    process = subprocess.run(
        [sys.executable, "-c", KILL_PREPARE],
        input=pickle.dumps((sources / "text", tmp_path / "text", place)),
        capture_output=True,
    )
    assert process.returncode == -signal.SIGKILL, process.stderr.decode()
    assert list(tmp_path.iterdir()) != []
    assert visible(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="no data for text"):
        load(small("text"), tmp_path)
    prepare("text", sources / "text", tmp_path / "text")
    assert len(load(small("text"), tmp_path)[0]["test"]) == 10


@pytest.mark.parametrize(("task", "layout", "write"), LAYOUTS, ids=[x[1] for x in LAYOUTS])
def test_every_layout_is_prepared_from_the_command_line(
    tmp_path, monkeypatch, capsys, task, layout, write
):
    """Where no --out is given, it goes where train and compare look for it."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    (tmp_path / "source").mkdir()
    counts = write(tmp_path / "source", np.random.default_rng(0))
    line = ["lra", "prepare", "--task", task, "--source", tmp_path / "source"]
    place = cli.lra.DATA.expanduser() / task
    assert tmp_path in place.parents
    if layout in CUT:
        assert "give --partial" in fault(capsys, line)
        assert not place.exists()
        line.append("--partial")
    assert cli.main([str(word) for word in line]) == 0
    said = capsys.readouterr().out
    about = read(place / "about.json")
    assert f"{task}, {layout}: {place}\n" in said
    assert {name: split["examples"] for name, split in about["splits"].items()} == counts
    for name, count in counts.items():
        assert f"  {name}: {count} examples, classes [" in said
        assert sum(about["splits"][name]["classes"]) == count
    wanted = {"validation_examples": 2, "test_examples": 2, "prepared": True, "max_length": 1024}
    found, _ = load(replace(small(task), train_examples=None, **wanted), cli.lra.DATA)
    assert (len(found["validation"]), len(found["test"])) == (2, 2)


UNUSUAL = Budget(features=6, hashes=3, chunk=5, block=7, random=1, rank=3, window=2, hidden=11)
OTHER = Budget(features=9, hashes=4, chunk=8, block=5, random=2, rank=5, window=4, hidden=12)


def spends(attention: str) -> list[str]:
    """The options of the mechanism that a budget has."""
    return [name for name in ATTENTIONS[attention].options() if name in asdict(UNUSUAL)]


def test_every_entry_of_the_budget_is_spent_by_some_mechanism():
    assert {name for each in ATTENTIONS for name in spends(each)} == {
        f.name for f in fields(Budget)
    }


@pytest.mark.parametrize("attention", ATTENTIONS)
def test_the_budget_reaches_the_model(attention):
    """Each option alone changes what the model computes."""
    ids = torch.arange(1, 41)[None]

    def built(budget: Budget):
        torch.manual_seed(0)
        chosen = replace(recipe("text", "quick"), budget=budget, initializer_range=1.0)
        return build_model(chosen, attention).eval()

    options = built(UNUSUAL).config.attention_options
    assert options == {name: asdict(UNUSUAL)[name] for name in spends(attention)}
    with torch.no_grad():
        first = built(UNUSUAL)(ids).logits
        assert torch.equal(first, built(UNUSUAL)(ids).logits)
        for name in spends(attention):
            other = replace(UNUSUAL, **{name: getattr(OTHER, name)})
            assert not torch.equal(first, built(other)(ids).logits), name


PAPER = {  # batch, learning rate, warm-up, steps, length, classes, two sequences
    "listops": (32, 1e-4, 1000, 20_000, 2000, 10, False),
    "text": (32, 1e-4, 80, 20_000, 4000, 2, False),
    "retrieval": (16, 2e-4, 800, 50_000, 4000, 2, True),
    "image": (256, 1e-4, 175, 30_000, 1024, 10, False),
    "pathfinder": (128, 2e-4, 312, 50_000, 1024, 2, False),
}


@pytest.mark.parametrize("task", PAPER)
def test_the_paper_preset_has_the_published_numbers(task):
    made, known = recipe(task, "paper"), TASKS[task]
    run = made.batch_size, made.learning_rate, made.warmup_steps, made.steps, made.max_length
    assert (*run, known.num_labels, known.pair) == PAPER[task]
    assert known.length == made.max_length
    assert (made.num_hidden_layers, made.hidden_size, made.num_attention_heads) == (2, 64, 2)
    assert (made.intermediate_size, made.dropout, made.position_embedding) == (128, 0.1, "learned")
    assert (made.weight_decay, made.adam_epsilon, made.clip_value) == (0, 1e-6, 1)
    budget = made.budget
    assert (budget.features, budget.hashes, budget.block, budget.random) == (128, 2, 64, 3)
    assert made.shrink == 1


@pytest.mark.parametrize(
    ("task", "sizes"),
    [
        ("listops", (96_000, 2_000, 2_000)),
        ("pathfinder", (160_000, 20_000, 20_000)),
        ("image", (None, 5_000, None)),
    ],
)
def test_the_paper_preset_has_the_published_splits(task, sizes):
    made = recipe(task, "paper")
    assert (made.train_examples, made.validation_examples, made.test_examples) == sizes


def test_the_paper_preset_has_the_published_size_of_leap():
    leap, linear = (build_model(recipe("text", "paper"), name) for name in ("leap", "linear"))
    assert leap.num_parameters() - linear.num_parameters() == 2_180


@pytest.mark.parametrize("preset", ["quick", "paper"])
@pytest.mark.parametrize("task", TASKS)
def test_every_recipe_builds_every_attention(task, preset):
    assert set(RECIPES) == set(TASKS)
    assert set(RECIPES[task]) == {"quick", "paper"}
    made = recipe(task, preset)
    assert (made.task, made.preset) == (task, preset)
    with torch.device("meta"):
        for attention in ATTENTIONS:
            config = build_model(made, attention).config
            assert (config.num_labels, config.pair) == (TASKS[task].num_labels, TASKS[task].pair)
            assert config.max_position_embeddings == made.max_length
            assert config.vocab_size == TASKS[task].vocab_size
