"""Prepared speech: features and texts of utterances, mapped from disk."""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerFast

from ...models import LeaPformerFeatureExtractor, LeaPformerSpeechProcessor
from ...results import read_json
from ..files import SPLITS

ABOUT, PROCESSOR, TRANSCRIPTS = "about.json", "processor", "transcript_tokenizer"
COUNTED = ("utterances", "frames", "samples")

_COLUMNS = ("id", "audio", "start", "duration", "samples", "transcript", "translation")


class Utterances(torch.utils.data.Dataset[dict[str, Any]]):
    """A split: utterances in the order of the corpus, their features mapped from disk.

    An item has `input_features`, float32 [T, bins] normalised as by the processor, `transcript` and
    `translation`, `id`, and where it is heard: the path `audio`, `start` and `duration` in seconds
    (None for the rest of the file), as `read_audio` takes them, and how many `samples` that gives.

    Args:
        table: what `prepare` wrote.
        folder: where; audio files of the corpus itself may lie in it.
        extractor: normalises.

    Attributes:
        frames: T of each utterance, int64.
    """

    def __init__(self, table: Dataset, folder: Path, extractor: LeaPformerFeatureExtractor) -> None:
        self.table, self.folder, self.extractor = table, folder, extractor
        self.frames: NDArray[np.int64] = table.data.column("frames").to_numpy()
        sizes = [len(chunk) for chunk in self._features().chunks]
        self.starts = np.cumsum([0, *sizes])

    def _features(self) -> Any:
        return self.table.data.column("input_features")

    def counts(self) -> dict[str, int]:
        """Utterances, frames and samples; raises ValueError where features and frames differ."""
        chunks = self._features().chunks
        values = sum(chunk.offsets[-1].as_py() - chunk.offsets[0].as_py() for chunk in chunks)
        frames = int(self.frames.sum())
        if values != frames * self.extractor.feature_size:
            raise ValueError(f"{values} features for {frames} frames")
        samples = int(self.table.data.column("samples").to_numpy().sum())
        return dict(zip(COUNTED, (len(self), frames, samples), strict=True))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, i: int) -> dict[str, Any]:
        i = range(len(self))[i]
        at = int(np.searchsorted(self.starts, i, "right")) - 1
        inside, column = i - int(self.starts[at]), self.table.data.column
        row = {name: column(name).chunk(at)[inside].as_py() for name in _COLUMNS}
        chunk = self._features().chunk(at)
        begin, end = (chunk.offsets[k].as_py() for k in (inside, inside + 1))
        values = chunk.values.to_numpy(zero_copy_only=True)[begin:end]
        return {
            **row,
            "audio": self.folder / row["audio"],
            "input_features": self.extractor.normalize(values.reshape(int(self.frames[i]), -1)),
        }


@dataclass(frozen=True)
class SpeechData:
    """What `prepare` left.

    Attributes:
        splits: train, validation and test.
        processor: the feature extractor with the statistics of the training split, and the
            tokenizer of translations.
        transcript_tokenizer: of transcripts, for speech recognition.
        about: layout, counts and checksums.
    """

    splits: dict[str, Utterances]
    processor: LeaPformerSpeechProcessor
    transcript_tokenizer: PreTrainedTokenizerFast
    about: dict[str, Any]


def fingerprint(folder: Path) -> str:
    """Of the files of a folder, by name and content."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir(), key=lambda file: file.name):
        content = file.read_bytes()
        digest.update(f"{file.name}\n{len(content)}\n".encode())
        digest.update(content)
    return digest.hexdigest()


def load(folder: Path) -> SpeechData:
    """Read what `prepare` left; features stay on disk until they are asked for.

    Raises FileNotFoundError where nothing is prepared and ValueError where it is damaged.
    """
    folder = folder.expanduser()
    if not (folder / ABOUT).is_file():
        raise FileNotFoundError(
            f"no prepared speech in {folder}: leapformer speech prepare --source ... --out {folder}"
        )
    about = read_json(folder / ABOUT)
    try:
        made = {name: [about["splits"][name][key] for key in COUNTED] for name in SPLITS}
        whole = {name: fingerprint(folder / name) for name in (PROCESSOR, TRANSCRIPTS)}
        if whole != about["checksums"]:
            raise ValueError("the processor or the tokenizer was changed")
        processor = LeaPformerSpeechProcessor.from_pretrained(str(folder / PROCESSOR))
        transcripts = PreTrainedTokenizerFast.from_pretrained(str(folder / TRANSCRIPTS))
        splits = {
            name: Utterances(
                Dataset.from_file(str(folder / f"{name}.arrow")),
                folder,
                processor.feature_extractor,
            )
            for name in SPLITS
        }
        found = {name: list(split.counts().values()) for name, split in splits.items()}
        if found != made:
            raise ValueError(f"it holds {found} {', '.join(COUNTED)} of {made}")
    except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder} is damaged ({error}): delete it and make it anew") from None
    return SpeechData(splits, processor, transcripts, about)
