"""The probe: rows are what the tasks say, nothing is tested that was trained on, an answer is the
model's own, and a comparison keeps what is finished."""

import json
import re
import shutil
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import one_hot
from transformers import Trainer

from leapformer.cli import main
from leapformer.models import LeaPformerForCausalLM
from leapformer.tasks.probe.compare import compare
from leapformer.tasks.probe.evaluate import generate, measure, score
from leapformer.tasks.probe.recipes import RECIPES, recipe
from leapformer.tasks.probe.tasks import (
    ANSWER,
    ASK,
    BOS,
    DIGIT,
    EOS,
    LETTER,
    PAD,
    SAMPLERS,
    Rows,
    collate,
    evaluation_rows,
)
from leapformer.tasks.probe.train import train

TINY = replace(
    recipe("copy", "quick"),
    letters=4,
    min_length=1,
    max_length=4,
    evaluate_lengths=(3, 4),
    hidden_size=32,
    intermediate_size=32,
    warmup_steps=20,
    steps=250,
    evaluate_every=125,
)
BRIEF = replace(
    TINY,
    evaluate_lengths=(3, 6),
    evaluate_rows=8,
    validation_rows=8,
    hidden_size=8,
    batch_size=4,
    steps=4,
    evaluate_every=2,
    warmup_steps=1,
)
BOOK = replace(recipe("phonebook", "quick"), evaluate_lengths=(1, 5), evaluate_rows=2000)
NAMES, SEEDS = ["leap", "softmax"], [0, 1]

sizes = {
    "length": st.integers(1, 12),
    "letters": st.integers(2, 26),
    "name_length": st.integers(4, 6),
    "number_length": st.integers(1, 5),
    "seed": st.integers(0, 2**32),
}


def made(task, length, seed, **sizes):
    changed = replace(recipe(task, "quick"), min_length=1, max_length=12, evaluate_lengths=(1,))
    changed = replace(changed, **sizes)
    return SAMPLERS[task](changed, length, np.random.default_rng(seed))


def entries(prompt, name_length, number_length):
    """The book of a prompt, and the name that is asked for."""
    book = prompt[1 : -name_length - 1].reshape(-1, name_length + number_length)
    return book[:, :name_length], book[:, name_length:], prompt[-name_length:]


@given(**sizes)
def test_a_copy_repeats_its_string(length, letters, name_length, number_length, seed):
    prompt, answer = made("copy", length, seed, letters=letters)
    assert (prompt[0], prompt[-1], answer[-1]) == (BOS, ANSWER, EOS)
    assert prompt[1:-1].tolist() == answer[:-1].tolist()
    assert len(answer) == length + 1
    assert set(answer[:-1].tolist()) <= set(range(LETTER, LETTER + letters))


@given(**sizes)
def test_a_book_answers_with_the_number_of_the_name(seed, length, **shape):
    prompt, answer = made("phonebook", length, seed, **shape)
    names, numbers, asked = entries(prompt, shape["name_length"], shape["number_length"])
    assert (prompt[0], prompt[-len(asked) - 1], answer[-1]) == (BOS, ASK, EOS)
    assert len(names) == len(np.unique(names, axis=0)) == length
    assert set(names.ravel().tolist()) <= set(range(LETTER, LETTER + shape["letters"]))
    assert set(numbers.ravel().tolist()) <= set(range(DIGIT, DIGIT + 10))
    (place,) = (names == asked).all(1).nonzero()[0]
    assert numbers[place].tolist() == answer[:-1].tolist()


def test_every_name_can_come_up_and_any_entry_be_asked_for():
    full = replace(BOOK, letters=5, name_length=2, max_length=25, evaluate_lengths=(25,))
    found = [SAMPLERS["phonebook"](full, 25, np.random.default_rng(i))[0] for i in range(400)]
    books = [entries(prompt, 2, full.number_length) for prompt in found]
    assert all(len(np.unique(names, axis=0)) == 25 for names, _, _ in books)
    places = [(names == asked).all(1).argmax() for names, _, asked in books]
    assert set(places) == set(range(25))


def test_letters_and_lengths_are_uniform():
    quick = recipe("copy", "quick")
    answers = [answer[:-1] - LETTER for _, answer in Rows(quick, 0, 2000)]
    counts = np.bincount(np.concatenate(answers))
    shares = counts / counts.sum()
    assert len(shares) == quick.letters
    assert abs(shares - 1 / 26).max() < 5 * (1 / 26 / counts.sum()) ** 0.5
    lengths = np.bincount([len(answer) for answer in answers])[quick.min_length :]
    assert len(lengths) == quick.max_length - quick.min_length + 1
    expected = 2000 / len(lengths)
    assert abs(lengths - expected).max() < 5 * expected**0.5


