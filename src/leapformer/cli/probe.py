"""What a state of fixed size can hold: `leapformer lm probe`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from ..tasks.probe.recipes import ProbeRecipe, recipe
from .options import attentions, numbers, peek


@dataclass
class Probe:
    """Copying and phone-book lookup: accuracy against length, leave JSON, a table and a picture."""

    out: Path
    """Folder for all of it. Started again, it keeps what is finished and goes on with the rest."""
    recipe: Annotated[ProbeRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attentions: str = "leap,softmax"
    """Causal mechanisms of the zoo, separated by commas."""
    seeds: str = "0"
    """Whole numbers, separated by commas."""

    def __call__(self) -> None:
        from ..tasks.probe.compare import compare
        from ..tasks.processes import processes

        compare(self.recipe, attentions(self.attentions), numbers("--seeds", self.seeds), self.out)
        if processes().is_main_process:
            print(f"\n{(self.out / 'table.md').read_text()}\npicture: {self.out / 'accuracy.png'}")


def with_task(command: type[Probe], words: list[str], prog: str) -> Callable[[], None]:
    """The command that the words describe: --task and --preset choose its recipe, other options
    override the recipe's fields by name."""
    task, preset = peek(words, task="copy", preset="quick")
    default = command(out=tyro.MISSING, recipe=recipe(task, preset))
    return tyro.cli(command, args=words, prog=prog, default=default)
