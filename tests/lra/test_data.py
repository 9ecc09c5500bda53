"""Data sets: made once, kept whole, split without overlap, batched with a mask."""

import io
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from datasets import Dataset, DatasetDict

from leapformer.tasks.lra import data, listops, text
from leapformer.tasks.lra.data import Collator, lengths, load, majority, prepare
from leapformer.tasks.lra.recipes import recipe

SHAPE = listops.TreeShape(min_length=4, max_length=40, max_depth=3, max_arguments=4)
LISTOPS = replace(
    recipe("listops", "quick"),
    trees=SHAPE,
    train_examples=60,
    validation_examples=20,
    test_examples=10,
)
TEXT = replace(recipe("text", "quick"), validation_examples=4, test_examples=None, max_length=12)


def texts(split: Dataset) -> list[bytes]:
    return [bytes(ids) for ids in split["input_ids"]]


def columns(made: DatasetDict) -> dict[str, dict[str, list]]:
    return {name: split.to_dict() for name, split in made.items()}


def kept(folder: Path) -> list[Path]:
    """What could be taken for a data set; hidden folders are never looked at."""
    return [path for path in folder.glob("*") if not path.name.startswith(".")]


@pytest.fixture
def reviews(tmp_path: Path) -> Path:
    """Forty reviews as JSON lines, each another number of bytes long, and ten to test on."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, numbers in {"train": range(1, 41), "test": range(41, 51)}.items():
        rows = [{"label": i % 2, "text": chr(64 + i) * i} for i in numbers]
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def test_splits_are_disjoint_and_hold_trees_with_their_values(tmp_path):
    made, about = load(LISTOPS, tmp_path)
    sizes = {"train": 60, "validation": 20, "test": 10}
    assert {name: len(split) for name, split in made.items()} == sizes
    assert {name: split["examples"] for name, split in about["splits"].items()} == sizes
    assert len({text for split in made.values() for text in texts(split)}) == sum(sizes.values())
    for split in made.values():
        for row in split:
            assert listops.evaluate(listops.decode(row["input_ids"])) == row["labels"]


def test_every_split_has_its_share_of_short_trees(tmp_path):
    # The few short trees there are turn up first: unmixed, the training split would hold them all.
    shape = listops.TreeShape(min_length=0, max_length=40, max_depth=3, max_arguments=2)
    sizes = {"train_examples": 2000, "validation_examples": 500, "test_examples": 500}
    made, _ = load(replace(LISTOPS, trees=shape, **sizes), tmp_path)
    shares = [sum(len(x) <= 4 for x in texts(split)) / len(split) for split in made.values()]
    assert min(shares) > 0.6 * max(shares)


def test_second_call_reads_what_is_kept(tmp_path, monkeypatch):
    made, about = load(LISTOPS, tmp_path)
    monkeypatch.setattr(listops, "sample", lambda *_: pytest.fail("sampled again"))
    again, same = load(LISTOPS, tmp_path)
    assert (columns(again), same) == (columns(made), about)


@pytest.mark.parametrize(
    "other",
    [{"data_seed": 1}, {"train_examples": 61}, {"trees": listops.TreeShape(5, 40, 3, 4)}],
    ids=["seed", "sizes", "shape"],
)
def test_another_data_set_is_not_taken_for_it(tmp_path, other):
    made, about = load(LISTOPS, tmp_path)
    others, about_others = load(replace(LISTOPS, **other), tmp_path)
    assert columns(others) != columns(made)
    assert about_others["splits"]["train"]["sha256"] != about["splits"]["train"]["sha256"]


@pytest.mark.parametrize("killed", [False, True], ids=["raised", "killed"])
def test_half_a_data_set_is_never_taken_for_a_whole_one(tmp_path, monkeypatch, killed):
    whole = DatasetDict.save_to_disk

    def half(self: DatasetDict, folder: Path) -> None:
        whole(self, folder)
        shutil.rmtree(Path(folder) / "test")
        raise OSError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr(DatasetDict, "save_to_disk", half)
        if killed:  # then nothing is cleared away either
            patched.setattr(data, "shutil", type("Dead", (), {"rmtree": lambda _: None}))
        with pytest.raises(OSError, match="no space left"):
            load(LISTOPS, tmp_path)

    assert kept(tmp_path) == []
    assert killed or list(tmp_path.iterdir()) == []
    assert len(load(LISTOPS, tmp_path)[0]["test"]) == LISTOPS.test_examples
    assert len(kept(tmp_path)) == 1


def test_prepared_data_keep_every_byte_and_say_what_they_are(tmp_path, reviews):
    about = prepare("text", reviews, tmp_path / "text")
    assert about == json.loads((tmp_path / "text" / "about.json").read_text())
    assert about["splits"]["train"]["examples"] == 40
    assert about["splits"]["test"]["classes"] == [5, 5]
    written = DatasetDict.load_from_disk(str(tmp_path / "text"))
    for name, examples in text.read(reviews).splits.items():
        found = [
            ((row,), y)
            for row, y in zip(texts(written[name]), written[name]["labels"], strict=True)
        ]
        assert found == list(examples())


def test_the_checksum_is_of_the_examples_in_their_order(tmp_path, reviews):
    def checksum(name: str) -> str:
        return prepare("text", reviews, tmp_path / name)["splits"]["train"]["sha256"]

    file = reviews / "train.jsonl"
    first, lines = checksum("a"), file.read_text().splitlines(keepends=True)
    file.write_text("".join(line.replace(": ", "  :  ") for line in lines))
    assert checksum("b") == first
    file.write_text("".join(reversed(lines)))
    assert checksum("c") != first
    file.write_text("".join(lines).replace('"label": 0', '"label": 1', 1))
    assert checksum("d") != first


def test_validation_is_carved_from_training_alone(tmp_path, reviews):
    prepare("text", reviews, tmp_path / "text")
    whole = {(chr(64 + i) * i).encode() for i in range(1, 41)}
    seen = []
    for seed in (0, 1):
        made, _ = load(replace(TEXT, data_seed=seed), tmp_path)
        train, validation = set(texts(made["train"])), set(texts(made["validation"]))
        assert (len(train), len(validation)) == (36, 4)
        assert train | validation == whole
        assert len(made["test"]) == 10
        seen.append(validation)
    assert seen[0] != seen[1]


def test_a_validation_split_of_the_source_is_kept(tmp_path, reviews):
    shutil.copy(reviews / "test.jsonl", reviews / "validation.jsonl")
    prepare("text", reviews, tmp_path / "text")
    made, _ = load(TEXT, tmp_path)
    assert len(made["train"]) == 40
    assert set(texts(made["validation"])) <= set(texts(made["test"]))


@pytest.mark.parametrize("name", ["train", "validation", "test"])
def test_more_examples_than_there_are_is_refused(tmp_path, reviews, name):
    prepare("text", reviews, tmp_path / "text")
    with pytest.raises(ValueError, match=rf"asks for 99: give --{name}-examples \d+ or fewer"):
        load(replace(TEXT, **{f"{name}_examples": 99}), tmp_path)


def test_data_not_prepared_names_the_command_that_prepares_them(tmp_path):
    with pytest.raises(FileNotFoundError, match="leapformer lra prepare --task text --source"):
        load(TEXT, tmp_path)


@pytest.mark.parametrize(
    ("about", "fault"),
    [
        ("", "about.json is not JSON .*: delete it"),
        ('{"task": "text", "splits": {', "about.json is not JSON .*: delete it"),
        ("[]", "is damaged .*: delete it"),
        ("{}", "is damaged .*: delete it"),
        ('{"task": "text"}', "is damaged .*: delete it"),
        ('{"task": "text", "splits": {"train": {"examples": 40}}}', "holds .*: delete it"),
        (None, "no data for text in .*: leapformer lra prepare --task text"),
    ],
)
def test_data_with_a_damaged_description_are_refused(tmp_path, reviews, about, fault):
    prepare("text", reviews, tmp_path / "text")
    (tmp_path / "text" / "about.json").unlink()
    if about is not None:
        (tmp_path / "text" / "about.json").write_text(about)
    with pytest.raises((ValueError, OSError), match=fault):
        load(TEXT, tmp_path)


@pytest.fixture(scope="module")
def streamed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prepared data of which the training split is written in three batches."""
    folder = tmp_path_factory.mktemp("streamed")
    for split, count in (("train", 2500), ("test", 4)):
        row = json.dumps({"label": 1, "text": "abc"})
        (folder / f"{split}.jsonl").write_text(f"{row}\n" * count)
    prepare("text", folder, folder / "data" / "text")
    return folder / "data"


