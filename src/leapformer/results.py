"""Every number carries its recipe: results as JSON with a signature, written whole."""

import json
import platform
import shutil
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from .ops import choose_backend

_LIBRARIES = ("leapformer", "torch", "transformers", "datasets", "accelerate")


def signature(**what: Any) -> dict[str, Any]:
    """`what` was run (attention, seed, ...), with which versions, from which commit and where.

    "backend" is that of `leap_attention`, or what "auto" stands for where `what` names none.
    """
    cuda = torch.cuda.is_available()
    return {
        "backend": choose_backend("auto", torch.device("cuda" if cuda else "cpu")),
        **what,
        "versions": {name: version(name) for name in _LIBRARIES},
        "commit": _commit(),
        "machine": {
            "processor": _processor(),
            "threads": torch.get_num_threads(),
            "gpu": torch.cuda.get_device_name() if cuda else None,
            "system": platform.system(),
            "python": platform.python_version(),
        },
    }


def _commit() -> str | None:
    """The commit of this package's source, marked where files differ; None outside git, and where
    git is not installed."""
    if shutil.which("git") is None:
        return None
    here = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", here, *words], capture_output=True, text=True)
        return done.stdout.strip() if done.returncode == 0 else ""

    commit = git("rev-parse", "--short=12", "HEAD")
    tracked = git("ls-files", "--error-unmatch", Path(__file__).name)
    if not commit or not tracked:
        return None
    return commit + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")


def _processor() -> str:
    for line in _lines(Path("/proc/cpuinfo")):
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.is_file() else []


def write_json(path: Path, value: Any) -> None:
    """Write so that a reader, also after a kill, finds the old file or the new one whole."""
    with tempfile.NamedTemporaryFile(
        "w", dir=path.parent, prefix=f".{path.name}-", delete=False, encoding="utf-8"
    ) as half:
        written = Path(half.name)
        try:
            json.dump(value, half, indent=1)
            half.write("\n")
            half.close()
            written.chmod(0o644)
            written.replace(path)
        except BaseException:
            written.unlink()
            raise


def read_json(path: Path) -> Any:
    """What `write_json` wrote; ValueError names the file where it is something else."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): delete it") from None


def writable_folder(path: Path, option: str = "--out") -> Path:
    """Make the folder and try it, before any work is done for it. OSError names the cure: another
    value of `option`."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise OSError(
            f"cannot write to {path} ({error.strerror}): choose another folder with {option}"
        ) from None
    return path


def json_file(out: Path) -> None:
    """Is `out` the name of a JSON file in a folder that can be written to? Raises ValueError or, as
    `writable_folder`, OSError, before any work is done for it."""
    if out.suffix != ".json" or out.is_dir():
        raise ValueError(f"--out {out}: give the name of a JSON file, such as result.json")
    writable_folder(out.parent)


def markdown(head: list[str], rows: list[list[str]]) -> str:
    """A table whose first column is text and whose others are numbers."""
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
