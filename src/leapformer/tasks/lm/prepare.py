"""A corpus of texts to token ids on disk, with the tokenizer that made them."""

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from datasets import Dataset, DatasetDict
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast

from ...results import writable_folder, write_json
from ..files import SPLITS
from ..pretrained import fingerprint
from ..source import Document
from .corpus import read
from .data import ABOUT, TOKENIZER, encode
from .tokens import train_tokenizer

Reader = Callable[[], Iterator[Document]]


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
    texts = (document.text for document in splits["train"]())
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
