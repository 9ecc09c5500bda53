"""A corpus as token ids on disk, mapped into memory, in rows of any length."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from datasets import Dataset, DatasetDict, load_from_disk
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ...results import read_json, writable_folder, write_json
from ..files import SPLITS
from ..source import Document
from .corpus import read
from .recipes import LMRecipe
from .tokens import train_tokenizer

ABOUT, TOKENIZER = "about.json", "tokenizer"


def prepare(
    source: Path,
    out: Path,
    vocabulary: str = "bpe",
    vocab_size: int | None = None,
    held_out: int = 5,
    seed: int = 0,
) -> dict[str, Any]:
    """Read a corpus, train a tokenizer on its training split, and leave tokens and tokenizer in the
    new folder `out`; returns what `about.json` there says: layout, counts and checksums.

    Documents are read one at a time, so a corpus may be larger than memory. Where it has no
    validation or test split, `held_out` whole documents, drawn by `seed`, become one.

    Raises ValueError for an empty or malformed corpus, and FileExistsError where `out` is there.
    """
    found = read(source.expanduser())
    out = out.expanduser()
    if out.exists():
        raise FileExistsError(f"{out} is there already: delete it, or choose another --out")
    splits = _held_out(found.splits, held_out, seed)
    texts = (d.text for d in tqdm(splits["train"](), desc="tokenizer", unit="text", leave=False))
    tokenizer = train_tokenizer(vocabulary, texts, vocab_size)

    writable_folder(out.parent)
    half = Path(tempfile.mkdtemp(prefix=f".{out.name}-", dir=out.parent))
    about: dict[str, Any] = {
        "layout": found.layout,
        "vocabulary": vocabulary,
        "vocab_size": len(tokenizer),
        "splits": {},
    }
    try:
        data = DatasetDict()
        for name in SPLITS:
            file = half / f"{name}.arrow"
            about["splits"][name] = _write_split(splits[name](), tokenizer, file, name)
            data[name] = Dataset.from_file(str(file))
        data.save_to_disk(half / "data")
        tokenizer.save_pretrained(half / "data" / TOKENIZER)
        about["tokenizer"] = fingerprint(half / "data" / TOKENIZER)
        write_json(half / "data" / ABOUT, about)
        (half / "data").replace(out)
    finally:
        shutil.rmtree(half)
    return about


def fingerprint(folder: Path) -> str:
    """Of the tokenizer in a folder: two that give the same ids have the same."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: a tokenizer belongs beside data and models")
    return hashlib.sha256(file.read_bytes()).hexdigest()


Reader = Callable[[], Iterator[Document]]


def _held_out(splits: dict[str, Reader], count: int, seed: int) -> dict[str, Reader]:
    """All three splits; those that are missing are drawn from the training split."""
    missing = [name for name in SPLITS if name not in splits]
    if not missing:
        return splits
    total = sum(1 for _ in splits["train"]())
    if total <= count * len(missing) or count < 1:
        raise ValueError(
            f"the corpus has {total} documents and {count} are to be held out for each of "
            f"{' and '.join(missing)}: give another --held-out, or more documents"
        )
    drawn = np.random.default_rng(seed).permutation(total)[: count * len(missing)]
    of = {int(i): missing[at // count] for at, i in enumerate(drawn)}

    def only(name: str) -> Reader:
        return lambda: (d for i, d in enumerate(splits["train"]()) if of.get(i, "train") == name)

    return {name: only(name) if name in (*missing, "train") else splits[name] for name in SPLITS}


def _write_split(
    documents: Iterator[Document], tokenizer: PreTrainedTokenizerFast, file: Path, name: str
) -> dict[str, Any]:
    """Stream a split into an arrow file, a batch a document; its counts and checksum."""
    end, kind = tokenizer.eos_token_id, pa.uint16() if len(tokenizer) <= 2**16 else pa.uint32()
    schema = pa.schema(
        [
            ("name", pa.string()),
            ("input_ids", pa.large_list(kind)),
            ("bytes", pa.int64()),
            ("words", pa.int64()),
        ]
    )
    digest = hashlib.sha256()
    counts = {"documents": 0, "tokens": 0, "bytes": 0, "words": 0}
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for document in tqdm(documents, desc=name, unit="text", leave=False):
            raw = document.text.encode("utf-8")
            ids = np.array([*encode(tokenizer, document.text), end], kind.to_pandas_dtype())
            digest.update(len(raw).to_bytes(8, "little"))
            digest.update(raw)
            sizes = {"bytes": len(raw), "words": len(document.text.split())}
            row = [document.name], pa.LargeListArray.from_arrays([0, len(ids)], ids)
            values = [[sizes["bytes"]], [sizes["words"]]]
            writer.write_batch(pa.record_batch([pa.array(row[0]), row[1], *values], schema=schema))
            for key, size in {"documents": 1, "tokens": len(ids), **sizes}.items():
                counts[key] += size
    if not counts["documents"]:
        raise ValueError(f"{name}: the corpus has no documents for it")
    return {**counts, "sha256": digest.hexdigest()}


def encode(tokenizer: PreTrainedTokenizerFast, text: str) -> list[int]:
    """Token ids of a text, without an end."""
    ids: list[int] = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    return ids


def load(folder: Path) -> tuple[dict[str, "Tokens"], PreTrainedTokenizerFast, dict[str, Any]]:
    """What `prepare` left: tokens by split, the tokenizer, and what identifies them.

    Raises FileNotFoundError where nothing is prepared and ValueError where it is damaged.
    """
    folder = folder.expanduser()
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(
            f"no tokens in {folder}: leapformer lm prepare --source ... --out {folder}"
        )
    about = read_json(folder / ABOUT)
    try:
        data = load_from_disk(str(folder))
        splits = {name: Tokens.of(data[name]) for name in SPLITS}
        made = {name: about["splits"][name]["tokens"] for name in SPLITS}
        found = {name: len(tokens) for name, tokens in splits.items()}
        whole = found == made and fingerprint(folder / TOKENIZER) == about["tokenizer"]
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({error}): delete it and make it anew") from None
    if not whole:
        raise ValueError(f"{folder} is not as it was made: delete it and make it anew")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / TOKENIZER))
    return splits, tokenizer, about


