"""Features of utterances into a file, and the statistics that normalise them."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tqdm import tqdm

from ...models import LeaPformerFeatureExtractor
from .audio import RATE, AudioError, Floats, read_audio
from .utterance import Utterance

LEAST_FRAMES = 4
"""The encoder makes one state of so many."""

_TOGETHER = 64
"""Utterances of a batch on disk."""
_NAMED = 5
"""Of the utterances that are left out, in a message."""
_SCHEMA = pa.schema(
    [
        ("id", pa.string()),
        ("audio", pa.string()),
        ("start", pa.float64()),
        ("duration", pa.float64()),
        ("samples", pa.int64()),
        ("frames", pa.int64()),
        ("transcript", pa.string()),
        ("translation", pa.string()),
        ("input_features", pa.large_list(pa.float32())),
    ]
)


class Moments:
    """Mean and deviation of each bin over all frames, summed in float64."""

    def __init__(self, bins: int) -> None:
        self.count = 0
        self.sums, self.squares = np.zeros(bins), np.zeros(bins)

    def add(self, frames: Floats) -> None:
        """Frames [T, bins]."""
        wide = frames.astype(np.float64)
        self.count += len(wide)
        self.sums += wide.sum(0)
        self.squares += np.square(wide).sum(0)

    def statistics(self) -> tuple[list[float], list[float]]:
        """Mean and standard deviation; a bin that never changes has a deviation of 1."""
        mean = self.sums / self.count
        std = np.sqrt(np.maximum(self.squares / self.count - np.square(mean), 0))
        return mean.tolist(), np.where(std < 1e-4, 1, std).tolist()


def write_split(
    utterances: list[Utterance], file: Path, name: str, max_bad: float, moments: Moments | None
) -> dict[str, Any]:
    """Write features, texts and whereabouts of a split into an arrow file, a few at a time.

    An utterance whose audio cannot be used, that is too short, or has no text, is left out, and a
    warning says how many and which. Audio beside the file is named relative to it.

    Args:
        utterances: of the split.
        file: to be written.
        name: of the split.
        max_bad: the share of them that may be left out.
        moments: takes in the features; None for none.

    Returns: counts, hours, a checksum of texts and features, and the names of what was left out.

    Raises ValueError where more is left out, as soon as that is known, and FileNotFoundError for
    audio that is missing.
    """
    extractor, digest = LeaPformerFeatureExtractor(), hashlib.sha256()
    bad: list[str] = []
    counts = {"utterances": 0, "frames": 0, "samples": 0}
    rows: list[tuple[Any, ...]] = []
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, _SCHEMA) as writer:
        for each in tqdm(utterances, desc=name, unit="utterance", leave=False):
            try:
                audio = _usable(each, extractor)
            except AudioError as error:
                bad.append(f"{each.id} ({error})")
                if len(bad) > max_bad * len(utterances):
                    raise ValueError(
                        f"{name}: {_listed(bad, len(utterances))}: more than --max-bad "
                        f"{max_bad:g} allows"
                    ) from None
                continue
            frames = extractor.stream().push(audio)
            if moments is not None:
                moments.add(frames)
            words = (each.id, each.transcript, each.translation)
            for part in (*(word.encode("utf-8") for word in words), frames.tobytes()):
                digest.update(len(part).to_bytes(8, "little"))
                digest.update(part)
            sizes = {"utterances": 1, "frames": len(frames), "samples": len(audio)}
            for key, size in sizes.items():
                counts[key] += size
            rows.append((each, _place(each.audio, file.parent), len(audio), frames))
            if len(rows) == _TOGETHER:
                writer.write_batch(_batch(rows))
                rows.clear()
        if rows:
            writer.write_batch(_batch(rows))
    if not counts["utterances"]:
        raise ValueError(f"{name}: {_listed(bad, len(utterances))}: none is left")
    if bad:
        warnings.warn(f"{name}: {_listed(bad, len(utterances))}", stacklevel=3)
    hours = round(counts["samples"] / RATE / 3600, 3)
    return {**counts, "hours": hours, "sha256": digest.hexdigest(), "left_out": bad}


def _usable(each: Utterance, extractor: LeaPformerFeatureExtractor) -> Floats:
    for kind in ("transcript", "translation"):
        if not getattr(each, kind):
            raise AudioError(f"it has no {kind}")
    audio = read_audio(each.audio, each.start, each.duration)
    if extractor.frames(len(audio)) < LEAST_FRAMES:
        raise AudioError(
            f"{len(audio) / RATE:.3f} s are too short, {LEAST_FRAMES} frames are least"
        )
    return audio


def _place(audio: Path, beside: Path) -> str:
    inside = audio.is_relative_to(beside)
    return (audio.relative_to(beside) if inside else audio.absolute()).as_posix()


def _listed(bad: list[str], total: int) -> str:
    more = f" and {len(bad) - _NAMED} more" if len(bad) > _NAMED else ""
    return f"{len(bad)} of {total} utterances left out: {'; '.join(bad[:_NAMED])}{more}"


def _batch(rows: list[tuple[Any, ...]]) -> pa.RecordBatch:
    utterances, audio, samples, frames = zip(*rows, strict=True)
    columns = [
        [each.id for each in utterances],
        audio,
        [each.start for each in utterances],
        [each.duration for each in utterances],
        samples,
        [len(each) for each in frames],
        [each.transcript for each in utterances],
        [each.translation for each in utterances],
    ]
    arrays = [pa.array(x, kind.type) for x, kind in zip(columns, _SCHEMA, strict=False)]
    values = pa.array(np.concatenate([each.ravel() for each in frames]))
    ends = pa.array(np.cumsum([0, *(each.size for each in frames)]), pa.int64())
    arrays.append(pa.LargeListArray.from_arrays(ends, values))
    return pa.record_batch(arrays, schema=_SCHEMA)