@pytest.mark.parametrize("task", RECIPES)
def test_no_row_comes_up_twice_in_training(task):
    rows = Rows(recipe(task, "quick"), 0, 3000)
    assert len({prompt.tobytes() for prompt, _ in rows}) == len(rows)


@pytest.mark.parametrize(
    "small",
    [
        replace(TINY, min_length=3),
        replace(
            BOOK,
            letters=3,
            name_length=1,
            number_length=1,
            min_length=1,
            max_length=2,
            evaluate_lengths=(1, 2),
        ),
    ],
    ids=RECIPES,
)
def test_nothing_that_is_evaluated_is_ever_trained_on(small):
    """In so small a space all that may be drawn is drawn."""
    small = replace(small, evaluate_lengths=(small.min_length, small.max_length), evaluate_rows=500)
    trained = {p.tobytes() for seed in (0, 1) for p, _ in Rows(small, seed, 3000)}
    validated = {p.tobytes() for p, _ in Rows(small, 0, 500, held_out=True)}
    prompts = [evaluation_rows(small, length)[0] for length in small.evaluate_lengths]
    evaluated = {p.numpy().tobytes() for part in prompts for p in part}
    assert len(evaluated) > 20
    assert not trained & (evaluated | validated)
    whole = sum(4**length for length in (3, 4)) if small.task == "copy" else 3 * 10 + 6 * 100 * 2
    assert len(trained | evaluated | validated) > 0.9 * whole


def same(a, b):
    return all(all(map(np.array_equal, *both)) for both in zip(a, b, strict=True))


@pytest.mark.parametrize("task", RECIPES)
def test_a_row_follows_from_seed_and_place_alone(task):
    quick = recipe(task, "quick")
    rows = Rows(quick, 5, 20)
    backwards = [rows[i] for i in reversed(range(20))][::-1]
    assert same(backwards, list(Rows(quick, 5, 40))[:20])
    assert not same(rows, Rows(quick, 6, 20))
    assert all(map(torch.equal, evaluation_rows(quick, 10), evaluation_rows(quick, 10)))


@pytest.mark.parametrize("task", RECIPES)
def test_labels_stand_on_the_answers_alone(task):
    rows = [Rows(recipe(task, "quick"), 0, 8)[i] for i in range(8)]
    batch = collate(rows)
    ids, mask, labels = (batch[k] for k in ("input_ids", "attention_mask", "labels"))
    for i, (prompt, answer) in enumerate(rows):
        rest = ids.shape[1] - len(prompt) - len(answer)
        assert ids[i].tolist() == [*prompt, *answer, *[PAD] * rest]
        assert labels[i].tolist() == [*[-100] * len(prompt), *answer, *[-100] * rest]
        assert mask[i].tolist() == [1] * (len(prompt) + len(answer)) + [0] * rest
    assert (ids[:, -1] != PAD).any()


class Stub:
    """Stands for a model: says `says(row so far)` with certainty, and reads no more than it is
    given."""

    def __init__(self, says):
        self.says, self.read = says, None

    def __call__(self, ids, cache, logits_to_keep):
        begins = cache.length == 0
        self.read = ids if begins else torch.cat([self.read, ids], 1)
        cache.advance([], ids.shape[1], torch.full((len(ids),), ids.shape[1]))
        said = torch.tensor([self.says(row) for row in self.read.tolist()])
        return SimpleNamespace(logits=one_hot(said, 60).float().unsqueeze(1))


def copier(row):
    """Finds the last letter it said in the string, by counting, and says the next."""
    string = row[1 : row.index(ANSWER)]
    return [*string, EOS][len(row) - row.index(ANSWER) - 1]


def reader(row):
    width, digits = BOOK.name_length, BOOK.number_length
    end = row.index(ASK) + 1 + width
    names, numbers, asked = entries(np.array(row[:end]), width, digits)
    return [*numbers[(names == asked).all(1)][0], EOS][len(row) - end]


@pytest.mark.parametrize(("task", "oracle"), [("copy", copier), ("phonebook", reader)])
def test_who_knows_the_answer_scores_all(task, oracle):
    quick = replace(recipe(task, "quick"), evaluate_lengths=(1, 7), evaluate_rows=70)
    found = measure(quick, Stub(oracle), torch.device("cpu"))
    assert found == [
        {"length": length, "rows": 70, "exact": 1.0, "characters": 1.0} for length in (1, 7)
    ]


