"""Models that a run left, with what reads and writes for them."""

import hashlib
from pathlib import Path
from typing import Any, TypeVar

import torch
from transformers import PreTrainedModel

from ..results import read_json

Model = TypeVar("Model", bound=PreTrainedModel)


def fingerprint(folder: Path) -> str:
    """Of the tokenizer in a folder: two that give the same ids have the same."""
    file = folder / "tokenizer.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: a tokenizer belongs beside data and models")
    return hashlib.sha256(file.read_bytes()).hexdigest()


def load_pretrained(folder: Path | str, kind: type[Model], reader: Any) -> tuple[Model, Any]:
    """The model in the folder `model` of a run, on a GPU where there is one and ready to be used,
    and its tokenizer or processor, of the class `reader`.

    Raises FileNotFoundError and ValueError for a folder that holds none, or one of another kind,
    for weights that are cut off, missing, of other shapes or of another model, and for a tokenizer
    that the model was not trained with.
    """
    folder = Path(folder).expanduser()
    for name in ("config.json", "tokenizer.json"):
        if not (folder / name).is_file():
            raise FileNotFoundError(
                f"{folder} holds no model, {name} is missing: give the folder `model` of a run"
            )
    wanted = kind.config_class.model_type
    try:
        held = read_json(folder / "config.json")["model_type"]
        if held != wanted:
            raise ValueError(f"its type is {held!r}, expected {wanted!r}")
        model, found = kind.from_pretrained(
            str(folder), output_loading_info=True, ignore_mismatched_sizes=True
        )
        for fault in ("missing", "unexpected", "mismatched"):
            if names := sorted(map(str, found[f"{fault}_keys"])):
                raise ValueError(f"{len(names)} weights are {fault}, such as {names[0]}")
        reads = reader.from_pretrained(str(folder))
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"cannot read the model in {folder}: {reason}") from error
    size = len(getattr(reads, "tokenizer", reads))
    if size != model.config.vocab_size:
        raise ValueError(
            f"{folder}: the tokenizer has {size} tokens and the model {model.config.vocab_size}: "
            "they do not belong together"
        )
    trained_with = getattr(model.config, "tokenizer_sha256", None)
    if trained_with not in (None, fingerprint(folder)):
        raise ValueError(f"{folder}: tokenizer.json is not the one that the model was trained with")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return model.to(device).eval(), reads