def ends(stream: bytes) -> list[int]:
    """Where the schema and each batch of a stream end: cut there, it is a shorter stream."""
    reader, part = pa.ipc.open_stream(stream), io.BytesIO()
    writer = pa.ipc.new_stream(part, reader.schema)
    found = [part.tell()]
    for batch in reader:
        writer.write_batch(batch)
        found.append(part.tell())
    assert stream.startswith(part.getvalue())
    return found


def test_files_cut_anywhere_are_never_a_shorter_data_set(streamed):
    (file,) = (streamed / "text" / "train").glob("*.arrow")
    whole = file.read_bytes()
    *places, end = ends(whole)
    assert len(places) == 3  # of the schema and of two batches
    try:
        for cut in {0, 7, *places, *(place + 9 for place in places), end - 1}:
            file.write_bytes(whole[:cut])
            with pytest.raises(ValueError, match="delete it and make it anew"):
                load(TEXT, streamed)
        file.unlink()
        with pytest.raises(ValueError, match=r"is damaged .*delete it and make it anew"):
            load(TEXT, streamed)
    finally:
        file.write_bytes(whole)
    assert len(load(TEXT, streamed)[0]["train"]) == 2496


def test_data_of_another_task_are_refused(tmp_path, reviews):
    prepare("text", reviews, tmp_path / "image")
    with pytest.raises(ValueError, match="holds data for text, not for image"):
        load(recipe("image", "quick"), tmp_path)