@dataclass(frozen=True)
class Tokens:
    """Documents end to end: `tokens[a:b]` are int64 ids, whatever documents they belong to.

    Attributes:
        parts: the ids of each document, mapped from disk.
        starts: where each document begins, and the end of the last; int64 [documents + 1].
        bytes: of the text in UTF-8.
        words: between blanks.
    """

    parts: list[NDArray[Any]]
    starts: NDArray[np.int64]
    bytes: int
    words: int

    @staticmethod
    def of(data: Dataset) -> "Tokens":
        """The tokens of a split that `prepare` left."""
        lists = data.data.column("input_ids").chunks
        parts = [
            chunk.values.to_numpy(zero_copy_only=True)[a:b]
            for chunk in lists
            for a, b in pairwise(chunk.offsets.to_pylist())
        ]
        return Tokens.join(parts, int(sum(data["bytes"])), int(sum(data["words"])))

    @staticmethod
    def join(parts: list[NDArray[Any]], count_bytes: int, count_words: int) -> "Tokens":
        """Documents that are there already."""
        starts = np.cumsum([0, *map(len, parts)])
        return Tokens(parts, starts, count_bytes, count_words)

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, place: slice) -> NDArray[np.int64]:
        begin, stop, _ = place.indices(len(self))
        first = int(np.searchsorted(self.starts, begin, "right")) - 1
        found = []
        while begin < stop:
            start, end = self.starts[first], min(self.starts[first + 1], stop)
            found.append(self.parts[first][begin - start : end - start])
            begin, first = int(end), first + 1
        return np.concatenate(found).astype(np.int64) if found else np.zeros(0, np.int64)

    def first(self, count: int | None) -> "Tokens":
        """Whole documents from the start until there are `count` tokens; None for all."""
        keep = len(self.parts)
        if count is not None:
            keep = min(int(np.searchsorted(self.starts, count)), keep)
        if keep == len(self.parts):
            return self
        share = self.starts[keep] / len(self)
        return Tokens.join(self.parts[:keep], round(self.bytes * share), round(self.words * share))


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    """Rows of `length` tokens, one behind the other; what is left at the end is dropped.

    An item has `input_ids` [length] and `starts`, where documents begin inside it, 0 included.
    At most `limit` rows are taken, spread evenly.
    """

    def __init__(self, tokens: Tokens, length: int, limit: int | None = None) -> None:
        whole = len(tokens) // length
        if not whole:
            raise ValueError(
                f"the split has {len(tokens)} tokens, fewer than a row of {length}: give a smaller "
                "--sequence-length, or more text"
            )
        self.tokens, self.length = tokens, length
        self.chosen = np.linspace(0, whole, min(limit or whole, whole), False).astype(np.int64)

    def __len__(self) -> int:
        return len(self.chosen)

    def __getitem__(self, i: int) -> dict[str, Any]:
        begin = int(self.chosen[i]) * self.length
        starts = self.tokens.starts
        inside = starts[np.searchsorted(starts, begin, "right") :]
        inside = inside[: np.searchsorted(inside, begin + self.length)]
        return {
            "input_ids": torch.from_numpy(self.tokens[begin : begin + self.length]),
            "starts": [0, *(inside - begin).tolist()],
        }


@dataclass(frozen=True)
class Collator:
    """Rows to a batch: `input_ids` and `labels` [B, N]; with documents apart one packed row
    [1, B * N] with its `cu_seq_lens_q`. The first token of each row is not predicted."""

    recipe: LMRecipe

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Tensor]:
        ids = torch.stack([row["input_ids"] for row in rows])
        labels = ids.clone()
        labels[:, 0] = -100
        if self.recipe.documents == "joined":
            return {"input_ids": ids, "labels": labels}
        length = ids.shape[1]
        starts = [i * length + start for i, row in enumerate(rows) for start in row["starts"]]
        bounds = torch.tensor([*starts, ids.numel()], dtype=torch.int32)
        labels = labels.view(1, -1)
        labels[:, starts] = -100
        return {"input_ids": ids.view(1, -1), "labels": labels, "cu_seq_lens_q": bounds}
