"""Recipes of the probe: every number of a run."""

from collections.abc import Callable
from dataclasses import dataclass

from ...ops.checks import known
from ..recipes import check_numbers

TASKS = ("copy", "phonebook")


@dataclass(frozen=True)
class ProbeRecipe:
    """A full, typed configuration; the same for every attention that is compared."""

    task: str
    """copy, or phonebook."""
    preset: str = "quick"

    min_length: int = 10
    """Letters of a string, or entries of a book, in training: uniform from here..."""
    max_length: int = 30
    """...to here."""
    evaluate_lengths: tuple[int, ...] = (10, 20, 30, 40, 60)
    evaluate_rows: int = 200
    """Strings or books of each of these lengths."""
    letters: int = 26
    name_length: int = 3
    """Letters of a name; the names of a book differ."""
    number_length: int = 4
    """Digits of a number."""

    num_hidden_layers: int = 2
    hidden_size: int = 64
    num_attention_heads: int = 1
    intermediate_size: int = 256
    position_embedding: str = "none"
    short_convolution: int = 4
    hidden: int | None = None
    """r of LeaP; None is head_dim / 4."""
    features: int = 128
    """Performer's random features."""
    initializer_range: float = 0.5

    batch_size: int = 32
    """Rows a step, over all processes."""
    learning_rate: float = 6e-3
    weight_decay: float = 0.01
    warmup_steps: int = 100
    steps: int = 1500
    """The learning rate rises linearly for `warmup_steps` and falls to 0 along a cosine."""
    clip_norm: float = 1.0
    evaluate_every: int = 500
    """Steps between losses on held-out rows of the trained lengths; the best model is tested."""
    validation_rows: int = 256

    def __post_init__(self) -> None:
        known("task", self.task, TASKS)
        check_numbers(self, ("short_convolution", "weight_decay", "warmup_steps"))
        if not self.evaluate_lengths:
            raise ValueError("evaluate_lengths is empty: give at least one length")
        if self.max_length < self.min_length:
            raise ValueError(
                f"max_length is {self.max_length}: it must be at least min_length, "
                f"{self.min_length}"
            )
        names = self.letters**self.name_length
        if self.task == "phonebook" and not self.longest <= names < 2**63:
            raise ValueError(
                f"{self.longest} entries want as many names, and {self.letters} letters in "
                f"{self.name_length} places make {names:,}: choose another --name-length"
            )

    @property
    def longest(self) -> int:
        """The longest string or book, of training or evaluation."""
        return max(self.max_length, *self.evaluate_lengths)


RECIPES: dict[str, dict[str, Callable[[], ProbeRecipe]]] = {
    "copy": {"quick": lambda: ProbeRecipe("copy")},
    "phonebook": {
        "quick": lambda: ProbeRecipe(
            "phonebook", min_length=1, max_length=12, evaluate_lengths=(1, 3, 6, 12, 20)
        )
    },
}
"""Books begin with one entry. With 10 or more, leap stayed at chance for 1,500 steps and softmax
for 500."""


def recipe(task: str, preset: str) -> ProbeRecipe:
    """The recipe of that name; ValueError with the names there are for another."""
    presets = RECIPES[known("task", task, TASKS)]
    return presets[known("preset", preset, presets)]()
