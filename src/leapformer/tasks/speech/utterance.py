"""An utterance of a corpus, and what its numbers must be."""

import math
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Utterance:
    """A span of an audio file, what is said in it, and its translation.

    Attributes:
        id: a name within its split.
        audio: the file, which was there when the corpus was read.
        start: seconds into the file.
        duration: seconds; None for the rest of the file.
        transcript: what is said.
        translation: of it, in the target language.
    """

    id: str
    audio: Path
    start: float
    duration: float | None
    transcript: str
    translation: str


def seconds(place: str, name: str, text: str) -> float:
    """The number that stands at a place; ValueError names it for anything but 0 or more seconds."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not 0 <= found < math.inf:
        raise ValueError(f"{place}: {name} is {text!r:.50}: expected seconds, 0 or more")
    return found


def present(place: str, audio: Path) -> Path:
    """The audio file that a place names. Raises FileNotFoundError where it is not there."""
    if not audio.is_file():
        raise FileNotFoundError(f"{place}: its audio file {audio} is missing")
    return audio
