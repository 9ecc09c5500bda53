"""Long-Range Arena data as cached `datasets`, in batches. Padding is a mask, never a value."""

import dataclasses
import hashlib
import json
import math
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from ... import plots
from ...ops.checks import known
from ...results import read_json, writable_folder, write_json
from ..processes import processes
from ..source import Example
from . import listops, pathfinder
from .recipes import Recipe
from .tasks import TASKS, Task

COLUMNS = ("input_ids", "second_ids")
_ABOUT = "about.json"
_SAMPLERS = 3
"""Raised whenever a sampler makes other examples of the same seed: kept ones are not used then."""


def prepare(task: str, source: Path, out: Path, partial: bool = False) -> dict[str, Any]:
    """Read a source as its user has it, check it, and leave it as `datasets` in the new folder
    `out`; returns what `about.json` there says: layout, counts, classes and checksums.

    Raises ValueError where the source is malformed, and, unless `partial`, where a published
    release has not as many examples as it should.
    """
    known("task", task, TASKS)
    found = TASKS[task].read(source.expanduser())

    def check(counts: dict[str, int]) -> None:
        if found.official is not None and counts != found.official and not partial:
            raise ValueError(
                f"{source} holds {counts} examples and the release ({found.layout}) has "
                f"{found.official}: files are missing, or give --partial"
            )

    out = out.expanduser()
    if out.exists():
        raise FileExistsError(f"{out} is there already: delete it, or choose another --out")
    splits = {name: examples() for name, examples in found.splits.items()}
    return _write(out, task, {"layout": found.layout}, splits, "--out", check)


def load(recipe: Recipe, folder: Path) -> tuple[DatasetDict, dict[str, Any]]:
    """The recipe's splits train, validation and test, and what identifies them.

    Prepared data are read from `folder/<task>`; others are sampled once and kept in `folder`.
    Raises ValueError where there are fewer examples, or longer ones, than the recipe asks for.
    """
    task = TASKS[recipe.task]
    if recipe.shrink > 1 and (task.side is None or task.side % recipe.shrink):
        raise ValueError(f"shrink is {recipe.shrink}: it is for images, and divides their side")
    folder = folder.expanduser()
    place = folder / recipe.task
    with processes().main_process_first():
        if recipe.prepared:
            if not (place / _ABOUT).is_file():
                raise FileNotFoundError(
                    f"no data for {recipe.task} in {place}: leapformer lra prepare --task "
                    f"{recipe.task} --source ... --out {place}"
                )
        else:
            place = _sampled(recipe, folder)
    about = read_json(place / _ABOUT)
    try:
        kind, data = about["task"], load_from_disk(str(place))
        made = {name: split["examples"] for name, split in about["splits"].items()}
        found = {name: len(split) for name, split in data.items()}
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{place} is damaged ({error}): delete it and make it anew") from None
    if found != made:
        raise ValueError(f"{place} holds {found} examples of {made}: delete it and make it anew")
    if kind != recipe.task:
        raise ValueError(f"{place} holds data for {kind}, not for {recipe.task}")
    data = _chosen(data, recipe)
    for split in data.values():
        _check_lengths(split, recipe)
    return data, about


def _sampled(recipe: Recipe, folder: Path) -> Path:
    """Where the sampled data lie, made if they are not there yet."""
    shape = recipe.trees or recipe.curves
    if shape is None or recipe.train_examples is None or recipe.test_examples is None:
        raise ValueError(
            f"the recipe does not say what to sample for {recipe.task}: give --prepared and data "
            "made by leapformer lra prepare"
        )
    sizes = (recipe.train_examples, recipe.validation_examples, recipe.test_examples)
    wanted = {
        "layout": "sampled",
        "shape": dataclasses.asdict(shape),
        "sizes": sizes,
        "seed": recipe.data_seed,
    }
    digest = hashlib.sha256(json.dumps([recipe.task, _SAMPLERS, wanted]).encode()).hexdigest()[:16]
    place = folder / f"{recipe.task}-{digest}"
    if not (place / _ABOUT).is_file():
        writable_folder(folder, "--data")
        rows: Any
        if isinstance(shape, listops.TreeShape):
            rows, labels = listops.sample(sum(sizes), shape, recipe.data_seed)
        else:
            rows, labels = pathfinder.sample(sum(sizes), shape, recipe.data_seed)
        # Short trees come up again and are dropped, so late ones are longer: mix before splitting.
        order = np.random.default_rng(recipe.data_seed).permutation(len(rows))
        parts = np.split(order, np.cumsum(sizes)[:-1])
        splits = {
            name: (((rows[i].tobytes(),), int(labels[i])) for i in part)
            for name, part in zip(("train", "validation", "test"), parts, strict=True)
        }
        _write(place, recipe.task, wanted, splits, "--data")
    return place


def _write(
    place: Path,
    task: str,
    about: dict[str, Any],
    splits: Mapping[str, Iterator[Example]],
    option: str,
    check: Callable[[dict[str, int]], None] = lambda counts: None,
) -> dict[str, Any]:
    """Write the examples beside their place and then move them there, so that half a data set is
    never taken for a whole one. `about.json` gets counts, classes and checksums a split."""
    writable_folder(place.parent, option)
    half = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
    about = {"task": task, **about, "splits": {}}
    try:
        data = DatasetDict()
        for name, examples in splits.items():
            file = half / f"{name}.arrow"
            about["splits"][name] = _write_split(TASKS[task], examples, file, f"{task}, {name}")
            data[name] = Dataset.from_file(str(file))
        check({name: split["examples"] for name, split in about["splits"].items()})
        data.save_to_disk(half / "data")
        if TASKS[task].side is not None:
            _picture(data["train"], half / "data" / "samples.png")
        write_json(half / "data" / _ABOUT, about)
        if not place.exists():
            (half / "data").replace(place)
    finally:
        shutil.rmtree(half)
    return about


