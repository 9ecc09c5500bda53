"""What a state of fixed size can hold: `leapformer lm probe`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from .options import attentions, numbers, peek


@dataclass
class Probe:
    """Copying and phone-book lookup: accuracy against length, leave JSON, a table and a picture."""

    out: Path
    """Folder for all of it. Started again, it keeps what is finished and goes on with the rest."""
    attentions: str = "leap,softmax"
    """Causal mechanisms of the zoo, separated by commas."""
    seeds: str = "0"
    """Whole numbers, separated by commas."""
    recipe: Any = None
    """Its type is known once transformers is loaded: `with_task`."""

    def __call__(self) -> None:
        from ..tasks.lm.probe import compare
        from ..tasks.processes import processes

        compare(self.recipe, attentions(self.attentions), numbers("--seeds", self.seeds), self.out)
        if processes().is_main_process:
            print(f"\n{(self.out / 'table.md').read_text()}\npicture: {self.out / 'accuracy.png'}")


def with_task(command: type[Probe], words: list[str], prog: str) -> Callable[[], None]:
    """The command that the words describe: --task and --preset choose its recipe, other options
    override the recipe's fields by name."""
    from ..tasks.lm.probe import ProbeRecipe, recipe

    task, preset = peek(words, task="copy", preset="quick")
    chosen = recipe(task, preset)

    @dataclass
    class Typed(Probe):
        recipe: Annotated[ProbeRecipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = chosen

    Typed.__doc__ = command.__doc__
    return tyro.cli(Typed, args=words, prog=prog)
