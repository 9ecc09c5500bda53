"""One translator, one policy, a list of wav files: what SimulEval and omnisteval say of it."""

import csv
import importlib.util
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

from .quality import scores

LATENCIES = ("LAAL", "AL", "AP", "DAL")
AGENT = "leapformer.tasks.speech.agent.LeaPformerAgent"
SEGMENT = 40
"""Milliseconds that are heard at once: short beside a unit, which is complete at no multiple of its
own length."""
SOURCES, REFERENCES = "sources.txt", "references.txt"


def check_tools() -> None:
    """Raises ModuleNotFoundError, naming the extra, where SimulEval or omnisteval is missing."""
    for name in ("simuleval", "omnisteval"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"No module named {name!r}; evaluating streams needs it: pip install "
                "'leapformer[simuleval]', then pip install --no-deps simuleval==1.1.4"
            )


def simulate(model: Path, wait: int | None, sources: Path, out: Path) -> dict[str, Any]:
    """Stream the wav files that `sources.txt` in the folder `sources` names, 40 ms at a time,
    through SimulEval's command line, and leave its log in the new folder `out`.

    Returns `bleu`, `chrf` and `exact` against `references.txt`; the `real_time_factor`, seconds of
    computing a second of sound, of the streams that wrote something (the log has no times of the
    others); `simuleval`: its BLEU, and LAAL, AL and DAL in milliseconds, AP; `omnisteval`: the same
    and YAAL (None where all was written at the end), as if computing took no time ("CU") and with
    it ("CA"). Where nothing was written at all the latter three are None: both tools end there.

    Raises RuntimeError with the tool's last words where one fails.
    """
    references = sources / REFERENCES
    _run(
        "simuleval",
        *("--agent-class", AGENT, "--model-path", str(model), "--wait-k", str(wait or "all")),
        *("--source", str(sources / SOURCES), "--target", str(references)),
        *("--source-segment-size", str(SEGMENT), "--output", str(out)),
        *("--no-scoring", "--no-progress-bar"),
    )
    log = [json.loads(line) for line in (out / "instances.log").read_text().splitlines()]
    wanted = references.read_text(encoding="utf-8").splitlines()
    found = {
        **scores([one["prediction"] for one in log], wanted),
        "real_time_factor": real_time_factor(log),
        "simuleval": None,
        "omnisteval": None,
    }
    if found["real_time_factor"] is not None:
        found["simuleval"] = _simuleval(out)
        found["omnisteval"] = _omnisteval(out, references)
    return found


def real_time_factor(log: list[dict[str, Any]]) -> float | None:
    """Seconds of computing a second of sound, of the streams in SimulEval's log that wrote
    something; None where none did."""
    timed = [one for one in log if one["delays"]]
    spent = sum(one["elapsed"][-1] - one["delays"][-1] for one in timed)
    return spent / sum(one["source_length"] for one in timed) if timed else None


def _simuleval(out: Path) -> dict[str, float]:
    said = _run("simuleval", "--score-only", "--output", str(out), "--latency-metrics", *LATENCIES)
    names, values = (line.split() for line in said.splitlines()[-2:])
    return {name: float(value) for name, value in zip(names, values[1:], strict=True)}


def _omnisteval(out: Path, references: Path) -> dict[str, float | None]:
    _run(
        *("omnisteval", "shortform", "--hypothesis_file", str(out / "instances.log")),
        *("--ref_sentences_file", str(references), "--word_level", "--output_folder", str(out)),
    )
    with (out / "scores.tsv").open(encoding="utf-8") as file:
        rows = {row["metric"]: row["value"] for row in csv.DictReader(file, delimiter="\t")}
    timed = [f"{name} ({way})" for name in ("YAAL", *LATENCIES) for way in ("CU", "CA")]
    values = {name: float(rows[name]) for name in ("BLEU", "chrF", *timed)}
    return {name: value if math.isfinite(value) else None for name, value in values.items()}


def _run(tool: str, *words: str) -> str:
    """The tool's standard output."""
    command = [str(Path(sys.executable).parent / tool), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(said))
    return done.stdout
