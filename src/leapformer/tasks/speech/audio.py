"""Audio files, or spans of them, as the samples that features are made of."""

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

try:
    import soundfile
    import soxr
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(
        f"{error}; reading audio needs it: pip install 'leapformer[speech]'"
    ) from None

Floats = NDArray[np.float32]

RATE = 16_000
"""Of all audio after reading, in Hz."""

_OVERHANG = 0.01
"""Seconds that a span may reach over the end of its file, for its numbers were rounded."""
_CUT = re.compile(r"^data : (\d+) \(should be \d+\)", re.MULTILINE)
"""What libsndfile notes of a WAV file that is shorter than its header says, in bytes."""
_UNKNOWN = 0x7FFFF000
"""Bytes that headers give from here on where the length was not known when writing began."""

_ENDLESS = 2**62
"""Samples that libsndfile gives from here on for a FLAC file of unknown length."""


class AudioError(ValueError):
    """Audio that is there and cannot be used: damaged, empty, or without the span asked for."""


def read_audio(path: Path, start: float = 0.0, duration: float | None = None) -> Floats:
    """`duration` seconds of a file from `start` on, the rest for None: float32 [samples] at 16 kHz.

    Reads what libsndfile does: WAV, FLAC, MP3, ... The channels are averaged; another rate is
    resampled by soxr (its "HQ" filter), the span by itself, so that samples beside it change
    nothing. Lossy files may exceed [-1, 1] slightly. An MP3 file of variable bit rate needs the
    header that LAME and ffmpeg write (Xing): without it its length is only guessed.

    Raises FileNotFoundError for a missing file, and AudioError for one that is empty, no audio,
    truncated, of unknown length, or holds NaN or infinity, and for a span that does not lie inside
    it; all name it. That a file is truncated is noticed of WAV, FLAC and MP3 alone: of RF64, W64,
    AIFF, AU, NIST and Ogg files libsndfile gives what is there.
    """
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such audio file")
    if not path.stat().st_size:
        raise AudioError(f"{path}: the file is empty (0 bytes): fetch it again")
    try:
        with soundfile.SoundFile(path) as file:
            rate = file.samplerate
            begin, count = _span(file, path, start, duration)
            file.seek(begin)
            found = file.read(count, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, TypeError) as error:  # TypeError: .raw, samples alone
        raise AudioError(f"{path}: cannot be read as audio ({error}): fetch it again") from None
    if len(found) < count:
        raise AudioError(
            f"{path}: truncated, {len(found) / rate:.3f} s of {count / rate:.3f} s are there: "
            "fetch it again"
        )
    if not np.isfinite(found).all():
        raise AudioError(f"{path}: holds NaN or infinity: make it anew")
    mono = found.mean(1) if found.shape[1] > 1 else found[:, 0]
    return mono if rate == RATE else soxr.resample(mono, rate, RATE)


def _span(file: Any, path: Path, start: float, duration: float | None) -> tuple[int, int]:
    """First sample and number of samples, after a look at whether they are there."""
    rate, total = file.samplerate, file.frames
    if total >= _ENDLESS:
        raise AudioError(
            f"{path}: its header does not say how long it is, as of FLAC from a pipe: decode "
            "and encode it anew"
        )
    cut = _CUT.search(file.extra_info)
    if cut is not None and int(cut[1]) < _UNKNOWN:
        raise AudioError(
            f"{path}: truncated, its header promises {int(cut[1]):,} bytes of samples and only "
            f"{total / rate:.3f} s are there: fetch it again"
        )
    if not total:
        raise AudioError(f"{path}: no samples in it: fetch it again")
    begin = round(start * rate)
    count = total - begin if duration is None else round(duration * rate)
    if not 0 <= begin < total or count < 1 or begin + count > total + _OVERHANG * rate:
        length = "the rest" if duration is None else f"{duration:g} s"
        raise AudioError(
            f"{path}: lasts {total / rate:.3f} s, it has no span of {length} from {start:g} s on"
        )
    return begin, min(count, total - begin)
