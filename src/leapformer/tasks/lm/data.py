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
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ...results import read_json, writable_folder, write_json
from ..files import SPLITS
from ..source import Document
from .corpus import read
from .recipes import LMRecipe
from .tokens import pieces, train_tokenizer

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
    writable_folder(out.parent)
    splits = _held_out(found.splits, held_out, seed)
    texts = (d.text for d in tqdm(splits["train"](), desc="tokenizer", unit="text", leave=False))
    tokenizer = train_tokenizer(vocabulary, texts, vocab_size)

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
    ids: list[int] = []
    for piece in pieces(text):
        ids += tokenizer.backend_tokenizer.encode(piece, add_special_tokens=False).ids
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
        data, made = load_from_disk(str(folder)), about["splits"]
        splits = {name: Tokens.of(data[name]) for name in SPLITS}
        found = {name: {**made[name], **tokens.counts()} for name, tokens in splits.items()}
        whole = found == made and fingerprint(folder / TOKENIZER) == about["tokenizer"]
        tokenizer = PreTrainedTokenizerFast.from_pretrained(str(folder / TOKENIZER))
        whole = whole and len(tokenizer) == about["vocab_size"] and tokenizer.eos_token is not None
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({error}): delete it and make it anew") from None
    if not whole:
        raise ValueError(f"{folder} is not as it was made: delete it and make it anew")
    return splits, tokenizer, about


@dataclass(frozen=True)
class Tokens:
    """Documents end to end: `tokens[a:b]` are int64 ids, whatever documents they belong to.

    Attributes:
        parts: the ids of each document, mapped from disk.
        starts: where each document begins, and the end of the last; int64 [documents + 1].
        sizes: of the text of each document bytes in UTF-8, and words between blanks; int64
            [2, documents].
    """

    parts: list[NDArray[Any]]
    starts: NDArray[np.int64]
    sizes: NDArray[np.int64]

    @staticmethod
    def of(data: Dataset) -> "Tokens":
        """The tokens of a split that `prepare` left."""
        column = data.data.column
        parts = [
            chunk.values.to_numpy(zero_copy_only=True)[a:b]
            for chunk in column("input_ids").chunks
            for a, b in pairwise(chunk.offsets.to_pylist())
        ]
        return Tokens.join(parts, column("bytes").to_numpy(), column("words").to_numpy())

    @staticmethod
    def join(parts: list[NDArray[Any]], count_bytes: ArrayLike, count_words: ArrayLike) -> "Tokens":
        """Documents that are there already, with the sizes of each."""
        starts = np.cumsum([0, *map(len, parts)])
        sizes = np.array([count_bytes, count_words], np.int64).reshape(2, len(parts))
        return Tokens(parts, starts, sizes)

    @property
    def bytes(self) -> int:
        """Of all texts, in UTF-8."""
        return int(self.sizes[0].sum())

    @property
    def words(self) -> int:
        """Of all texts, between blanks."""
        return int(self.sizes[1].sum())

    def counts(self) -> dict[str, int]:
        """Documents, tokens, bytes and words."""
        return {
            "documents": len(self.parts),
            "tokens": len(self),
            "bytes": self.bytes,
            "words": self.words,
        }

    def __len__(self) -> int:
        return int(self.starts[-1])

    def __getitem__(self, place: slice) -> NDArray[np.int64]:
        begin, stop, step = place.indices(len(self))
        if step != 1:
            raise ValueError(f"the step is {step}: tokens are read one after the other")
        first = int(np.searchsorted(self.starts, begin, "right")) - 1
        found = []
        while begin < stop:
            start, end = self.starts[first], min(self.starts[first + 1], stop)
            found.append(self.parts[first][begin - start : end - start])
            begin, first = int(end), first + 1
        return np.concatenate([np.zeros(0, np.int64), *found])

    def first(self, count: int | None) -> "Tokens":
        """Whole documents from the start until there are `count` tokens; None for all."""
        if count is None:
            return self
        keep = min(int(np.searchsorted(self.starts, count)), len(self.parts))
        return Tokens.join(self.parts[:keep], *self.sizes[:, :keep])


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
        count = min(limit or whole, whole)
        self.chosen = np.arange(count, dtype=np.int64) * whole // count

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