def test_what_is_there_is_not_written_over(tmp_path, reviews):
    prepare("text", reviews, tmp_path / "text")
    with pytest.raises(FileExistsError, match="choose another --out"):
        prepare("text", reviews, tmp_path / "text")


def test_a_release_with_files_missing_is_refused_unless_asked_for(tmp_path, released):
    source = released("( ( ( [MAX 2 ) 9 ) ] )\t9\n")
    with pytest.raises(ValueError, match=r"'train': 1, .*'train': 96000.* or give --partial"):
        prepare("listops", source, tmp_path / "kept" / "listops")
    assert list((tmp_path / "kept").iterdir()) == []
    about = prepare("listops", source, tmp_path / "kept" / "listops", partial=True)
    assert about["splits"]["test"]["examples"] == 1


def test_a_fault_on_the_last_line_leaves_nothing(tmp_path, released):
    source = released("( ( ( [MAX 2 ) 9 ) ] )\t9\n( ( ( [MAX 2 ) 9")
    with pytest.raises(ValueError, match=r"basic_train\.tsv:3"):
        prepare("listops", source, tmp_path / "kept" / "listops", partial=True)
    assert list((tmp_path / "kept").iterdir()) == []


def test_released_trees_are_loaded_where_asked_for(tmp_path, released):
    prepare("listops", released("( ( ( [MIN 2 ) 9 ) ] )\t2\n"), tmp_path / "listops", partial=True)
    once = replace(LISTOPS, train_examples=1, validation_examples=1, test_examples=1)
    made, about = load(replace(once, prepared=True), tmp_path)
    assert listops.decode(made["test"][0]["input_ids"]) == ["[MIN", "2", "9", "]"]
    assert about["layout"] == "basic_*.tsv"
    assert load(once, tmp_path)[1]["layout"] == "sampled"


