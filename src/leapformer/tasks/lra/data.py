"""Long-Range Arena data as cached `datasets`, in batches. Padding is a mask, never a value."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as compute
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from numpy.typing import NDArray
from torch import Tensor

from ...results import writable_folder
from . import listops

SPLITS = ("train", "validation", "test")
_RELEASE = {
    "train": "basic_train.tsv",
    "validation": "basic_val.tsv",
    "test": "basic_test.tsv",
}


def load_listops(
    shape: listops.TreeShape,
    sizes: tuple[int, int, int],
    seed: int,
    cache: Path,
    source: Path | None = None,
) -> DatasetDict:
    """ListOps with columns `input_ids` and `labels`, splits train, validation, test.

    Sampled (`sizes` are those of the splits), or read from `source`, a folder with the three files
    of Long-Range Arena's release. What was made once is kept in `cache`.
    """
    wanted: dict[str, Any] = {"task": "listops", "format": 1}
    if source is None:
        wanted |= {"shape": dataclasses.asdict(shape), "sizes": sizes, "seed": seed}
        return _cached(cache, wanted, lambda: _sampled(shape, sizes, seed))
    files = {split: source / name for split, name in _RELEASE.items()}
    for file in files.values():
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is not there: --source is a folder with {', '.join(_RELEASE.values())}"
            )
    wanted["files"] = {s: hashlib.sha256(f.read_bytes()).hexdigest() for s, f in files.items()}
    return _cached(cache, wanted, lambda: _released(files))


def _sampled(shape: listops.TreeShape, sizes: tuple[int, int, int], seed: int) -> DatasetDict:
    trees, values = listops.sample(sum(sizes), shape, seed)
    # Short trees come up again and are dropped, so late samples are longer: mix before splitting.
    parts = np.split(np.random.default_rng(seed).permutation(len(trees)), np.cumsum(sizes)[:-1])
    return DatasetDict(
        {
            split: _dataset([trees[i] for i in part], values[part])
            for split, part in zip(SPLITS, parts, strict=True)
        }
    )


def _released(files: dict[str, Path]) -> DatasetDict:
    return DatasetDict({split: _dataset(*listops.read_tsv(f)) for split, f in files.items()})


def _dataset(trees: list[listops.Ids], values: NDArray[np.int64]) -> Dataset:
    ends = np.cumsum([0, *(len(tree) for tree in trees)])
    ids = pa.LargeListArray.from_arrays(pa.array(ends), pa.array(np.concatenate(trees)))
    return Dataset.from_dict({"input_ids": ids, "labels": values})


def _cached(cache: Path, wanted: dict[str, Any], make: Any) -> DatasetDict:
    """The data set that `wanted` describes. It is written beside its place and then moved there, so
    that half a data set is never taken for a whole one."""
    description = json.dumps(wanted, sort_keys=True)
    name = f"{wanted['task']}-{hashlib.sha256(description.encode()).hexdigest()[:16]}"
    place = cache.expanduser() / name
    if not place.is_dir():
        writable_folder(place.parent, "--cache")
        half = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=place.parent))
        try:
            make().save_to_disk(half / "data")
            (half / "data" / "wanted.json").write_text(description + "\n")
            if not place.is_dir():
                (half / "data").replace(place)
        finally:
            shutil.rmtree(half)
    data = load_from_disk(str(place))
    assert isinstance(data, DatasetDict)
    return data


def collate(examples: list[dict[str, Any]]) -> dict[str, Tensor]:
    """A batch: input_ids [B, N] padded with 0, attention_mask bool [B, N], labels [B]."""
    ids = [torch.as_tensor(example["input_ids"], dtype=torch.long) for example in examples]
    lengths = torch.tensor([len(x) for x in ids])
    padded = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True)
    return {
        "input_ids": padded,
        "attention_mask": torch.arange(padded.shape[1]) < lengths[:, None],
        "labels": torch.tensor([int(example["labels"]) for example in examples]),
    }


def lengths(data: Dataset) -> NDArray[np.int64]:
    """Tokens of each example, read off the table without its tokens."""
    column = data.data.column("input_ids")
    return np.asarray(compute.list_value_length(column), np.int64)


def majority(data: Dataset) -> float:
    """Accuracy of always answering with the most frequent class."""
    return float(np.bincount(data["labels"]).max() / len(data))