def test_who_always_says_the_same_scores_chance():
    one = replace(BOOK, number_length=1)
    for says, exact in ((lambda _: DIGIT + 3, 0), (lambda row: (EOS, 8)[row[-1] >= LETTER], 0.1)):
        for found in measure(one, Stub(says), torch.device("cpu")):
            assert found["characters"] == pytest.approx(0.1, abs=5 * (0.09 / 2000) ** 0.5)
            assert found["exact"] == (found["characters"] if exact else 0)


def test_one_mistake_spoils_an_answer_and_costs_one_character():
    wanted = torch.tensor([[20, 21, 22, 23, EOS], [20, 21, 22, 23, EOS]])
    for place, expected in ((2, (0.5, 7 / 8)), (4, (0.5, 1.0))):
        found = wanted.clone()
        found[1, place] = 30
        assert tuple(score(found, wanted).values()) == pytest.approx(expected)


def test_an_answer_goes_on_from_what_the_model_said_itself():
    counting = Stub(lambda row: row[-1] + 1)
    found = generate(counting, torch.tensor([[1, 9, 4], [1, 30, 20]]), 4)
    assert found.tolist() == [[5, 6, 7, 8], [21, 22, 23, 24]]


@pytest.fixture(scope="module")
def learned(tmp_path_factory):
    out = tmp_path_factory.mktemp("learned")
    result = train(TINY, "softmax", 0, out)
    return result, LeaPformerForCausalLM.from_pretrained(out / "model").eval()


def test_a_tiny_model_learns_to_copy_strings_it_never_saw(learned):
    result, model = learned
    assert [record["length"] for record in result["by_length"]] == [3, 4]
    assert result["by_length"] == measure(TINY, model, torch.device("cpu"))
    for record in result["by_length"]:
        assert record["exact"] > 0.5  # chance: 0.016 and 0.004
        assert record["characters"] > 0.75  # chance: 0.25
    assert result["parameters"] == sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("length", [2, 3, 4, 5, 6])
def test_a_faultless_answer_is_faultless_under_teacher_forcing_too(learned, length):
    """Up to the first mistake the model reads the same either way."""
    prompts, answers = evaluation_rows(replace(TINY, evaluate_lengths=(length,)), length)
    generated = generate(learned[1], prompts, answers.shape[1]) == answers
    with torch.no_grad():
        logits = learned[1](torch.cat([prompts, answers], 1)).logits
    forced = logits[:, prompts.shape[1] - 1 : -1].argmax(-1) == answers
    assert torch.equal(generated.cumprod(1), forced.cumprod(1))
    if length in (3, 4):
        assert generated.all(1).any()


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    out = tmp_path_factory.mktemp("compared")
    return out, compare(BRIEF, NAMES, SEEDS, out)


@pytest.fixture
def copied(compared, tmp_path):
    """The comparison in a folder that the test may change."""
    shutil.copytree(compared[0], tmp_path / "copy")
    return tmp_path / "copy"


def key(record):
    return record["signature"]["attention"], record["signature"]["seed"]


def test_results_hold_one_signed_record_a_run(compared):
    out, results = compared
    assert json.loads((out / "results.json").read_text()) == results
    assert sorted(map(key, results)) == [(name, seed) for name in NAMES for seed in SEEDS]
    for record in results:
        assert {"versions", "commit", "machine", "recipe"} <= set(record["signature"])
        run = json.loads((out / "runs" / "{}-{}".format(*key(record)) / "result.json").read_text())
        assert record == run
        assert [found["length"] for found in record["by_length"]] == [3, 6]
        assert record["best_step"] in (2, 4)


def test_table_has_a_row_an_attention_and_a_column_a_length(compared):
    out, results = compared
    text = (out / "table.md").read_text()
    for kind, label in (("exact", "answers without a mistake"), ("characters", "characters right")):
        part = text[text.index(label) :]
        assert part.startswith(f"{label}, % | 3 | 6 | parameters |")
        for name in NAMES:
            cells = re.search(rf"^\| {name} \| (.*) \|$", part, re.MULTILINE)[1].split(" | ")
            runs = [run["by_length"] for run in results if key(run)[0] == name]
            for i in range(2):
                values = [100 * run[i][kind] for run in runs]
                assert cells[i] == f"{np.mean(values):.1f} ± {np.std(values, ddof=1):.1f}"


