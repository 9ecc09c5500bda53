"""One run on transformers' Trainer: claimed, resumed after a kill, finished once."""

import json
import shutil
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from transformers import PreTrainedModel, Trainer, TrainerState, set_seed

from ..results import read_json, writable_folder, write_json
from .processes import processes

RESULT = "result.json"


def run(
    out: Path,
    wanted: dict[str, Any],
    steps: int,
    build: Callable[[], PreTrainedModel],
    make_trainer: Callable[[PreTrainedModel], Trainer],
    report: Callable[[Trainer], dict[str, Any]],
) -> dict[str, Any]:
    """Train what `build` gives for so many steps, and leave what `report` says as `result.json`
    and the best model in `out`.

    `wanted` says what runs, its "recipe" and its "seed" among it. A run that finished before is not
    run again; one that was killed goes on from its last whole checkpoint. Raises ValueError where
    `out` holds a run of something else.
    """
    every = processes()
    if every.is_main_process:
        _claim(out, wanted)
    every.wait_for_everyone()
    if (out / RESULT).is_file():
        if every.is_main_process:
            print(f"{out / RESULT} is there: the run is finished", flush=True)
        finished: dict[str, Any] = read_json(out / RESULT)
        return finished
    with _storing(out):
        trainer = _trained(out, wanted["seed"], steps, build, make_trainer)
    result = report(trainer)
    with _storing(out):
        trainer.save_model(str(out / "model"))
    every.wait_for_everyone()
    if every.is_main_process:
        write_json(out / RESULT, result)
        for checkpoint in out.glob("checkpoint-*"):
            shutil.rmtree(checkpoint)
    return result


def check_run(out: Path, seed: int) -> None:
    """The seed is one, and the folder can be written to."""
    if seed < 0:
        raise ValueError(f"the seed is {seed}: it must be at least 0")
    writable_folder(out)


@contextmanager
def _storing(out: Path) -> Iterator[None]:
    """Turns the errors of safetensors' and torch's files, on a full disk above all, to OSError."""
    try:
        yield
    except (SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "inline_container" not in str(error):
            raise
        reason = str(error).splitlines()[0]
        raise OSError(f"cannot store or read {out} ({reason}): is the disk full?") from error


def _claim(out: Path, wanted: dict[str, Any]) -> None:
    """Mark the folder with what runs in it; refuse one that holds work on something else."""
    mark = out / "run.json"
    wanted = json.loads(json.dumps(wanted))
    if mark.is_file() and ((out / RESULT).is_file() or last_checkpoint(out)):
        held = read_json(mark)
        differing = [
            *(key for key in wanted if held.get(key) != wanted[key] and key != "recipe"),
            *(key for key in wanted["recipe"] if held["recipe"].get(key) != wanted["recipe"][key]),
        ]
        if differing:
            raise ValueError(
                f"{out} holds a run with another {' and '.join(differing)}: "
                "choose another --out, or delete it"
            )
    else:
        write_json(mark, wanted)


def _trained(
    out: Path,
    seed: int,
    steps: int,
    build: Callable[[], PreTrainedModel],
    make_trainer: Callable[[PreTrainedModel], Trainer],
) -> Trainer:
    """A trainer at the end of training, with the best model: from the start, from the last
    checkpoint, or, where that is the end already, without another step."""
    set_seed(seed)
    model = build()
    checkpoint = last_checkpoint(out)
    if checkpoint is not None:
        kept = str(checkpoint / "trainer_state.json")
        state = TrainerState.load_from_json(kept)
        if state.best_model_checkpoint is not None:  # the folder may have been moved
            state.best_model_checkpoint = str(out / Path(state.best_model_checkpoint).name)
            if processes().is_main_process:
                state.save_to_json(kept)
            processes().wait_for_everyone()
        if state.global_step >= steps:
            assert state.best_model_checkpoint is not None
            trainer = make_trainer(type(model).from_pretrained(state.best_model_checkpoint))
            trainer.state = state
            return trainer
        others, now = len([*checkpoint.glob("rng_state*.pth")]), processes().num_processes
        if others != now and processes().is_main_process:
            print(f"{checkpoint} is of {others} process(es), not {now}: dropout is drawn anew")
    trainer = make_trainer(model)
    _whole_weights(trainer)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def _whole_weights(trainer: Trainer) -> None:
    """Under FSDP, let checkpoints hold whole weights: shards are no model that can be loaded."""
    if trainer.is_fsdp_enabled:
        plugin = trainer.accelerator.state.fsdp_plugin
        plugin.state_dict_config = plugin.optim_state_dict_config = None
        plugin.set_state_dict_type("FULL_STATE_DICT")


def last_checkpoint(out: Path) -> Path | None:
    """The newest whole checkpoint: Trainer writes its state last, and all it reads is there."""
    found = []
    for state in out.glob("checkpoint-*/trainer_state.json"):
        try:
            step = int(json.loads(state.read_text())["global_step"])
        except (ValueError, KeyError):
            continue
        if _readable(state.parent):
            found.append((step, state.parent))
    return max(found)[1] if found else None


def _readable(checkpoint: Path) -> bool:
    """Is nothing missing, and nothing cut off? Nothing is unpickled to find out."""
    needed = ("*.safetensors", "optimizer*", "scheduler.pt", "rng_state*.pth")
    if not all(any(checkpoint.glob(name)) for name in needed):
        return False
    try:
        for weights in checkpoint.glob("*.safetensors"):
            safe_open(str(weights), "pt")
    except (SafetensorError, OSError):
        return False
    pickled = (file for kind in ("*.pt", "*.pth", "*.bin") for file in checkpoint.glob(kind))
    return all(map(zipfile.is_zipfile, pickled))
