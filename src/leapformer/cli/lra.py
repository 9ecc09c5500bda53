"""Commands of the arena: `leapformer lra prepare | train | compare`."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import tyro

from ..tasks.lra.recipes import RECIPES, Recipe, recipe
from .options import ALL, attentions, numbers, peek

DATA = Path("~/.cache/leapformer/lra")


@dataclass
class Prepare:
    """Read a task's data as its user has them, check them, and keep them as datasets."""

    task: str
    """listops, text, retrieval, image or pathfinder."""
    source: Path
    """The folder: aclImdb, cifar-10-batches-py, a release of Long-Range Arena, ..."""
    out: Path | None = None
    """The new folder; by default the task's name where train and compare look for it."""
    partial: bool = False
    """Take a published release also where files of it are missing."""

    def __call__(self) -> None:
        from ..tasks.lra.data import prepare

        out = (self.out or DATA / self.task).expanduser()
        about = prepare(self.task, self.source, out, self.partial)
        print(f"{self.task}, {about['layout']}: {out}")
        for name, split in about["splits"].items():
            print(f"  {name}: {split['examples']:,} examples, classes {split['classes']}")


@dataclass
class Train:
    """Train one attention on one Long-Range Arena task and test it."""

    out: Path
    """Folder for the result, the model and the checkpoints. A killed run goes on from there."""
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attention: str = "leap"
    """A mechanism of the zoo: leap, cosformer, linear, softmax, ... (docs/zoo.md)."""
    seed: int = 0
    data: Path = DATA
    """Where data lie: prepared ones in a folder named after the task, sampled ones beside it."""

    def __call__(self) -> None:
        from ..tasks.lra.train import train
        from ..tasks.processes import processes
        from ..tasks.runs import RESULT

        run = train(self.recipe, self.attention, self.seed, self.out, self.data)
        if processes().is_main_process:
            print(
                f"{self.attention}: test accuracy {100 * run['accuracy']:.1f} %, most frequent "
                f"class {100 * run['majority']:.1f} %; {self.out / RESULT}"
            )


@dataclass
class Compare:
    """Train several attentions, time them, and leave results as JSON, a table and a picture."""

    out: Path
    """Folder for all of it. Started again, it keeps what is finished and goes on with the rest; the
    tables show the attentions and seeds that are asked for."""
    recipe: Annotated[Recipe, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands]
    attentions: str = ALL
    """Mechanisms of the zoo, separated by commas, or all."""
    seeds: str = "0"
    """Whole numbers, separated by commas."""
    rounds: int = 5
    """Rounds of timing."""
    data: Path = DATA
    """Where data lie: prepared ones in a folder named after the task, sampled ones beside it."""

    def __call__(self) -> None:
        self.compare([self.recipe])

    def compare(self, recipes: list[Recipe]) -> None:
        """Compare on these recipes' tasks."""
        from ..tasks.lra.compare import PICTURE, compare

        names, seeds = attentions(self.attentions), numbers("--seeds", self.seeds)
        compare(recipes, names, seeds, self.out, self.data, self.rounds)
        print()
        print((self.out / "table.md").read_text())
        print(f"picture: {self.out / PICTURE}")


def with_task(command: type[Train | Compare], words: list[str], prog: str) -> Callable[[], None]:
    """The command that the words describe: --task and --preset choose its recipe, other options
    override the recipe's fields by name, --task all compares on every task."""
    task, preset = peek(words, task="listops", preset="quick")

    def parsed(task: str) -> Any:
        default = command(out=tyro.MISSING, recipe=recipe(task, preset))
        found = tyro.cli(command, args=words, prog=prog, default=default)
        return replace(found, recipe=replace(found.recipe, task=task))

    if command is Compare and task == ALL:
        whole = [parsed(task) for task in RECIPES]
        return partial(whole[0].compare, [each.recipe for each in whole])
    return parsed(task)