def test_picture_shows_something(compared):
    picture = matplotlib.image.imread(compared[0] / "accuracy.png")
    height, width, _ = picture.shape
    assert width > height > 300
    assert len(np.unique(picture[..., :3].reshape(-1, 3), axis=0)) > 50
    assert picture[..., :3].std() > 0.02


def test_second_call_trains_nothing(compared, copied, monkeypatch):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("trained again"))
    assert compare(BRIEF, [*NAMES, "leap"], SEEDS, copied) == compared[1]


def test_an_attention_added_later_keeps_the_old_runs(compared, copied, monkeypatch):
    began, real = [], Trainer.train

    def counted(self, *words, **named):
        began.append(self.args.output_dir)
        return real(self, *words, **named)

    monkeypatch.setattr(Trainer, "train", counted)
    results = compare(BRIEF, [*NAMES, "cosformer"], [0], copied)
    assert began == [str(copied / "runs" / "cosformer-0")]
    assert results[:2] == [run for run in compared[1] if key(run)[1] == 0]


def test_a_run_that_was_stopped_goes_on_as_if_nothing_had_happened(compared, tmp_path, monkeypatch):
    steps, real = [], Trainer.training_step

    def stopped(*arguments):
        steps.append(0)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Trainer, "training_step", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare(BRIEF, ["leap"], [0], tmp_path)
    (resumed,) = compare(BRIEF, ["leap"], [0], tmp_path)
    losses = [
        [(entry["step"], entry["eval_loss"]) for entry in run["curve"] if "eval_loss" in entry]
        for run in (resumed, compared[1][0])
    ]
    assert losses[0] == losses[1]
    assert resumed["by_length"] == compared[1][0]["by_length"]


def test_another_recipe_in_the_same_folder_is_refused(copied):
    with pytest.raises(ValueError, match="holds a run with another learning_rate"):
        compare(replace(BRIEF, learning_rate=0.5), NAMES, SEEDS, copied)


@pytest.mark.parametrize(
    ("words", "cure"),
    [
        ("--task coppy", "unknown task 'coppy' .did you mean copy.*: choose from copy, phonebook"),
        ("--preset quik", "unknown preset 'quik' .did you mean quick"),
        ("--attentions leep", "unknown attention 'leep' .did you mean leap"),
        ("--attentions linformer", "linformer cannot hide the future.*choose from leap"),
        ("--attentions ,", "give at least one attention and one seed"),
        ("--seeds -1", "seed -1 is negative"),
        ("--seeds 0,x", "--seeds 0,x: give whole numbers"),
        ("--min-length 0", "min_length is 0: it must be positive"),
        ("--evaluate-lengths 5 0", "evaluate_lengths is 0: it must be positive"),
        ("--evaluate-lengths", "evaluate_lengths is empty: give at least one"),
        ("--max-length 2 --min-length 3", "max_length is 2: it must be at least min_length, 3"),
        ("--learning-rate -1", "learning_rate is -1.0: it must be positive"),
        ("--letters 1", "length 10, 1 letters: too few prompts"),
        ("--position-embedding rotary", "rotary positions turn dot products"),
        (
            "--task phonebook --name-length 1 --max-length 60",
            "60 entries want as many names, and 26 letters in 1 places make 26: .*--name-length",
        ),
        ("--task phonebook --name-length 20", "choose another --name-length"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing_behind(
    tmp_path, capsys, monkeypatch, words, cure
):
    monkeypatch.setattr(Trainer, "train", lambda *_, **__: pytest.fail("work began"))
    assert main(["lm", "probe", "--out", str(tmp_path / "out"), *words.split()]) == 2
    assert re.fullmatch(f"leapformer: .*{cure}.*\n", capsys.readouterr().err)
    assert not (tmp_path / "out").exists()


def test_options_override_the_recipe_by_name(tmp_path, capsys):
    line = f"lm probe --out {tmp_path} --task phonebook --attentions linear --seeds 3"
    line += " --min-length 1 --max-length 2 --evaluate-lengths 1 2 --steps 2 --evaluate-every 1"
    line += " --hidden-size 8 --batch-size 2 --validation-rows 4 --evaluate-rows 4"
    assert main(line.split()) == 0
    (record,) = json.loads((tmp_path / "results.json").read_text())
    signed = record["signature"]
    assert (signed["task"], signed["attention"], signed["seed"]) == ("phonebook", "linear", 3)
    assert signed["recipe"]["evaluate_lengths"] == [1, 2]
    assert signed["recipe"]["name_length"] == recipe("phonebook", "quick").name_length
    said = capsys.readouterr().out
    assert (tmp_path / "table.md").read_text() in said
    assert "accuracy.png" in said
