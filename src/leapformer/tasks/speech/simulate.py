"""Quality and latency of a translator, measured by the field's own tools on a list of wav files."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import soundfile
from tqdm import tqdm

from ...models import LeaPformerSpeechConfig
from ...results import write_json
from .audio import RATE, AudioError, read_audio
from .data import Utterances
from .evaluate import scores

LATENCIES = ("LAAL", "AL", "AP", "DAL")
AGENT = "leapformer.tasks.speech.agent.LeaPformerAgent"


def check_tools() -> None:
    """Raises ModuleNotFoundError, naming the extra, where SimulEval or omnisteval is missing."""
    for name in ("simuleval", "omnisteval"):
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(
                f"No module named {name!r}; evaluating streams needs it: pip install "
                "'leapformer[simuleval]', then pip install --no-deps simuleval==1.1.4"
            )


def write_sources(split: Utterances, count: int | None, out: Path) -> dict[str, Any]:
    """The first `count` utterances as wav files of their own, with `sources.txt` and
    `references.txt` that name and translate them, one a line. What cannot be read is left out;
    returns how many there are, their seconds, and the names of those left out."""
    wavs = out / "wavs"
    wavs.mkdir(parents=True, exist_ok=True)
    sources, references, left_out, samples = [], [], [], 0
    for i in tqdm(range(min(len(split), count or len(split))), desc="sources", leave=False):
        item = split[i]
        try:
            sound = read_audio(item["audio"], item["start"], item["duration"])
        except (AudioError, FileNotFoundError) as error:
            left_out.append(f"{item['id']}: {error}")
            continue
        file = wavs / f"{i}.wav"
        soundfile.write(file, sound, RATE, subtype="FLOAT")
        samples += len(sound)
        sources.append(str(file.resolve()))
        references.append(" ".join(item["translation"].split()))
    if not sources:
        raise ValueError(f"none of the audio can be read: {left_out[0] if left_out else 'no rows'}")
    (out / "sources.txt").write_text("\n".join(sources) + "\n", encoding="utf-8")
    (out / "references.txt").write_text("\n".join(references) + "\n", encoding="utf-8")
    return {"utterances": len(sources), "seconds": samples / RATE, "left_out": left_out}


def simulate(model: Path, wait: int | None, sources: Path, out: Path) -> dict[str, Any]:
    """Stream the wav files in the folder `sources`, a unit at a time, through SimulEval's command
    line.

    Returns BLEU and chrF; LAAL, AL, AP and DAL by SimulEval, in milliseconds but for AP, once as if
    computing took no time and once with it ("aware"); LAAL and YAAL by omnisteval; and the
    real-time factor, seconds of computing a second of sound. Without a word written the latencies
    are None. All of it is kept in `out`; a simulation that is there is not run again.
    """
    kept = out / "scores.json"
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        return found
    config = LeaPformerSpeechConfig.from_pretrained(model)
    references = sources / "references.txt"
    _run(
        "simuleval",
        *("--agent-class", AGENT, "--model-path", str(model), "--wait-k", str(wait or "all")),
        *("--source", str(sources / "sources.txt"), "--target", str(references)),
        *("--source-segment-size", str(40 * config.wait_ratio), "--output", str(out)),
        *("--no-scoring", "--no-progress-bar"),
    )
    log = [json.loads(line) for line in (out / "instances.log").read_text().splitlines()]
    wanted = references.read_text(encoding="utf-8").splitlines()
    written = [one["prediction"] for one in log]
    spent = sum((one["elapsed"][-1] - one["delays"][-1]) for one in log if one["delays"])
    found = {
        "wait": wait or 0,
        **scores(written, wanted),
        "real_time_factor": spent / sum(one["source_length"] for one in log),
        "latency": None,
        "aware": None,
        "omnisteval": None,
    }
    if any(one["delays"] for one in log):
        found["latency"] = _latencies(out / "unaware", log, "delays")
        found["aware"] = _latencies(out / "aware", log, "elapsed")
        found["omnisteval"] = _omnisteval(out, references)
    write_json(kept, found)
    return found


def _latencies(place: Path, log: list[dict[str, Any]], times: str) -> dict[str, float]:
    """SimulEval's latencies of those that wrote something, by one of the times it noted."""
    place.mkdir(exist_ok=True)
    lines = [json.dumps({**one, "delays": one[times]}) for one in log if one["delays"]]
    (place / "instances.log").write_text("\n".join(lines) + "\n")
    (place / "config.yaml").write_text("source_type: speech\ntarget_type: text\n")
    _run("simuleval", "--score-only", "--output", str(place), "--latency-metrics", *LATENCIES)
    names, values = (line.split("\t") for line in (place / "scores.tsv").read_text().splitlines())
    return {name: float(value) for name, value in zip(names, values, strict=True)}


def _omnisteval(out: Path, references: Path) -> dict[str, Any]:
    """LAAL and YAAL by omnisteval."""
    said = _run(
        "omnisteval",
        *("shortform", "--hypothesis_file", str(out / "instances.log")),
        *("--ref_sentences_file", str(references), "--word_level"),
    )
    return {"text": said}


def _run(tool: str, *words: str) -> str:
    """The tool's standard output; RuntimeError with the end of what it said where it fails."""
    command = [str(Path(sys.executable).parent / tool), *words]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        said = (done.stderr or done.stdout).strip().splitlines()[-5:]
        raise RuntimeError(f"{' '.join(command)} failed:\n" + "\n".join(said))
    return done.stdout
