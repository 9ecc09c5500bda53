"""Pictures from saved results. Reads plain values, imports no torch."""

from .arena import arena, curves, quality_throughput, samples
from .language import language_bench, language_curves, language_lengths
from .probe import probe
from .speech import speech_bench, speech_curve
from .speed import attention_bench, profile

__all__ = [
    "arena",
    "attention_bench",
    "curves",
    "language_bench",
    "language_curves",
    "language_lengths",
    "probe",
    "profile",
    "quality_throughput",
    "samples",
    "speech_bench",
    "speech_curve",
]
