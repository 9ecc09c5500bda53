"""Data sets: made once, kept whole, split without overlap, batched with a mask."""

import shutil
from pathlib import Path

import pytest
import torch
from datasets import Dataset, DatasetDict

from leapformer.tasks.lra import data, listops
from leapformer.tasks.lra.data import collate, load_listops, majority

SHAPE = listops.TreeShape(min_length=4, max_length=40, max_depth=3, max_arguments=4)
SIZES = (60, 20, 10)


def texts(split: Dataset) -> list[bytes]:
    return [bytes(ids) for ids in split["input_ids"]]


def columns(made: DatasetDict) -> dict[str, dict[str, list]]:
    return {name: split.to_dict() for name, split in made.items()}


def kept(cache: Path) -> list[Path]:
    """What could be taken for a data set; hidden folders are never looked at."""
    return [path for path in cache.glob("*") if not path.name.startswith(".")]


def test_splits_are_disjoint_and_hold_trees_with_their_values(tmp_path):
    made = load_listops(SHAPE, SIZES, 0, tmp_path)
    assert {name: len(split) for name, split in made.items()} == {
        "train": 60,
        "validation": 20,
        "test": 10,
    }
    assert len({text for split in made.values() for text in texts(split)}) == sum(SIZES)
    for split in made.values():
        for row in split:
            assert listops.evaluate(listops.decode(row["input_ids"])) == row["labels"]


def test_every_split_has_its_share_of_short_trees(tmp_path):
    # The few short trees there are turn up first: unmixed, the training split would hold them all.
    shape = listops.TreeShape(min_length=0, max_length=40, max_depth=3, max_arguments=2)
    made = load_listops(shape, (2000, 500, 500), 0, tmp_path)
    shares = [sum(len(x) <= 4 for x in texts(split)) / len(split) for split in made.values()]
    assert min(shares) > 0.6 * max(shares)


def test_second_call_reads_the_cache(tmp_path, monkeypatch):
    made = load_listops(SHAPE, SIZES, 0, tmp_path)
    monkeypatch.setattr(listops, "sample", lambda *_: pytest.fail("sampled again"))
    assert columns(load_listops(SHAPE, SIZES, 0, tmp_path)) == columns(made)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"sizes": (61, 20, 10)},
        {"shape": listops.TreeShape(5, 40, 3, 4)},
    ],
    ids=["seed", "sizes", "shape"],
)
def test_another_data_set_is_not_taken_from_the_cache(tmp_path, other):
    wanted = {"shape": SHAPE, "sizes": SIZES, "seed": 0, "cache": tmp_path}
    assert columns(load_listops(**wanted)) != columns(load_listops(**{**wanted, **other}))


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
            load_listops(SHAPE, SIZES, 0, tmp_path)

    assert kept(tmp_path) == []
    assert killed or list(tmp_path.iterdir()) == []
    assert len(load_listops(SHAPE, SIZES, 0, tmp_path)["test"]) == SIZES[2]
    assert len(kept(tmp_path)) == 1


def test_released_files_are_read_and_read_anew_where_they_changed(tmp_path, released):
    first = load_listops(SHAPE, SIZES, 0, tmp_path / "c", released("( ( ( [MAX 2 ) 9 ) ] )\t9\n"))
    assert listops.decode(first["test"][0]["input_ids"]) == ["[MAX", "2", "9", "]"]
    second = load_listops(SHAPE, SIZES, 0, tmp_path / "c", released("( ( ( [MIN 2 ) 9 ) ] )\t2\n"))
    assert second["train"]["labels"][:] == [2]


def test_source_without_the_files_names_what_is_expected(tmp_path, released):
    source = released("7\t7\n")
    (source / "basic_val.tsv").unlink()
    with pytest.raises(FileNotFoundError, match=r"basic_val\.tsv is not there.*basic_test\.tsv"):
        load_listops(SHAPE, SIZES, 0, tmp_path, source)


def test_a_batch_is_padded_under_a_mask():
    rows = [[3, 1], [5], [2, 4, 6, 8]]
    batch = collate([{"input_ids": ids, "labels": i} for i, ids in enumerate(rows)])
    assert batch["labels"].tolist() == [0, 1, 2]
    assert batch["input_ids"].dtype == batch["labels"].dtype == torch.long
    assert batch["attention_mask"].dtype == torch.bool
    assert batch["attention_mask"].sum(-1).tolist() == [2, 1, 4]
    for ids, padded, mask in zip(rows, batch["input_ids"], batch["attention_mask"], strict=True):
        assert padded[mask].tolist() == ids
        assert not padded[~mask].any()
        assert (mask[:-1] >= mask[1:]).all()  # real tokens first


def test_majority_is_the_share_of_the_most_frequent_label():
    assert majority(Dataset.from_dict({"labels": [9, 0, 9, 3, 9, 1, 0, 9]})) == 0.5
