"""Log-mel features of speech, of whole utterances or of audio as it comes in: the same ones."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from transformers import BatchFeature, SequenceFeatureExtractor

Samples = NDArray[Any]
Floats = NDArray[np.float32]

_LOUDEST = 100.0
"""Beyond it samples were hardly meant to lie in [-1, 1]: 16-bit integers turned to floats."""


class LeaPformerFeatureExtractor(SequenceFeatureExtractor):
    """Audio to log-mel filterbanks, each bin normalised by statistics of the training data (global
    CMVN; those of a single utterance could not be streamed).

    Windows lie wholly inside the audio (Kaldi's `snip_edges`), so the last samples may belong to
    none. Padding is 0 after normalisation: the mean. Kaldi's defaults hold for all else (Povey
    window, pre-emphasis 0.97, mel scale from 20 Hz up).

    Args:
        feature_size: mel bins.
        sampling_rate: of the audio, in Hz; audio of another rate is refused.
        padding_value: what stands behind the end of the shorter utterances of a batch.
        window_ms: length of a window.
        shift_ms: from one window to the next.
        dither: of the noise added to each window; only without it are features repeatable.
        scale: what samples in [-1, 1] are multiplied by.
        mean: of each bin, `feature_size` floats; None for zeros.
        std: of each bin, alike, above 0; None for ones.

    Raises ModuleNotFoundError where kaldi-native-fbank is not installed, naming the extra, and
    ValueError for statistics of another size and for padding that comes first.
    """

    model_input_names = ("input_features", "attention_mask")

    def __init__(
        self,
        feature_size: int = 80,
        sampling_rate: int = 16_000,
        padding_value: float = 0.0,
        window_ms: float = 25.0,
        shift_ms: float = 10.0,
        dither: float = 0.0,
        scale: float = 32_768.0,
        mean: list[float] | None = None,
        std: list[float] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(feature_size, sampling_rate, padding_value, **kwargs)
        if self.padding_side != "right":
            raise ValueError(f"padding_side is {self.padding_side!r}: padding comes last, 'right'")
        self.window_ms, self.shift_ms = window_ms, shift_ms
        self.dither, self.scale = dither, scale
        self.mean = [0.0] * feature_size if mean is None else [float(x) for x in mean]
        self.std = [1.0] * feature_size if std is None else [float(x) for x in std]
        for name, found in (("mean", self.mean), ("std", self.std)):
            if len(found) != feature_size or not np.isfinite(found).all():
                raise ValueError(
                    f"{name} has {len(found)} numbers: expected {feature_size} finite ones, "
                    "one a bin"
                )
        if min(self.std, default=1.0) <= 0:
            raise ValueError(f"the least std is {min(self.std)}: expected numbers above 0")
        _fbank()

    @property
    def window(self) -> int:
        """Samples of a window."""
        return int(self.sampling_rate * 0.001 * self.window_ms)

    @property
    def shift(self) -> int:
        """Samples from one window to the next."""
        return int(self.sampling_rate * 0.001 * self.shift_ms)

    def frames(self, samples: int) -> int:
        """How many frames so many samples give."""
        return max(0, (samples - self.window) // self.shift + 1)

    def __call__(
        self,
        audio: Samples | list[Samples],
        sampling_rate: int | None = None,
        padding: bool | str = True,
        max_length: int | None = None,
        truncation: bool = False,
        pad_to_multiple_of: int | None = None,
        return_attention_mask: bool | None = None,
        return_tensors: str | None = None,
    ) -> BatchFeature:
        """Features of a batch of utterances, padded.

        Args:
            audio: a list of 1-D arrays of floats in [-1, 1] of any lengths, or one array.
            sampling_rate: of the audio, in Hz, to be checked; None says that it is the expected.
            padding, max_length, truncation, pad_to_multiple_of, return_attention_mask,
            return_tensors: as of every extractor of the library; lengths count frames.

        Returns: `input_features` float32 [B, T, feature_size] and `attention_mask` [B, T], 1 for
        real frames.

        Raises ValueError for another rate, for audio that is not 1-D, not finite, far louder than 1
        or too short for one frame, and TypeError for integers; both say which of the batch it is.
        """
        if sampling_rate not in (None, self.sampling_rate):
            raise ValueError(
                f"the audio has {sampling_rate} Hz: expected {self.sampling_rate} Hz "
                f"({self.sampling_rate / 1000:g} kHz), resample it first"
            )
        batch = list(audio) if isinstance(audio, (list, tuple)) else [audio]
        rows = []
        for i, each in enumerate(batch):
            name = f"audio[{i}]"
            samples = check_samples(each, name)
            if not self.frames(len(samples)):
                raise ValueError(
                    f"{name} has {len(samples)} samples: expected at least {self.window}, "
                    f"one window of {self.window_ms:g} ms"
                )
            rows.append(self.stream().push(samples))
        return self.pad(
            BatchFeature({"input_features": rows}),
            padding=padding,
            max_length=max_length,
            truncation=truncation,
            pad_to_multiple_of=pad_to_multiple_of,
            return_attention_mask=return_attention_mask,
            return_tensors=return_tensors,
        )

    def normalize(self, frames: Floats) -> Floats:
        """Features [T, feature_size] as filterbanks give them to those that a model takes."""
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        normal: Floats = (frames - mean) / std
        return normal

    def stream(self) -> "FeatureStream":
        """A new stream of audio, to be pushed piece by piece."""
        return FeatureStream(self)


class FeatureStream:
    """Features of audio as it comes in; `LeaPformerFeatureExtractor.stream` makes one.

    The frames of all calls, one behind the other, are those of the extractor for the whole audio,
    bit for bit, however it was cut. Less than a window of samples is kept between calls: at the end
    there is nothing more to give, since a window that the audio ends in is none.
    """

    def __init__(self, extractor: LeaPformerFeatureExtractor) -> None:
        library = _fbank()
        options = library.FbankOptions()
        options.frame_opts.samp_freq = extractor.sampling_rate
        options.frame_opts.frame_length_ms = extractor.window_ms
        options.frame_opts.frame_shift_ms = extractor.shift_ms
        options.frame_opts.dither = extractor.dither
        options.frame_opts.snip_edges = True
        options.mel_opts.num_bins = extractor.feature_size
        self.extractor = extractor
        self._fbank = library.OnlineFbank(options)
        self._given = 0

    def push(self, samples: Samples) -> Floats:
        """Take more samples, 1-D floats in [-1, 1], also none; gives the frames that are now whole,
        float32 [T, feature_size]. Raises as `check_samples` does, and takes nothing then."""
        scaled = check_samples(samples) * np.float32(self.extractor.scale)
        self._fbank.accept_waveform(self.extractor.sampling_rate, scaled)
        ready = self._fbank.num_frames_ready
        frames = np.empty((ready - self._given, self.extractor.feature_size), np.float32)
        for row, i in enumerate(range(self._given, ready)):
            frames[row] = self._fbank.get_frame(i)
        self._fbank.pop(len(frames))
        self._given = ready
        return self.extractor.normalize(frames)


def check_samples(audio: Samples, name: str = "samples") -> Floats:
    """The samples as float32 [n]. Raises ValueError for what is not 1-D, not finite or far louder
    than 1, and TypeError for integers."""
    found = np.asarray(audio)
    if found.ndim != 1:
        raise ValueError(
            f"{name} is {list(found.shape)}: expected one channel, [samples]; average the channels "
            "first, and give several utterances as a list"
        )
    if found.dtype.kind != "f":
        how = "convert it to float samples in [-1, 1]"
        if found.dtype.kind == "i":
            how = f"convert it with x.astype('float32') / {np.iinfo(found.dtype).max + 1}"
        raise TypeError(f"{name} is {found.dtype}: expected floating point, {how}")
    peak = float(np.abs(found).max(initial=0))
    if not np.isfinite(peak):
        raise ValueError(f"{name} holds NaN or infinity: expected samples in [-1, 1]")
    if peak > _LOUDEST:
        raise ValueError(
            f"{name} reaches {peak:g}: expected samples in [-1, 1]; divide what were 16-bit "
            "integers by 32768"
        )
    return found.astype(np.float32)


def _fbank() -> Any:
    """The library, loaded when it is first used."""
    try:
        import kaldi_native_fbank
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}; features of speech need it: pip install 'leapformer[speech]'"
        ) from None
    return kaldi_native_fbank