def _write_split(task: Task, examples: Iterable[Example], file: Path, label: str) -> dict[str, Any]:
    """Stream a split into an arrow file; how many examples, of which class, and their checksum."""
    columns = COLUMNS[: 2 if task.pair else 1]
    schema = pa.schema(
        [
            *((name, pa.large_list(pa.uint8())) for name in columns),
            ("labels", pa.int64()),
            ("length", pa.int64()),
        ]
    )
    digest, classes = hashlib.sha256(), [0] * task.num_labels
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        rows: list[Example] = []

        def flush() -> None:
            arrays = [_lists([sequences[i] for sequences, _ in rows]) for i in range(len(columns))]
            arrays.append(pa.array([answer for _, answer in rows], pa.int64()))
            arrays.append(pa.array([max(map(len, sequences)) for sequences, _ in rows], pa.int64()))
            writer.write_batch(pa.record_batch(arrays, schema=schema))
            rows.clear()

        for sequences, answer in tqdm(examples, desc=label, unit="example", leave=False):
            for sequence in sequences:
                digest.update(len(sequence).to_bytes(8, "little"))
                digest.update(sequence)
            digest.update(bytes([answer]))
            classes[answer] += 1
            rows.append((sequences, answer))
            if len(rows) == 1000:
                flush()
        flush()
    if not sum(classes):
        raise ValueError(f"{label}: no examples")
    return {"examples": sum(classes), "classes": classes, "sha256": digest.hexdigest()}


def _picture(data: Dataset, path: Path) -> None:
    """The first pictures of each class, to look at."""
    labels = np.asarray(data["labels"])
    rows = []
    for label in np.unique(labels):
        first = data.select(np.flatnonzero(labels == label)[:8])
        rows.append((f"label {label}", first["input_ids"][:]))
    plots.samples(rows, math.isqrt(int(data[0]["length"])), path)


def _lists(sequences: list[bytes]) -> pa.LargeListArray:
    ends = np.cumsum([0, *map(len, sequences)])
    values = np.frombuffer(b"".join(sequences), np.uint8)
    return pa.LargeListArray.from_arrays(pa.array(ends, pa.int64()), pa.array(values))


def _chosen(data: DatasetDict, recipe: Recipe) -> DatasetDict:
    """As many examples of each split as the recipe asks for, drawn by its data seed. Validation is
    carved from the training split where the source has none; never from the test split."""
    wanted = {
        "train": recipe.train_examples,
        "validation": recipe.validation_examples,
        "test": recipe.test_examples,
    }
    drawn = {
        name: np.random.default_rng(recipe.data_seed).permutation(len(split))
        for name, split in data.items()
    }
    if "validation" not in data:
        carved = min(recipe.validation_examples, len(data["train"]) - 1)
        drawn["validation"], drawn["train"] = np.split(drawn["train"], [carved])
    chosen = DatasetDict()
    for name, count in reversed(wanted.items()):
        have = len(drawn[name])
        if count is not None and count > have:
            raise ValueError(
                f"{recipe.task} has {have} examples for {name} and the recipe asks for {count}: "
                f"give --{name}-examples {have} or fewer"
            )
        split = data[name] if name in data else data["train"]
        order = np.sort(drawn[name][:count])
        if name != "train":  # like lengths side by side: evaluation pads less
            order = order[np.asarray(split["length"])[order].argsort(kind="stable")]
        chosen[name] = split.select(order)
    return chosen


def _check_lengths(split: Dataset, recipe: Recipe) -> None:
    longest = int(lengths(split, recipe).max())
    if longest > recipe.max_length:
        raise ValueError(
            f"the longest sequence has {longest} tokens and the recipe allows for "
            f"{recipe.max_length}: give --max-length {longest}"
        )


@dataclasses.dataclass(frozen=True)
class Collator:
    """Examples to a batch: input_ids [B, N] (of pairs [B, 2, N]), cut to the recipe's length and
    padded on the right; attention_mask bool alike, True for real tokens, left out where all are;
    labels [B]."""

    recipe: Recipe

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        columns = [name for name in COLUMNS if name in examples[0]]
        rows = [self._tokens(example[name]) for example in examples for name in columns]
        ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).long()
        sizes = torch.tensor([len(row) for row in rows])
        batch = {"input_ids": ids}
        if (sizes < ids.shape[1]).any():
            batch["attention_mask"] = torch.arange(ids.shape[1]) < sizes[:, None]
        if len(columns) > 1:
            batch = {name: x.unflatten(0, (-1, len(columns))) for name, x in batch.items()}
        batch["labels"] = torch.tensor([int(example["labels"]) for example in examples])
        return batch

    def _tokens(self, ids: Any) -> Tensor:
        row = torch.as_tensor(ids)[: self.recipe.max_length * self.recipe.shrink**2]
        if self.recipe.shrink == 1:
            return row
        side = int(len(row) ** 0.5)
        image = row.float().view(1, 1, side, side)
        return torch.nn.functional.avg_pool2d(image, self.recipe.shrink).round().flatten()


def lengths(data: Dataset, recipe: Recipe) -> NDArray[np.int64]:
    """Tokens that the model sees of each example, of its longer sequence where it has two."""
    found = np.asarray(data["length"], np.int64) // recipe.shrink**2
    return found.clip(max=recipe.max_length) if TASKS[recipe.task].cut else found


def majority(data: Dataset) -> float:
    """Accuracy of always answering with the most frequent class."""
    return float(np.bincount(data["labels"]).max() / len(data))