def test_source_without_the_files_names_what_is_expected(tmp_path, released):
    source = released("7\t7\n")
    (source / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"basic_val\.tsv is not there.*basic_test\.tsv"):
        prepare("listops", source, tmp_path / "listops")


def test_a_sequence_longer_than_the_recipe_is_refused_or_cut_as_the_task_has_it(tmp_path, reviews):
    prepare("text", reviews, tmp_path / "text")
    made, _ = load(TEXT, tmp_path)
    assert lengths(made["train"], TEXT).max() == 12
    batch = Collator(TEXT)([made["train"][i] for i in range(36)])
    assert batch["input_ids"].shape == (36, 12)
    with pytest.raises(ValueError, match=r"has \d+ tokens .* allows for 9: give --max-length"):
        load(replace(LISTOPS, max_length=9), tmp_path)


def test_a_batch_is_padded_under_a_mask():
    rows = [[3, 1], [5], [2, 4, 6, 8]]
    batch = Collator(LISTOPS)([{"input_ids": ids, "labels": i} for i, ids in enumerate(rows)])
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.long
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].sum(-1).tolist() == [2, 1, 4]
    for ids, padded, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert padded[mask].tolist() == ids
        assert not padded[~mask].any()
        assert (mask[:-1] >= mask[1:]).all()  # real tokens first


def test_a_token_that_is_zero_is_real():
    batch = Collator(TEXT)([{"input_ids": [0, 7, 0], "labels": 0}, {"input_ids": [9], "labels": 1}])
    assert batch["attention_mask"].tolist() == [[True] * 3, [True, False, False]]


def test_a_pair_is_two_rows_of_one_batch():
    rows = [([3, 1], [5, 6, 7]), ([5], [2, 4])]
    examples = [{"input_ids": a, "second_ids": b, "labels": 0} for a, b in rows]
    batch = Collator(recipe("retrieval", "quick"))(examples)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (2, 2, 3)
    for found, mask, pair in zip(batch["input_ids"], batch["attention_mask"], rows, strict=True):
        assert [x[m].tolist() for x, m in zip(found, mask, strict=True)] == list(pair)


def test_a_shrunk_image_is_the_mean_of_its_pixels():
    image = torch.arange(64).view(8, 8)
    small = replace(recipe("image", "quick"), shrink=2, max_length=16)
    batch = Collator(small)([{"input_ids": image.flatten().to(torch.uint8), "labels": 3}] * 2)
    expected = image.float().view(4, 2, 4, 2).mean((1, 3)).round().long()
    assert batch["input_ids"].tolist() == [expected.flatten().tolist()] * 2
    assert "attention_mask" not in batch  # nothing is padded


@pytest.mark.parametrize(("task", "shrink"), [("listops", 2), ("image", 3), ("image", 64)])
def test_only_what_divides_an_image_shrinks_it(tmp_path, task, shrink):
    with pytest.raises(ValueError, match=f"shrink is {shrink}: it is for images"):
        load(replace(recipe(task, "quick"), shrink=shrink), tmp_path)


def test_majority_is_the_share_of_the_most_frequent_label():
    assert majority(Dataset.from_dict({"labels": [9, 0, 9, 3, 9, 1, 0, 9]})) == 0.5


def test_evaluation_has_like_lengths_side_by_side(tmp_path):
    made, _ = load(LISTOPS, tmp_path)
    for name in ("validation", "test"):
        found = lengths(made[name], LISTOPS)
        assert (found[1:] >= found[:-1]).all()
        assert found[-1] > found[0]
    found = lengths(made["train"], LISTOPS)
    assert (found[1:] < found[:-1]).any()
